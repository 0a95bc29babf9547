"""What happens, told to everybody who follows: one log of events in memory, and streams of it that can be resumed.

An event is made into bytes once, however many follow.  A follower that was away takes up where it was, by the number
of the last event it has seen; one that was away for longer than the log reaches, or comes to another process, is told
how everything stands now, and goes on from there.  So nobody has to be waited for, and nothing grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from lvmigrate.service.wire import encode

#: How many events are kept for those that were away: some minutes of twenty moves.
_KEPT: Final = 10_000
#: And of so many bytes at most, the newest one apart: what somebody orders is repeated by each event of its job.
_KEPT_BYTES: Final = 16 * 1024 * 1024
#: A follower is told of so many at once at most, and of so many bytes, before others have their turn.
_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 1024 * 1024
#: How long a stream on which nothing happens goes on before it is looked whether it still may, in seconds.
_LOOK_S: Final = 15.0


class Event(NamedTuple):
    """One thing that happened."""

    number: int
    #: The id of the job that it is about.
    job: str
    kind: str
    #: As it goes over the line.
    frame: bytes
    #: Nothing more comes of this job.
    last: bool


class News(NamedTuple):
    """How something stands now, for those who cannot be told what has happened since they were here."""

    job: str
    kind: str
    value: object
    last: bool = False


class Hub:
    """The log. `publish` may be called from any thread; streams run in the loop that `run_in` was called in."""

    def __init__(self, *, kept: int = _KEPT, kept_bytes: int = _KEPT_BYTES) -> None:
        #: Numbers count within one process only.
        self._epoch: Final = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._log: deque[Event] = deque()
        self._kept = kept
        self._kept_bytes = kept_bytes
        #: How long all frames of the log are together.
        self._bytes = 0
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._followers: set[asyncio.Event] = set()
        self._waking = False
        self._closed = False

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    @property
    def position(self) -> str:
        """The id of the newest event: who follows from there misses nothing of what comes."""
        return f"{self._epoch}-{self._number}"

    def run_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop of the streams."""
        self._loop = loop

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._wake_soon()

    def look_again(self) -> None:
        """Have every stream see whether it may go on: it has changed who may follow."""
        self._wake_soon()

    def publish(self, job: str, kind: str, value: object, *, last: bool = False) -> None:
        """Something happened. Returns at once."""
        data = encode(value)
        with self._lock:
            self._number += 1
            frame = self._frame(self._number, kind, data)
            self._log.append(Event(self._number, job, kind, frame, last))
            self._bytes += len(frame)
            while len(self._log) > max(1, self._kept) or (self._bytes > self._kept_bytes and len(self._log) > 1):
                self._bytes -= len(self._log.popleft().frame)
        self._wake_soon()

    async def stream(  # noqa: C901, PLR0912 -- one loop, as it happens
        self,
        last_id: str | None,
        stands: Callable[[], Iterable[News]],
        *,
        job: str | None = None,
        may: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[bytes]:
        """Everything that happens to ``job`` (or to all), from ``last_id`` on, one or more at a time; ends with it.

        ``stands`` tells how everything stands; it is called in a thread.  Once ``may`` is false the stream ends, and
        nothing more is told: it is asked before each piece, after `look_again`, and now and then.
        """
        woken = asyncio.Event()
        self._followers.add(woken)
        try:
            cursor = self._cursor(last_id)
            if cursor is not None and job is not None and self._nothing_to_come(job, cursor):
                ends = [news.last for news in await asyncio.to_thread(lambda: list(stands()))]
                if any(ends) and self._nothing_to_come(job, cursor):
                    return  # it has seen the end
            ended = False
            while not self._closed and may():
                woken.clear()
                seen = None if cursor is None else self._after(cursor)
                if seen is None:
                    cursor, over = self._number, False
                    for news in await asyncio.to_thread(lambda: list(stands())):
                        over = over or (news.last and job is not None)
                        if not may():
                            return
                        yield self._frame(cursor, news.kind, encode(news.value))
                    if over:
                        return
                    continue
                frames: list[bytes] = []
                for event in seen:
                    cursor = event.number
                    if job in (None, event.job):
                        frames.append(event.frame)
                        if event.last and job is not None:
                            ended = True
                            break
                if frames:  # in one piece: who is behind costs no more than who is not, and catches up
                    yield b"".join(frames)
                if ended:
                    return
                if not seen:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await woken.wait()
        finally:
            self._followers.discard(woken)

    # ---- how

    def _frame(self, number: int, kind: str, data: bytes) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._epoch.encode(), number, kind.encode(), data)

    def _cursor(self, last_id: str | None) -> int | None:
        """Where a follower takes up; ``None``: it has to be told how everything stands."""
        epoch, _, number = (last_id or "").rpartition("-")
        if epoch != self._epoch or not (number.isascii() and number.isdigit()) or len(number) > 18:  # noqa: PLR2004
            return None
        return int(number) if int(number) <= self._number else None

    def _after(self, cursor: int, *, most: int | None = _AT_ONCE) -> Sequence[Event] | None:
        """The next events; ``None``: some of them are not kept any more."""
        with self._lock:
            if cursor >= self._number:
                return ()
            if self._log[0].number > cursor + 1:
                return None
            found: list[Event] = []
            for event in reversed(self._log):
                if event.number <= cursor:
                    break
                found.append(event)
        found.reverse()
        if most is None:
            return found
        long = itertools.accumulate(len(event.frame) for event in found)
        fits = sum(1 for _ in itertools.takewhile(lambda length: length <= _BYTES_AT_ONCE, long))
        return found[: max(1, min(most, fits))]

    def _nothing_to_come(self, job: str, cursor: int) -> bool:
        """Whether no event of the job came after this one; false when that cannot be told any more."""
        seen = self._after(cursor, most=None)
        return seen is not None and not any(event.job == job for event in seen)

    def _wake_soon(self) -> None:
        loop = self._loop
        with self._lock:
            if self._waking or loop is None or loop.is_closed():
                return
            self._waking = True
        try:
            loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop has ended meanwhile, and every stream with it
            self._waking = False

    def _wake(self) -> None:
        with self._lock:
            self._waking = False
        for woken in self._followers:
            woken.set()
