"""A line to one node: a libvirt connection, opened by one thread however many wait, and let go when it broke."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

import libvirt
import structlog

from hv.border import row_of, words
from lvmigrate.errors import Code, NodeUnreachable
from lvmigrate.node import Node

_log = structlog.get_logger()

#: How long an opening that hangs is the only one, in seconds; twice as long for each one more, up to the most.  libvirt
#: cannot be told to end it, and some never end: those whose node lost its power meanwhile.
_PATIENCE_S: Final = 60.0
_MOST_PATIENCE_S: Final = 3600.0

#: How long the event loop rests after an error: what has caused it may be there still.
_LOOP_PAUSE_S: Final = 0.1

_loop_lock = threading.Lock()
_loop_running = threading.Event()


@dataclass(frozen=True, slots=True)
class Held:
    """A connection, and what was registered on it."""

    connection: libvirt.virConnect
    callbacks: tuple[int, ...]

    def let_go(self) -> threading.Thread:
        """Have it closed, in a thread of its own: a daemon that hangs takes its time.

        It is closed as soon as nobody uses it any more.  Closing it by force would take it away under a call that
        another thread is in.
        """
        thread = threading.Thread(target=_deregister, args=(self.connection, self.callbacks), daemon=True)
        thread.name = "libvirt-close"
        thread.start()
        return thread


@dataclass(eq=False, slots=True)
class _Opening:
    """One try to open a connection; whoever needs it waits for its end."""

    began: float
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class Line:
    """One connection to a node. Safe to use from several threads.

    ``prepare`` is called once with each new connection, and returns the ids of the callbacks that it registered.
    """

    def __init__(
        self, node: Node, *, timeout_s: float, prepare: Callable[[libvirt.virConnect], tuple[int, ...]]
    ) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._prepare = prepare
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._opening: _Opening | None = None
        self._patience_s = self._first_patience_s = max(_PATIENCE_S, 2 * timeout_s)

    @property
    def lives(self) -> bool:
        """Whether there is a connection that works. Asks nobody."""
        with self._lock:
            return self._held is not None and _lives(self._held.connection)

    def connection(self) -> libvirt.virConnect:
        """A living connection. Raises `NodeUnreachable` when there is none within the deadline."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            with self._lock:
                if self._held is not None and _lives(self._held.connection):
                    return self._held.connection
                opening = self._under_way()
            if not opening.ended.wait(max(0.0, deadline - time.monotonic())):
                raise NodeUnreachable(
                    self._node.name,
                    f"no libvirt connection within {self._timeout_s:g} s",
                    hint=f"Try `virsh -c '{self._node.libvirt_uri}' list`.",
                )
            if opening.error is not None:
                raise self._refused(opening.error) from opening.error

    def close(self) -> threading.Thread | None:
        """Let the connection go; the thread that does it. One that is being opened is let go when it is there."""
        with self._lock:
            held, self._held, self._opening = self._held, None, None
            return None if held is None else held.let_go()

    def _under_way(self) -> _Opening:
        """The opening to wait for, begun if there is none; with the lock held."""
        if self._held is not None:
            broken, self._held = self._held, None
            broken.let_go()
        now = time.monotonic()
        if self._opening is not None:
            if now - self._opening.began < self._patience_s:
                return self._opening
            self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
        opening = _Opening(began=now)
        # libvirt.open has no deadline of its own; a thread that hangs in it is left to end by itself.
        name = f"libvirt-open-{self._node.name}"
        threading.Thread(target=self._open, args=(opening,), name=name, daemon=True).start()
        self._opening = opening
        return opening

    def _open(self, opening: _Opening) -> None:
        held = None
        try:
            _start_event_loop()
            connection = libvirt.open(self._node.libvirt_uri)
            held = Held(connection, self._prepare(connection))
        except Exception as error:  # noqa: BLE001 -- raised in the threads that wait
            opening.error = error
        with self._lock:
            if self._opening is opening:
                self._opening, self._patience_s = None, self._first_patience_s
                self._held = held
            elif held is not None:  # closed meanwhile, or another one was begun in its place
                held.let_go()
        opening.ended.set()
        if held is not None:
            _log.debug("libvirt_connected", node=self._node.name, uri=self._node.libvirt_uri)

    def _refused(self, error: Exception) -> Exception:
        if not isinstance(error, libvirt.libvirtError):
            return error
        row = row_of(error)
        known = "" if row is None or row.code is Code.NODE_UNREACHABLE else f"{row.hint.format(node=self._node.name)} "
        return NodeUnreachable(
            self._node.name,
            "no libvirt connection could be opened",
            hint=f"{known}Try `virsh -c '{self._node.libvirt_uri}' list`. libvirt says: {words(error)}",
            detail=words(error),
            code=row.code if known and row is not None else None,
        )


def _lives(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _deregister(connection: libvirt.virConnect, callbacks: tuple[int, ...]) -> None:
    """Take off what holds the connection: libvirt keeps each callback, and libvirt-python the connection in it."""
    for number in callbacks:
        try:
            connection.domainEventDeregisterAny(number)
        except libvirt.libvirtError as error:  # the daemon is not there to be told; here it is off all the same
            _log.debug("libvirt_deregister_failed", error=words(error))


def _run_events(once: Callable[[], object]) -> NoReturn:
    """Never end: without it no event is told, no keepalive sent, and no silent peer found out on any connection."""
    while True:
        try:
            once()
        except libvirt.libvirtError as error:
            _log.error("libvirt_event_loop_failed", error=words(error))
            time.sleep(_LOOP_PAUSE_S)


def _start_event_loop() -> None:
    """Start libvirt's default event loop, once per process; it must be registered before the first connection."""
    with _loop_lock:
        if _loop_running.is_set():
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else libvirt writes to stderr itself
        libvirt.virEventRegisterDefaultImpl()

        loop = partial(_run_events, libvirt.virEventRunDefaultImpl)
        threading.Thread(target=loop, name="libvirt-events", daemon=True).start()
        _loop_running.set()
