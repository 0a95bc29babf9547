"""Following resources on several nodes: one stream per node, kept alive, and what broke replication meanwhile.

Long, because the stream, its restarts and what is remembered across them share one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event as Flag
from types import TracebackType
from typing import Final, Self

import structlog

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.replication import Resource, Role
from storage import events2
from storage.changes import changes
from storage.events2 import NAME, BadLine, Event, Kind
from storage.feed import LIMIT, Change, Feed
from storage.shell import Answer, Stream
from storage.world import Gap, World

log = structlog.get_logger(__name__)

#: Seconds before a stream that ended is started again; the last one for ever.
BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
#: After this many seconds at the soonest a dump is begun anew that told of a resource what was not understood.
REREAD_S: Final = 5.0
#: How many breaks, and how many gaps, are kept in words. The first ones tell the cause.
MAX_BREAKS: Final = 100
#: How often a waiting thread looks at its ``cancel`` flag, in seconds.
CANCEL_S: Final = 0.1

#: How long a listener may take for what it was not told yet, when the watch ends, in seconds.
LISTENER_S: Final = 5.0

_NOT_YET: Final = "it has not answered yet"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwatched:
    """A node whose state is not known."""

    node: str
    #: Seconds since the watch began, when it was known last; 0: it was never.
    since_s: float
    #: Why, as a clause.
    reason: str


class ReplicationWatch:
    """Fulfils `lvmigrate.protocols.Watch` while it is used as a context manager.

    ``called``: by node, its own name of each resource, with the one that is spoken here; the same on all nodes.
    ``follow(node)`` makes one node's stream; ``why(node, answer)`` says what it means that one ended by itself.
    Three layers: a thread for each node supervises, starting again what ended; one stream is one process; one line is
    one value, or an error that is logged.  A line that is not understood costs nothing but what it said: the resource
    that it names is not known until a new dump tells of it, which is asked for at once; one that says the same again is
    asked for as the resource changes, and not sooner than `REREAD_S` after the last.
    """

    def __init__(
        self,
        *,
        called: Mapping[str, Mapping[str, str]],
        follow: Callable[[str], Stream],
        why: Callable[[str, Answer], LvmigrateError],
        on_change: Callable[[str], None] | None,
        answer_within_s: float,
    ) -> None:
        self._called = called
        self._nodes = tuple(called)
        self._names = tuple(sorted({name for names in called.values() for name in names.values()}))
        self._follow = follow
        self._why = why
        self._on_change = on_change
        self._answer_within_s = answer_within_s
        #: Guards everything below, and is notified of each change.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._changes = 0
        self._now: dict[tuple[str, str], Resource] = {}
        #: node -> why it is not known, and since when; every node starts so.
        self._unknown: dict[str, str] = dict.fromkeys(self._nodes, _NOT_YET)
        self._since: dict[str, float] = {}
        self._feeds: list[Feed] = []
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
        self._listener: threading.Thread | None = None

    # ---- the context

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        if self._on_change is not None:
            # In a thread of its own: one that takes its time must not keep the events waiting.
            feed = self._subscribe(LIMIT)
            feed.next(0)
            self._listener = threading.Thread(
                target=self._tell, args=(feed, self._on_change), name="events2 listener", daemon=True
            )
            self._listener.start()
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
        with self._changed:
            feeds, self._feeds = self._feeds, []
        for feed in feeds:
            feed.close()
        if self._listener is not None:
            self._listener.join(LISTENER_S)

    # ---- what it tells

    @contextmanager
    def subscribe(self, *, limit: int = LIMIT) -> Iterator[Feed]:
        """Everything that changes while in the context, in order, after a first snapshot.

        No more than ``limit`` changes are kept for a subscriber that does not take them: it is told then how many it
        missed, and everything anew.
        """
        feed = self._subscribe(limit)
        try:
            yield feed
        finally:
            with self._changed:
                if feed in self._feeds:
                    self._feeds.remove(feed)
            feed.close()

    def unwatched(self) -> tuple[Unwatched, ...]:
        """The nodes whose state is not known now, and since when."""
        with self._changed:
            return tuple(
                Unwatched(node=node, since_s=self._since.get(node, 0.0), reason=reason)
                for node, reason in self._unknown.items()
            )

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
            unread: dict[str, float] = {}
            try:
                self._read(node, world, unread)
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

    def _read(self, node: str, world: World, unread: dict[str, float]) -> None:
        with self._follow(node) as lines:
            with self._changed:
                self._streams[node] = lines
            try:
                if self._closing.is_set():
                    return
                for line in lines:
                    try:
                        self._take(node, world, unread, line)
                    except Gap as gap:
                        log.debug("rebuilding_world", node=node, reason=str(gap))
                        self._forget(node, str(gap))
                        return
            finally:
                with self._changed:
                    del self._streams[node]
            if not self._closing.is_set():
                self._lost(node, self._why(node, lines.end()))

    def _lost(self, node: str, error: LvmigrateError) -> None:
        log.debug("lost_stream", node=node, error=str(error), detail=error.detail)
        with self._changed:
            self._first_error.setdefault(node, error)
        self._forget(node, str(error).rstrip("."))

    def _forget(self, node: str, reason: str) -> None:
        words = f"{node} is not watched: {reason}"
        with self._changed:
            before = self._unknown.get(node)
            self._unknown[node] = reason
            if before is not None:
                self._wake()
                return
            # Once for each time, however often its stream is started again for nothing.
            log.warning("node_unwatched", node=node, reason=reason)
            self._gap(words)
            self._since[node] = time.monotonic() - self._begin
            for number, name in enumerate(self._names):
                self._now.pop((node, name), None)
                self._doubts.pop((node, name), None)
                self._put(node, name, None, () if number else (words,))
            self._wake()

    def _take(self, node: str, world: World, unread: dict[str, float], line: str) -> None:
        """One line. ``unread``: the resources of which the dump said what was not understood, and when it did."""
        event = self._parsed(node, world, unread, line)
        if event is None:
            return
        if event.name in unread:
            # What was not understood may have passed; but the others are not watched while the dump is begun anew.
            if world.complete and time.monotonic() - unread[event.name] >= REREAD_S:
                raise Gap(f"{event.name} changed, of which something was not understood")
            return
        first = not world.complete
        world.apply(event)
        if not world.complete or event.kind in {Kind.PATH, Kind.HELPER}:
            return
        if event.only_counts:
            # Nine of ten lines during a resynchronisation.
            self._count(node, event.name, world.resource(event.name))
            return
        with self._changed:
            again = first and self._unknown.pop(node, _NOT_YET) != _NOT_YET
            if again and (lost_s := self._since.get(node)) is not None:
                away_s = round(time.monotonic() - self._begin - lost_s, 3)
                log.warning("node_watched_again", node=node, away_s=away_s)
            for name in self._names if first else (event.name,):
                if name in unread:
                    self._gap(f"what {node} says of {name} is not understood")
                    self._put(node, name, None, (f"what {node} says of {name} is not understood",))
                    continue
                sentences = self._see(node, name, world.resource(name), quiet=first)
                if again:
                    sentences, again = [f"{node} is watched again", *sentences], False
                self._put(node, name, self._now.get((node, name)), tuple(sentences))
            self._wake()

    def _count(self, node: str, name: str, new: Resource | None) -> None:
        """As `_see`, for what changes no state."""
        if new is None:
            return
        with self._changed:
            self._now[node, name] = new
            self._put(node, name, new, ())
            self._changes += 1
            self._changed.notify_all()

    def _parsed(self, node: str, world: World, unread: dict[str, float], line: str) -> Event | None:
        """One line as a value; ``None``: it is about none of these, or is not understood and costs the one it names."""
        called = self._called[node]
        try:
            event = events2.parse(line)
        except BadLine as error:
            log.warning("bad_events2_line", node=node, reason=str(error))
            named = NAME.search(line)
            name = None if named is None else called.get(named[1])
            if named is not None and name is None:
                return None
            if name is not None and (not world.complete or name in unread):
                # A dump begun anew would say the same.
                unread.setdefault(name, time.monotonic())
                return None
            raise Gap(f"something was not understood: {error}") from error
        if not event.name:
            return event
        name = called.get(event.name)
        return event if name == event.name else None if name is None else replace(event, name=name)

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
        return [] if quiet else list(changes(node, name, old, new, self._nodes))

    def _tell(self, feed: Feed, on_change: Callable[[str], None]) -> None:
        for item in feed:
            if isinstance(item, Change):
                sentences = item.sentences
            else:
                sentences = (f"{item.missed} changes were not told",) if item.missed else ()
            for sentence in sentences:
                try:
                    on_change(sentence)
                except Exception:
                    # The listener's defect must not end the watch.
                    log.exception("listener_failed", sentence=sentence)
            if sentences:
                with self._changed:
                    self._wake()

    def _subscribe(self, limit: int) -> Feed:
        feed = Feed(self._lock, lambda: dict(self._now), limit)
        with self._changed:
            self._feeds.append(feed)
        return feed

    # ---- with the lock held

    def _break(self, words: str) -> None:
        self._breaks.add(f"after {time.monotonic() - self._begin:.3f} s: {words}")

    def _gap(self, words: str) -> None:
        self._gaps.add(f"after {time.monotonic() - self._begin:.3f} s: {words}")

    def _put(self, node: str, name: str, resource: Resource | None, sentences: tuple[str, ...]) -> None:
        change = Change(node=node, name=name, resource=resource, sentences=sentences)
        for feed in self._feeds:
            feed.put(change)

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
