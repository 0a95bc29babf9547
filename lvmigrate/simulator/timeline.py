"""Time that passes only when somebody waits: events in their order, each at its own moment."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Act = Callable[[], None]


class Event:
    """Something that will happen, unless it is cancelled first."""

    __slots__ = ("_act", "at")

    def __init__(self, at: float, act: Act) -> None:
        self.at = at
        self._act: Act | None = act

    def cancel(self) -> None:
        """Have it not happen. Nothing if it has happened."""
        self._act = None

    @property
    def due(self) -> bool:
        """Whether it is still to happen."""
        return self._act is not None

    def happen(self) -> None:
        """Do it, once."""
        act, self._act = self._act, None
        if act is not None:
            act()


class Timeline:
    """Virtual seconds since the world began.

    Events of one moment happen in the order in which they were announced.  An event may let time pass itself (a
    renewal that hangs): what falls due meanwhile then happens within it, and time never goes back.
    """

    def __init__(self) -> None:
        #: Now, in seconds.
        self.now = 0.0
        #: Events that have happened: a measure of how much the world has done.
        self.happened = 0
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, act: Act) -> Event:
        """Have ``act`` done in so many seconds."""
        event = Event(self.now + max(0.0, seconds), act)
        heapq.heappush(self._events, (event.at, next(self._numbers), event))
        return event

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, and everything happen that falls due."""
        end = self.now + seconds if seconds > 0 else self.now
        while self._events and self._events[0][0] <= end:
            self.step(end)
        self.now = max(self.now, end)

    def step(self, end: float) -> bool:
        """Let the next event until ``end`` happen; false when there is none, and ``end`` is reached."""
        while self._events and self._events[0][0] <= end:
            at, _, event = heapq.heappop(self._events)
            if not event.due:
                continue
            self.now = max(self.now, at)
            self.happened += 1
            event.happen()
            return True
        self.now = max(self.now, end)
        return False
