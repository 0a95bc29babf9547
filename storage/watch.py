"""Following resources on several nodes: one stream per node, kept alive, and what broke replication meanwhile."""

from __future__ import annotations

import enum
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event as Flag
from types import TracebackType
from typing import Final, Self

import structlog

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.replication import Resource, Role
from storage import events2
from storage.events2 import BadLine
from storage.shell import Answer, Stream
from storage.world import Gap, World

log = structlog.get_logger(__name__)

#: Seconds before a stream that ended is started again; the last one for ever.
BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
#: How many breaks, and how many gaps, are kept in words. The first ones tell the cause.
MAX_BREAKS: Final = 100
#: How often a waiting thread looks at its ``cancel`` flag, in seconds.
CANCEL_S: Final = 0.1

_NOT_YET: Final = "it has not answered yet"

_NAME: Final = re.compile(r"(?:^|\s)name:(\S+)")


class _Notes:
    """The first sentences of possibly very many."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._more = 0

    def add(self, sentence: str) -> None:
        if len(self._first) < MAX_BREAKS:
            self._first.append(sentence)
        else:
            self._more += 1

    def words(self) -> tuple[str, ...]:
        return (*self._first, *((f"and {self._more} more",) if self._more else ()))


class ReplicationWatch:
    """Fulfils `lvmigrate.protocols.Watch` while it is used as a context manager.

    ``follow(node)`` makes one node's stream; ``why(node, answer)`` says what it means that one ended by itself.
    """

    def __init__(
        self,
        *,
        nodes: Sequence[str],
        names: Sequence[str],
        follow: Callable[[str], Stream],
        why: Callable[[str, Answer], LvmigrateError],
        on_change: Callable[[str], None] | None,
        answer_within_s: float,
    ) -> None:
        self._nodes = tuple(nodes)
        self._names = tuple(sorted(names))
        self._follow = follow
        self._why = why
        self._on_change = on_change
        self._answer_within_s = answer_within_s
        #: Guards everything below, and is notified of each change.
        self._changed = threading.Condition()
        self._changes = 0
        self._now: dict[tuple[str, str], Resource] = {}
        #: node -> why it is not known; every node starts so.
        self._unknown: dict[str, str] = dict.fromkeys(self._nodes, _NOT_YET)
        self._first_error: dict[str, LvmigrateError] = {}
        self._doubts: dict[tuple[str, str], tuple[str, ...]] = {}
        self._breaks = _Notes()
        self._gaps = _Notes()
        self._dual: set[str] = set()
        self._dual_since: float | None = None
        self._dual_s = 0.0
        self._streams: dict[str, Stream] = {}
        self._closing = Flag()
        self._begin = time.monotonic()
        self._threads = [
            threading.Thread(target=self._supervise, args=(node,), name=f"events2 {node}", daemon=True)
            for node in self._nodes
        ]

    # ---- the context

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        for thread in self._threads:
            thread.start()
        answered = self.wait(lambda: bool(self._first_error) or not self._unknown, self._answer_within_s)
        with self._changed:
            error = next(iter(self._first_error.values()), None)
            silent = next(iter(self._unknown), None)
        if error is None and not answered and silent is not None:
            error = NodeUnreachable(
                silent,
                f"no state of its resources within {self._answer_within_s:g} s",
                hint="Look at the node's load, and run there: drbdsetup events2 --now",
            )
        if error is not None:
            self.__exit__(None, None, None)
            raise error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._changed:
            streams = list(self._streams.values())
        for stream in streams:
            stream.stop()
        for thread in self._threads:
            thread.join()

    # ---- what it tells

    def resource(self, node: str, name: str) -> Resource | None:
        """The newest state; ``None`` when it is not known (the stream is down, or the node has no such resource)."""
        with self._changed:
            return self._now.get((node, name))

    def wait(self, holds: Callable[[], bool], timeout_s: float, *, cancel: Flag | None = None) -> bool:
        """Wait until ``holds()``, asked anew after each change; false after ``timeout_s`` or when ``cancel`` is set."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                seen = self._changes
            # Asked without the lock: it may take its time, and events go on.
            if holds():
                return True
            with self._changed:
                while self._changes == seen:
                    left = deadline - time.monotonic()
                    if left <= 0 or (cancel is not None and cancel.is_set()):
                        return False
                    self._changed.wait(left if cancel is None else min(left, CANCEL_S))

    def breaks(self) -> tuple[str, ...]:
        """Every time since the watch began, or since `forgive`, that a resource was seen not in step."""
        with self._changed:
            return self._breaks.words()

    def gaps(self) -> tuple[str, ...]:
        """Every time since then that a node was not watched, or said what was not understood."""
        with self._changed:
            return self._gaps.words()

    def forgive(self) -> None:
        """Forget what was seen so far. What is not in step now is a break at once, what is not known a gap."""
        with self._changed:
            self._breaks, self._gaps = _Notes(), _Notes()
            for node in self._nodes:
                if node in self._unknown:
                    self._gap(f"{node} is not watched: {self._unknown[node]}")
                    continue
                for name in self._names:
                    doubts = self._doubts.get((node, name), ())
                    if doubts:
                        self._break("; ".join(doubts))

    def dual_primary_s(self) -> float:
        """Seconds since the watch began during which two nodes were Primary for the same resource.

        While a node is not watched, a dual-primary that was seen before is taken to last.
        """
        with self._changed:
            return self._dual_s + (0.0 if self._dual_since is None else time.monotonic() - self._dual_since)

    # ---- one thread per node

    def _supervise(self, node: str) -> None:
        failures = 0
        while not self._closing.is_set():
            world = World(node)
            try:
                self._read(node, world)
            except LvmigrateError as error:
                self._lost(node, error)
            except Exception as error:
                # Whatever it was: a node that nobody watches must not look watched.
                log.exception("watch_failed", node=node)
                self._forget(node, f"a defect of the watch: {error!r}")
            if world.complete:
                failures = 0
            self._closing.wait(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
            failures += 1

    def _read(self, node: str, world: World) -> None:
        with self._follow(node) as lines:
            with self._changed:
                self._streams[node] = lines
            try:
                if self._closing.is_set():
                    return
                for line in lines:
                    try:
                        self._take(node, world, line)
                    except Gap as gap:
                        log.warning("rebuilding_world", node=node, reason=str(gap))
                        self._forget(node, str(gap))
                        return
            finally:
                with self._changed:
                    del self._streams[node]
            if not self._closing.is_set():
                self._lost(node, self._why(node, lines.end()))

    def _lost(self, node: str, error: LvmigrateError) -> None:
        log.warning("lost_stream", node=node, error=str(error), detail=error.detail)
        with self._changed:
            self._first_error.setdefault(node, error)
        self._forget(node, str(error).rstrip("."))

    def _forget(self, node: str, reason: str) -> None:
        with self._changed:
            if node not in self._unknown:
                self._gap(f"{node} is not watched: {reason}")
            self._unknown[node] = reason
            for name in self._names:
                self._now.pop((node, name), None)
                self._doubts.pop((node, name), None)
            self._wake()
        self._tell([f"{node} is not watched: {reason}"])

    def _take(self, node: str, world: World, line: str) -> None:
        try:
            event = events2.parse(line)
        except BadLine as error:
            log.warning("bad_events2_line", node=node, reason=str(error))
            named = _NAME.search(line)
            if named is None or named[1] in self._names:
                raise Gap(f"something was not understood: {error}") from error
            return
        if event.name and event.name not in self._names:
            return
        first = not world.complete
        world.apply(event)
        if not world.complete:
            return
        sentences: list[str] = []
        with self._changed:
            if first and self._unknown.pop(node, _NOT_YET) != _NOT_YET:
                sentences.append(f"{node} is watched again")
            for name in self._names if first else (event.name,):
                sentences += self._see(node, name, world.resource(name), quiet=first)
            self._wake()
        self._tell(sentences)

    def _see(self, node: str, name: str, new: Resource | None, *, quiet: bool) -> list[str]:
        """Note the newest state. Answers what changed, in sentences."""
        key = (node, name)
        old = self._now.get(key)
        if new is None:
            self._now.pop(key, None)
            doubts: tuple[str, ...] = (f"{node} has no resource {name}",)
        else:
            self._now[key] = new
            peers = [n for n in self._nodes if n != node] or [c.name for c in new.connections]
            doubts = tuple(str(doubt) for peer in peers for doubt in new.doubts(peer))
        if doubts and doubts != self._doubts.get(key):
            self._break("; ".join(doubts))
        self._doubts[key] = doubts
        return [] if quiet else list(_changes(node, name, old, new, self._nodes))

    def _tell(self, sentences: Sequence[str]) -> None:
        if self._on_change is None:
            return
        for sentence in sentences:
            try:
                self._on_change(sentence)
            except Exception:
                # The listener's defect must not end the watch.
                log.exception("listener_failed", sentence=sentence)

    # ---- with the lock held

    def _break(self, words: str) -> None:
        self._breaks.add(f"after {time.monotonic() - self._begin:.3f} s: {words}")

    def _gap(self, words: str) -> None:
        self._gaps.add(f"after {time.monotonic() - self._begin:.3f} s: {words}")

    def _wake(self) -> None:
        self._count_dual()
        self._changes += 1
        self._changed.notify_all()

    def _count_dual(self) -> None:
        now = time.monotonic()
        self._dual = {name for name in self._names if self._is_dual(name)}
        if self._dual and self._dual_since is None:
            self._dual_since = now
        elif not self._dual and self._dual_since is not None:
            self._dual_s += now - self._dual_since
            self._dual_since = None

    def _is_dual(self, name: str) -> bool:
        known = [r for node in self._nodes if (r := self._now.get((node, name))) is not None]
        primaries = [r for r in known if r.role is Role.PRIMARY]
        if len(primaries) > 1 or any(c.peer_role is Role.PRIMARY for r in primaries for c in r.connections):
            return True
        return name in self._dual and len(primaries) + len(self._nodes) - len(known) > 1


def _changes(node: str, name: str, old: Resource | None, new: Resource | None, nodes: Sequence[str]) -> Iterator[str]:
    """What differs, in sentences, of roles, connections, disks and replication."""
    if old is None or new is None:
        if old is not new:
            yield f"{name} on {node} {'is gone' if new is None else 'is there'}"
        return
    yield from _change(f"{name} on {node}", old.role, new.role)
    if new.suspended != old.suspended:
        yield f"{name} on {node}: I/O suspended: {new.suspended} (was {old.suspended})"
    disks = {v.number: v.disk for v in old.volumes}
    for volume in new.volumes:
        yield from _change(f"{name}/{volume.number} on {node}", disks.pop(volume.number, None), volume.disk)
    for number in disks:
        yield f"{name}/{number} on {node} is gone"
    links = {c.peer_node_id: c for c in old.connections}
    for connection in new.connections:
        link = links.pop(connection.peer_node_id, None)
        peer = _peer_name(connection.name, node, nodes)
        yield from _change(f"{name} on {node}", link.state if link else None, connection.state, f" to {peer}")
        states = {v.number: v.replication for v in link.volumes} if link else {}
        for there in connection.volumes:
            what = f"{name}/{there.number} on {node}"
            yield from _change(what, states.get(there.number), there.replication, f" to {peer}")
    for link in links.values():
        yield f"{name} on {node} has no connection to {_peer_name(link.name, node, nodes)} any more"


def _change(what: str, old: enum.Enum | None, new: enum.Enum, to: str = "") -> Iterator[str]:
    if new is not old:
        yield f"{what} is {new.value}{to} (was {old.value if old else 'absent'})"


def _peer_name(connection: str, node: str, nodes: Sequence[str]) -> str:
    """DRBD 8.4 calls every peer ``peer``; of two watched nodes it is the other one."""
    others = [n for n in nodes if n != node]
    return others[0] if connection == "peer" and len(others) == 1 else connection
