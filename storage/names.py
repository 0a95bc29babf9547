"""One name for each resource, whatever its nodes call it.

A resource's name is each node's own: it never travels between nodes, so two configurations may call one replica by two
names.  What makes two of them one is their connection: the address that is local at one end is the peer's at the
other, in what both kernels say.  A resource that has one name everywhere, which is the rule, goes by that name.  One
that has several goes by all of them with their nodes, such as ``node1:r0=node2:r9``: that is no name on any node, so
nothing that is said of it can be taken for another resource there, neither by a command nor by a person.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from lvmigrate.errors import LvmigrateError
from lvmigrate.own_names import joined
from lvmigrate.together import outcomes_of
from storage.show import Shown, ShownConnection

#: A resource as one node has it: the node, and its own name there.
End = tuple[str, str]

#: The local address and the peer's of a path -> the resource, and the node that it says is there (8.4: ``None``).
_Paths = Mapping[tuple[str, str], list[tuple[str, str | None]]]

#: What a node said so many seconds ago is taken for its word, and for how long one that gave no answer is not asked.
FRESH_S: Final = 2.0
SILENT_S: Final = 30.0


class Names:
    """What is known of names. Thread-safe.

    ``shown`` asks a node's kernel for all of its resources.  A pair that was seen stays known while a node gives no
    answer, or its connection is gone; only another pair with one of the two ends it.
    """

    def __init__(self, nodes: Collection[str], shown: Callable[[str], Sequence[Shown]]) -> None:
        self._nodes = frozenset(nodes)
        self._shown = shown
        self._guard = threading.Lock()
        #: By node: when it was heard last, and what it said; ``None``: it gave no answer.
        self._heard: dict[str, tuple[float, _Paths | None]] = {}
        #: By end and the node at the other end: the name there.
        self._pairs: dict[tuple[End, str], str] = {}
        #: What goes by another name than its own, and the way back. A name that was given out is never forgotten.
        self._one: dict[End, str] = {}
        self._own: dict[End, str] = {}

    def learn(self, node: str, here: Sequence[Shown]) -> None:
        """Take what ``node`` says of its resources, and ask those at their other ends. Never raises."""
        now = time.monotonic()
        with self._guard:
            self._heard[node] = (now, _paths(here))
            ask = sorted(peer for peer in self._peers(node, here) if not self._is_fresh(peer, now))
        answers = outcomes_of([partial(self._shown, peer) for peer in ask])
        # Silence begins now: a node that hangs takes as long to be silent as its silence is remembered.
        silent_at = time.monotonic()
        with self._guard:
            for peer, answer in zip(ask, answers, strict=True):
                if not isinstance(answer, LvmigrateError):
                    self._heard[peer] = (now, _paths(answer))
                elif self._heard.get(peer, (now, None))[0] <= now:  # else it has spoken for itself meanwhile
                    self._heard[peer] = (silent_at, None)
            for shown in here:
                for connection in shown.connections:
                    self._pair(node, shown.name, connection)
            for shown in here:
                self._name((node, shown.name))

    def one(self, node: str, own: str) -> str:
        """The one name of what ``node`` calls ``own``."""
        with self._guard:
            return self._one.get((node, own), own)

    def own(self, node: str, one: str) -> str:
        """What ``node`` calls the resource of that one name."""
        with self._guard:
            return self._own.get((node, one), one)

    def owns(self, node: str, ones: Collection[str]) -> dict[str, str]:
        """What ``node`` calls these, each with the name that was asked for."""
        return {self.own(node, one): one for one in ones}

    def peer(self, node: str, own: str) -> str | None:
        """Which node is at the other end of the only connection of what ``node`` calls ``own``, if that is known."""
        with self._guard:
            found = [there for end, there in self._pairs if end == (node, own)]
        return found[0] if len(found) == 1 else None

    # ---- with the lock held

    def _peers(self, node: str, here: Sequence[Shown]) -> set[str]:
        """Who may be at the other ends: DRBD 8.4 does not say."""
        named = {connection.peer for shown in here for connection in shown.connections}
        return {other for other in self._nodes if other != node and (other in named or None in named)}

    def _is_fresh(self, node: str, now: float) -> bool:
        at, said = self._heard.get(node, (-SILENT_S, None))
        return now - at < (SILENT_S if said is None else FRESH_S)

    def _pair(self, node: str, own: str, connection: ShownConnection) -> None:
        """Note who is at the other end, if exactly one says that it is."""
        found = set(self._others(node, connection))
        if len(found) != 1:
            return
        (other,) = found
        if connection.peer is None:
            # 8.4 has one connection: to another node it leads no more.
            for stale in [key for key in self._pairs if key[0] == (node, own) and key[1] != other[0]]:
                del self._pairs[stale]
        for (here, name), (there, called) in (((node, own), other), (other, (node, own))):
            before = self._pairs.get(((here, name), there))
            if before not in (None, called):
                self._pairs.pop(((there, before), here), None)
            self._pairs[(here, name), there] = called

    def _others(self, node: str, connection: ShownConnection) -> Iterator[End]:
        for peer in self._nodes - {node} if connection.peer is None else self._nodes & {connection.peer}:
            paths = self._heard.get(peer, (0.0, None))[1] or {}
            for local, remote in connection.paths:
                for name, towards in paths.get((remote, local), ()):
                    if towards in (None, node):
                        yield peer, name

    def _name(self, end: End) -> None:
        """Give everything that is this resource one name."""
        ends = sorted(self._same(end))
        if len({own for _, own in ends}) == 1:
            for there in ends:
                self._one.pop(there, None)
            return
        given = [self._one[there] for there in ends if there in self._one]
        one = given[0] if given and set(given) == {given[0]} and self._fits(given[0], ends) else joined(ends)
        for node, own in ends:
            self._one[node, own] = one
            self._own[node, one] = own

    def _same(self, end: End) -> set[End]:
        found, left = {end}, [end]
        while left:
            here = left.pop()
            for node in self._nodes:
                own = self._pairs.get((here, node))
                if own is not None and (node, own) not in found:
                    found.add((node, own))
                    left.append((node, own))
        return found

    def _fits(self, one: str, ends: Sequence[End]) -> bool:
        """Whether a name that was given before means nothing else on any of these nodes."""
        return all(self._own.get((node, one), own) == own for node, own in ends)


def _paths(here: Sequence[Shown]) -> _Paths:
    found: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for shown in here:
        for connection in shown.connections:
            for path in connection.paths:
                found.setdefault(path, []).append((shown.name, connection.peer))
    return found
