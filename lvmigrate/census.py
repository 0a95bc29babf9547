"""Who is on each node, and what moves have left or are at there: guest by guest, from one look at every node. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lvmigrate import balloon
from lvmigrate.assignment import Stay
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, Finding
from lvmigrate.node_states import Gone
from lvmigrate.replication import Resource
from lvmigrate.token import GuardSeen, Held, Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Who is on one node, what moves have left there, and all of its copies of disks."""

    domains: tuple[Domain, ...]
    traces: Traces
    resources: Mapping[str, Resource]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A move of a guest that somebody is at, or has left: only a cleanup tells which, and ends it."""

    uuid: str
    name: str
    source: str
    target: str
    #: What the target may still have to find for it, in KiB: all of it, until the guest is seen there alone.
    memory_kib: int


class Guests:
    """Every copy and every mark of each guest, on the nodes that answered."""

    def __init__(self, known: Mapping[str, Census]) -> None:
        self._copies: dict[str, list[Domain]] = {}
        self._marks: dict[str, list[Held | GuardSeen]] = {}
        for census in known.values():
            for domain in census.domains:
                self._copies.setdefault(domain.uuid, []).append(domain)
            here: tuple[Held | GuardSeen, ...] = (*census.traces.tokens, *census.traces.guards)
            for mark in here:
                self._marks.setdefault(mark.uuid, []).append(mark)

    @property
    def whereabouts(self) -> dict[str, str]:
        """By UUID: the node that a guest is active on."""
        return {uuid: each.node for uuid, copies in self._copies.items() for each in copies if each.state.active}

    def unfinished(self, about: Collection[str], leave_alone: Collection[str]) -> Iterator[Unfinished]:
        """Every guest with a token or a guard that has to do with the nodes in question."""
        for uuid, marks in sorted(self._marks.items()):
            if uuid in leave_alone:
                continue
            errand = next((mark.errand for mark in marks if isinstance(mark, Held) and mark.errand is not None), None)
            ends = {mark.node for mark in marks} if errand is None else {errand.source, errand.target}
            if ends.isdisjoint(about):
                continue
            source = errand.source if errand is not None else next(iter(self._active(uuid)), min(ends))
            target = errand.target if errand is not None else min(ends - {source}, default=source)
            yield self._left(uuid, marks[0].instance, source, target)

    def arrivals(self) -> Iterator[Unfinished]:
        """Every move, whoever is at it, that brings a node memory which may not be there yet.

        Seen by a living token that names the target, or by a guest that is active on several nodes: where no token
        tells which of them it goes to, it may be any.
        """
        busy = {uuid for uuid, copies in self._copies.items() if len(copies) > 1} | self._marks.keys()
        for uuid in sorted(busy):
            here = self._active(uuid)
            tokens = [mark for mark in self._marks.get(uuid, ()) if isinstance(mark, Held)]
            told = {token.errand.target for token in tokens if token.errand is not None}
            if len(here) > 1:
                to = told or set(here)
            elif any(token.alive for token in tokens):
                to = told
            else:
                continue
            name = tokens[0].instance if tokens else self._copies[uuid][0].name
            for target in sorted(to):
                left = self._left(uuid, name, next((node for node in here if node != target), target), target)
                if left.memory_kib:
                    yield left

    def missing(
        self, expected: Mapping[str, Gone], home: Collection[str], unasked: Mapping[str, tuple[Code, str]]
    ) -> Iterator[Stay]:
        """Guests that are expected at ``home`` and do not run elsewhere: off there, or where nobody was asked.

        One that is off at home, or that no node knows any more, is waited for no longer.

        ``unasked``: by node that has said nothing, the code and a clause that say why.
        """
        for uuid, gone in sorted(expected.items(), key=lambda item: item[1].name):
            copies = self._copies.get(uuid, [])
            if any(copy.state.active for copy in copies):
                continue
            # Where it was sent to, or, if that one answers and has nothing of it, anywhere else.
            where = [gone.target] if gone.target in unasked else [] if copies else list(unasked)
            off = [copy.node for copy in copies if copy.node not in home]
            if where:
                finding = _unanswered(gone, {node: unasked[node] for node in where})
            elif off:
                finding = _off(gone, off)
            else:
                continue
            yield Stay(uuid=uuid, name=gone.name, source=gone.target, finding=finding)

    def _active(self, uuid: str) -> list[str]:
        return [copy.node for copy in self._copies.get(uuid, ()) if copy.state.active]

    def _left(self, uuid: str, name: str, source: str, target: str) -> Unfinished:
        copies = self._copies.get(uuid, [])
        active = [copy for copy in copies if copy.state.active]
        # One that is shut down and started there is off in between.
        memory = max((balloon.needed_kib(copy) for copy in active or copies), default=0)
        arrived = bool(active) and all(copy.node == target for copy in active)
        return Unfinished(uuid=uuid, name=name, source=source, target=target, memory_kib=0 if arrived else memory)


def _unanswered(gone: Gone, where: Mapping[str, tuple[Code, str]]) -> Finding:
    words = " and ".join(f"{node} {why}" for node, (_, why) in where.items())
    codes = [code for code, _ in where.values()]
    return Finding(
        code=next((code for code in codes if code is not Code.NODE_OFFLINE), Code.NODE_OFFLINE),
        sentence=f"{gone.name} was sent to {gone.target}, and is on no node that answers; {words}.",
        hint=f"Once {' and '.join(where)} can be asked, the same again: {gone.name} is remembered until then.",
    )


def _off(gone: Gone, where: list[str]) -> Finding:
    there = " and ".join(where)
    return Finding(
        code=Code.INSTANCE_STOPPED,
        sentence=f"{gone.name} was sent to {gone.target}, and is off, defined on {there}: only what runs comes back.",
        hint=f"Start it there (`virsh start {gone.name}`), and the same again: {gone.name} is remembered until then.",
    )
