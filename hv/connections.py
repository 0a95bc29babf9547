"""One libvirt connection per node, opened when needed, with a deadline, kept alive, and opened again when it broke."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import libvirt
import structlog

from hv.border import row_of, words
from lvmigrate.errors import Code, NodeUnreachable
from lvmigrate.node import Node

#: Seconds between keepalive messages, and how many may be missed: a dead link ends every call after 5 * (3 + 1) s.
_KEEPALIVE: Final = (5, 3)

#: virDomainEventType, in the order of its numbers.
_EVENTS: Final = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
)
#: virDomainEvent*DetailType of libvirt 11.3, by event.
_DETAILS: Final[Mapping[str, tuple[str, ...]]] = {
    "defined": ("added", "updated", "renamed", "from snapshot"),
    "undefined": ("removed", "renamed"),
    "started": ("booted", "migrated", "restored", "from snapshot", "woken up", "recovered"),
    "suspended": (
        "paused",
        "migrated",
        "i/o error",
        "watchdog",
        "restored",
        "from snapshot",
        "api error",
        "post-copy",
        "post-copy failed",
    ),
    "resumed": ("unpaused", "migrated", "from snapshot", "post-copy", "post-copy failed"),
    "stopped": ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "recreated"),
    "shutdown": ("finished", "by guest", "by host"),
    "pmsuspended": ("memory", "disk"),
    "crashed": ("panicked", "crash loaded"),
}

_log = structlog.get_logger()
_loop_lock = threading.Lock()
_loop_running = threading.Event()

#: Called with (node, uuid, event).
Listener = Callable[[str, str, str], None]
#: Called with (node, uuid, statistics) when a job has completed.
JobListener = Callable[[str, str, dict[str, Any]], None]
#: Called with (node, uuid, number) when a pass over a guest's memory has begun.
PassListener = Callable[[str, str, int], None]


def event_words(event: int, detail: int) -> str:
    """A life-cycle event as words: ``suspended migrated``. Numbers that a newer libvirt adds stay numbers."""
    kind = _EVENTS[event] if event < len(_EVENTS) else f"event {event}"
    details = _DETAILS.get(kind, ())
    return f"{kind} {details[detail] if detail < len(details) else detail}"


def _start_event_loop() -> None:
    """Start libvirt's default event loop, once per process; it must be registered before the first connection."""
    with _loop_lock:
        if _loop_running.is_set():
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else libvirt writes to stderr itself
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
        _loop_running.set()


class Connections:
    """The connections to all nodes. Safe to use from several threads."""

    def __init__(self, nodes: Mapping[str, Node], *, connect_timeout_s: float) -> None:
        self._nodes = nodes
        self._timeout_s = connect_timeout_s
        self._open: dict[str, libvirt.virConnect] = {}
        #: By node: the numbers of what is called with the events of its connection.
        self._callbacks: dict[str, list[int]] = {}
        self._locks = {name: threading.Lock() for name in nodes}
        self._listeners: dict[int, Listener] = {}
        self._job_listeners: dict[int, JobListener] = {}
        self._pass_listeners: dict[int, PassListener] = {}
        self._numbers = itertools.count()

    def to(self, node: str) -> libvirt.virConnect:
        """A living connection to ``node``. Raises `NodeUnreachable` when there is none within the deadline."""
        with self._locks[node]:
            connection = self._open.get(node)
            if connection is not None and connection.isAlive():
                return connection
            self._end(node)
            connection = self._connect(self._nodes[node])
            self._open[node] = connection
            return connection

    @contextmanager
    def listening(
        self, listener: Listener, jobs: JobListener | None = None, passes: PassListener | None = None
    ) -> Iterator[None]:
        """While in the context, the listeners hear the events of every guest on every connected node."""
        number = next(self._numbers)
        self._listeners[number] = listener
        if jobs is not None:
            self._job_listeners[number] = jobs
        if passes is not None:
            self._pass_listeners[number] = passes
        try:
            yield
        finally:
            self._listeners.pop(number, None)
            self._job_listeners.pop(number, None)
            self._pass_listeners.pop(number, None)

    def close(self) -> None:
        """Close every connection. Jobs that run on the nodes go on."""
        for node, lock in self._locks.items():
            with lock:
                self._end(node)

    def _end(self, node: str) -> None:
        """Close the connection, dead or alive.

        In libvirt, callbacks hold the connection that they are registered with: one that is let go or closed before
        they are gone stays for ever, with its memory and its event file descriptor.
        """
        connection = self._open.pop(node, None)
        callbacks = self._callbacks.pop(node, [])
        if connection is None:
            return
        acts = [*(partial(connection.domainEventDeregisterAny, number) for number in callbacks), connection.close]
        for act in acts:
            try:
                act()
            except libvirt.libvirtError as error:  # a dead one forgets the callback all the same
                _log.debug("libvirt_close_failed", node=node, error=words(error))

    def _connect(self, node: Node) -> libvirt.virConnect:
        _start_event_loop()
        outcome: queue.SimpleQueue[libvirt.virConnect | libvirt.libvirtError] = queue.SimpleQueue()
        given_up = threading.Event()

        def connect() -> None:
            try:
                connection = libvirt.open(node.libvirt_uri)
            except libvirt.libvirtError as error:
                outcome.put(error)
                return
            outcome.put(connection)
            if given_up.is_set():
                connection.close()

        # libvirt.open has no deadline of its own; a thread that hangs in it is left to end by itself.
        threading.Thread(target=connect, name=f"libvirt-open-{node.name}", daemon=True).start()
        try:
            got = outcome.get(timeout=self._timeout_s)
        except queue.Empty:
            given_up.set()
            raise NodeUnreachable(
                node.name,
                f"no libvirt connection within {self._timeout_s:g} s",
                hint=f"Try `virsh -c '{node.libvirt_uri}' list`.",
            ) from None
        if isinstance(got, libvirt.libvirtError):
            row = row_of(got)
            known = "" if row is None or row.code is Code.NODE_UNREACHABLE else f"{row.hint.format(node=node.name)} "
            raise NodeUnreachable(
                node.name,
                "no libvirt connection could be opened",
                hint=f"{known}Try `virsh -c '{node.libvirt_uri}' list`. libvirt says: {words(got)}",
                detail=words(got),
                code=row.code if known and row is not None else None,
            ) from got
        self._prepare(node.name, got)
        _log.debug("libvirt_connected", node=node.name, uri=node.libvirt_uri)
        return got

    def _prepare(self, node: str, connection: libvirt.virConnect) -> None:
        def lifecycle(_connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            self._tell(node, domain.UUIDString(), event_words(event, detail))

        def job_completed(_connection: Any, domain: Any, statistics: dict[str, Any], _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            for listener in tuple(self._job_listeners.values()):
                listener(node, domain.UUIDString(), statistics)

        def pass_began(_connection: Any, domain: Any, number: int, _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            for listener in tuple(self._pass_listeners.values()):
                listener(node, domain.UUIDString(), number)

        callbacks = self._callbacks[node] = []
        told = (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, job_completed),
            (libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, pass_began),
        )
        try:
            connection.setKeepAlive(*_KEEPALIVE)
            for event, call in told:
                callbacks.append(connection.domainEventRegisterAny(None, event, call, None))
        except libvirt.libvirtError as error:
            # Events only make things faster and the report richer: everything is observed as well.
            _log.debug("libvirt_events_unavailable", node=node, error=words(error))

    def _tell(self, node: str, uuid: str, event: str) -> None:
        _log.debug("domain_event", node=node, uuid=uuid, domain_event=event)
        for listener in tuple(self._listeners.values()):
            listener(node, uuid, event)
