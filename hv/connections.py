"""The libvirt connections to all nodes, and the events that come over them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import libvirt
import structlog

from hv.border import words
from hv.line import Line
from hv.lines import Lines
from lvmigrate.node import Node

#: Seconds between keepalive messages, and how many may be missed: a dead link ends every call after 5 * (3 + 1) s.
_KEEPALIVE: Final = (5, 3)
#: How long the end waits until connections are closed, in seconds: a daemon that hangs does not answer that either.
_CLOSED_S: Final = 2.0

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


class _Taken(threading.local):
    """The lines that this thread has taken, by node."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}


class Connections:
    """The connections to all nodes. Safe to use from several threads."""

    def __init__(self, nodes: Mapping[str, Node], *, connect_timeout_s: float) -> None:
        self._lines = {name: self._lines_to(node, connect_timeout_s) for name, node in nodes.items()}
        self._mine = _Taken()
        self._listeners: dict[int, Listener] = {}
        self._job_listeners: dict[int, JobListener] = {}
        self._pass_listeners: dict[int, PassListener] = {}
        self._numbers = itertools.count()

    @contextmanager
    def calling(self, node: str) -> Iterator[None]:
        """In the context, `to` gives this thread a connection to ``node`` that hears its calls, one at a time."""
        with self._lines[node].taken() as line:
            self._mine.lines[node] = line
            try:
                yield
            finally:
                del self._mine.lines[node]

    def to(self, node: str) -> libvirt.virConnect:
        """A living connection to ``node``, in `calling`. Raises `NodeUnreachable` when there is none in time."""
        return self._mine.lines[node].connection()

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
        """Close every connection, those of daemons that hang in the background. Jobs that run on the nodes go on."""
        closing = [thread for lines in self._lines.values() for thread in lines.close()]
        deadline = time.monotonic() + _CLOSED_S
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _lines_to(self, node: Node, timeout_s: float) -> Lines:
        """Each event is told once: over the first."""
        first = Line(node, timeout_s=timeout_s, prepare=partial(self._prepare, node.name))
        another = partial(Line, node, timeout_s=timeout_s, prepare=partial(_keep_alive, node.name))
        return Lines(node, timeout_s=timeout_s, first=first, another=another)

    def _prepare(self, node: str, connection: libvirt.virConnect) -> tuple[int, ...]:
        """Have it kept alive and its events told; the ids of the callbacks."""

        def lifecycle(_connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            self._tell(node, domain.UUIDString(), event_words(event, detail))

        def job_completed(_connection: Any, domain: Any, statistics: dict[str, Any], _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            for listener in tuple(self._job_listeners.values()):
                listener(node, domain.UUIDString(), statistics)

        def pass_began(_connection: Any, domain: Any, number: int, _opaque: Any) -> None:  # noqa: ANN401 -- libvirt's call
            for listener in tuple(self._pass_listeners.values()):
                listener(node, domain.UUIDString(), number)

        found: list[int] = []
        _keep_alive(node, connection)
        try:
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, job_completed),
                (libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, pass_began),
            ):
                found.append(connection.domainEventRegisterAny(None, event, callback, None))
        except libvirt.libvirtError as error:
            # Events only make things faster and the report richer: everything is observed as well.
            _log.debug("libvirt_events_unavailable", node=node, error=words(error))
        return tuple(found)

    def _tell(self, node: str, uuid: str, event: str) -> None:
        _log.debug("domain_event", node=node, uuid=uuid, domain_event=event)
        for listener in tuple(self._listeners.values()):
            listener(node, uuid, event)


def _keep_alive(node: str, connection: libvirt.virConnect) -> tuple[int, ...]:
    """Have a dead link noticed; no callbacks."""
    try:
        connection.setKeepAlive(*_KEEPALIVE)
    except libvirt.libvirtError as error:  # libvirt's own drivers, in this process, have none
        _log.debug("libvirt_keepalive_unavailable", node=node, error=words(error))
    return ()
