"""What one subscriber of a watch is told: every change in order, or a mark where some are missing and all anew.

The one who reads the nodes' events never waits for a subscriber, and keeps no more than a stated number of changes for
it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate.replication import Resource

#: How many changes are kept for a subscriber that does not take them.
LIMIT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A resource on a node is another one than before. ``resource``: as it is now; ``None``: it is not known."""

    node: str
    name: str
    resource: Resource | None
    #: What differs, in sentences; none for what no sentence is made of, such as how much is out of sync.
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything as it is now: the first that a subscriber gets, and what it gets in place of what it was too slow for.

    The changes that follow build on this.
    """

    #: How many changes were not told; 0 for the first snapshot.
    missed: int
    #: By node and name; what is not there is not known.
    resources: Mapping[tuple[str, str], Resource]


class Feed:
    """The changes kept for one subscriber; made by `storage.watch.ReplicationWatch.subscribe`.

    ``lock`` is the one under which changes are put, so that a snapshot is of a moment between two of them.
    """

    def __init__(
        self, lock: threading.RLock, snapshot: Callable[[], Mapping[tuple[str, str], Resource]], limit: int
    ) -> None:
        self._ready = threading.Condition(lock)
        self._snapshot = snapshot
        self._limit = limit
        self._kept: deque[Change] = deque()
        #: Changes that were dropped and not yet said to be; ``None``: nothing is due.
        self._missed: int | None = 0
        self._closed = False

    def put(self, change: Change) -> None:
        """Keep it, or drop all that is kept and count. Never waits. The lock is held."""
        if len(self._kept) < self._limit and not self._missed:
            self._kept.append(change)
        else:
            self._missed = (self._missed or 0) + len(self._kept) + 1
            self._kept.clear()
        self._ready.notify()

    def close(self) -> None:
        """No more will come; what is kept can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def next(self, timeout_s: float | None = None) -> Change | Snapshot | None:
        """The next change, or a snapshot; ``None`` after ``timeout_s``, or when no more will come."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._ready:
            while True:
                if self._missed is not None:
                    missed, self._missed = self._missed, None
                    # What was put since is in it already.
                    self._kept.clear()
                    return Snapshot(missed=missed, resources=self._snapshot())
                if self._kept:
                    return self._kept.popleft()
                left = None if deadline is None else deadline - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return None
                self._ready.wait(left)

    def __iter__(self) -> Iterator[Change | Snapshot]:
        """Everything until no more will come."""
        while (item := self.next()) is not None:
            yield item
