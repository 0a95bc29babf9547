"""Many guests on the road: who goes where, who goes first, who has to wait, and with how much of the link. Pure.

The invariant: at no moment does a node hold more than it has memory for, a guest under way counting at both ends; no
limit is passed; and the memory copies that touch one node never use more of its link than `memory_share_mib_s` leaves
them.

Each guest has its node before it is let go (`lvmigrate.assignment`).  Those go first that free the most memory per
second (Smith's rule: of all orders it is the one in which memory is freed soonest), as far as the gates on their way
are open.  `plan` drives this by a clock of its own, and so forecasts the whole; a drain drives it by what really ends,
so both keep the same rules.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lvmigrate.assignment import Room, Stay, Ticket, Traveller, assign, short
from lvmigrate.forecast import forecast

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
#: What is known of no link: the slowest in use, 1 Gbit/s, less what its frames take.
_LINK_MIB_S: Final = 100
#: The part of a known link that is used at all: what else is on it (ssh, guests' own traffic) has the rest.
_USED: Final = 0.8
#: The part of the budget that is DRBD's: for replicating what guests write meanwhile, and once more for a resync.
_REPLICATION: Final = 0.25
_RESYNC: Final = 0.25
#: No copy is begun with less, where there is as much at all: two that crawl take longer than one after the other.
_LEAST_MIB_S: Final = 10
#: What a move takes beside the copy itself, in seconds: looking, opening, closing, looking again.
AROUND_S: Final = 5.0
#: A guest that dirties memory as fast as it is sent is taken for so many times the time of one pass.
_ENDLESS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may go on at once. A guest whose memory is on its target alone does not count any more."""

    #: Guests that leave one node, that come to one, and that go between the same two.
    per_source: int = 2
    per_target: int = 2
    per_link: int = 2
    #: In all.
    at_once: int = 4
    #: What memory copies, replication and resynchronisation together may use of one node's link, in MiB/s; ``None``:
    #: 80 % of the configured ``link_mib_s``, or 100.
    budget_mib_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A guest that sets out now, with so many MiB/s; ``seconds`` as forecast."""

    uuid: str
    name: str
    source: str
    target: str
    memory_kib: int
    bandwidth_mib_s: int
    seconds: float
    #: ``False``: by what it was measured to dirty, the copy does not come to its end without help.
    converges: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A departure in a schedule, in seconds from its beginning."""

    departure: Departure
    begin_s: float

    @property
    def end_s(self) -> float:
        """When it is over, as forecast."""
        return self.begin_s + self.departure.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The whole, as forecast."""

    #: In the order in which they begin.
    legs: tuple[Leg, ...]
    stays: tuple[Stay, ...]
    seconds: float


def memory_share_mib_s(room: Room, limits: Limits) -> int:
    """What all memory copies to and from a node may use of its link together, in MiB/s: the budget less DRBD's part."""
    budget = limits.budget_mib_s or (_LINK_MIB_S if room.link_mib_s is None else room.link_mib_s * _USED)
    return max(1, int(budget * (1.0 - _REPLICATION - (_RESYNC if room.resyncs else 0.0))))


@dataclass(slots=True, eq=False)
class _Gate:
    """So many at once; who waits here was turned away here."""

    left: int
    parked: list[tuple[float, str, str]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Node:
    """What counts at one node."""

    #: MiB/s that memory copies may still use, and all of them.
    rate_left: int
    rate: int
    #: Memory that is neither used nor promised.
    free_kib: int
    out: _Gate
    into: _Gate
    #: Copies waiting for the rate.
    slow: _Gate = field(default_factory=lambda: _Gate(left=0))
    #: Guests that have not begun and leave or come here.
    waiting: int = 0
    #: Tickets without a promise to here.
    roomless: list[str] = field(default_factory=list)

    @property
    def least(self) -> int:
        return min(_LEAST_MIB_S, self.rate)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A guest that has not set out: its way, and its place in every queue (most memory per second first)."""

    ticket: Ticket
    here: _Node
    there: _Node
    gates: tuple[_Gate, ...]
    place: tuple[float, str, str]


class Traffic:
    """Lets guests go within the limits; knows who is under way."""

    def __init__(self, rooms: Iterable[Room], limits: Limits) -> None:
        self._limits = limits
        self._rooms = tuple(rooms)
        self._nodes: dict[str, _Node] = {}
        for room in self._rooms:
            rate = memory_share_mib_s(room, limits)
            self._nodes[room.node] = _Node(
                rate_left=rate,
                rate=rate,
                free_kib=room.free_kib,
                out=_Gate(left=limits.per_source),
                into=_Gate(left=limits.per_target),
            )
        self._links: dict[tuple[str, str], _Gate] = {}
        self._all = _Gate(left=limits.at_once)
        #: By UUID, as `under_way`.
        self._waiting: dict[str, _Waiting] = {}
        self._under_way: dict[str, Departure] = {}

    @property
    def under_way(self) -> Mapping[str, Departure]:
        """By UUID: who has set out and has not arrived."""
        return self._under_way

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Who has not set out."""
        return tuple(waiting.ticket for waiting in self._waiting.values())

    def soon(self, most: int) -> list[Ticket]:
        """So many of those who set out next, as far as can be told: the gates on their way may let others go first."""
        waiting = (waiting for waiting in self._waiting.values() if waiting.ticket.promised)
        return [each.ticket for each in heapq.nsmallest(most, waiting, key=lambda each: each.place)]

    def share_mib_s(self, source: str, target: str) -> int:
        """What a move between two nodes gets where all that may go at once do."""
        here, there = self._nodes[source], self._nodes[target]
        return max(1, min(here.rate // self._limits.per_source, there.rate // self._limits.per_target))

    def occupy(self, departure: Departure) -> None:
        """Count a move that was under way before, whatever the limits say."""
        here, there = self._nodes.get(departure.source), self._nodes.get(departure.target)
        self._under_way[departure.uuid] = departure
        self._all.left -= 1
        self._link(departure.source, departure.target).left -= 1
        if here is not None:
            here.out.left -= 1
            here.rate_left -= departure.bandwidth_mib_s
        if there is not None:
            there.into.left -= 1
            there.rate_left -= departure.bandwidth_mib_s
            there.free_kib -= departure.memory_kib

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Let these wait for their turn."""
        for ticket in tickets:
            guest = ticket.traveller
            here, there = self._nodes[guest.source], self._nodes[ticket.target]
            link = self._link(guest.source, ticket.target)
            seconds, _ = _seconds(guest, self.share_mib_s(guest.source, ticket.target))
            waiting = _Waiting(
                ticket=ticket,
                here=here,
                there=there,
                gates=(self._all, here.out, there.into, link),
                place=(-guest.memory_kib / seconds, guest.name, guest.uuid),
            )
            self._waiting[guest.uuid] = waiting
            here.waiting += 1
            there.waiting += 1
            if ticket.promised:
                there.free_kib -= guest.memory_kib
                heapq.heappush(self._all.parked, waiting.place)
            else:
                there.roomless.append(guest.uuid)
        for node in self._nodes.values():
            self._room(node)

    def next(self, most: int | None = None) -> list[Departure]:
        """Everybody who may set out now, or so many of them; from now on they are under way."""
        for gate in self._gates():
            for place in gate.parked:
                heapq.heappush(self._all.parked, place)
            gate.parked.clear()
        return self._try(self._all, most)

    def ended(self, uuid: str, *, arrived: bool, more: bool = True) -> list[Departure]:
        """Somebody is not under way any more; who sets out for that, if there are to be ``more``."""
        gone = self._under_way.pop(uuid)
        here, there = self._nodes.get(gone.source), self._nodes.get(gone.target)
        link = self._link(gone.source, gone.target)
        self._all.left += 1
        link.left += 1
        gates = []
        for node, way in ((here, "out"), (there, "into")):
            if node is not None:
                gate = node.out if way == "out" else node.into
                gate.left += 1
                node.rate_left += gone.bandwidth_mib_s
                gates += [gate, node.slow]
        freed = here if arrived else there
        if freed is not None:
            freed.free_kib += gone.memory_kib
            self._room(freed)
        if not more:
            return []
        begun: list[Departure] = []
        for gate in (*gates, link, self._all):
            begun += self._try(gate)
        return begun if begun or self._under_way else self.next()

    @property
    def free_kib(self) -> Mapping[str, int]:
        """By node: memory that is neither used nor promised."""
        return {name: node.free_kib for name, node in self._nodes.items()}

    def again(self) -> tuple[list[Ticket], list[Stay]]:
        """Nodes anew for those who wait for room that nobody is going to make, once nobody is under way.

        They wait no more; to go on with those who have found one: `add`.
        """
        late = [waiting.ticket.traveller for waiting in self._waiting.values()]
        for uuid in list(self._waiting):
            self._give_up(uuid)
        return self.assigned(late)

    def assigned(self, guests: Iterable[Traveller]) -> tuple[list[Ticket], list[Stay]]:
        """As `assign`, with the memory that is free now."""
        return assign((replace(room, free_kib=self._nodes[room.node].free_kib) for room in self._rooms), guests)

    def _give_up(self, uuid: str) -> None:
        """Somebody who waits is not to go."""
        waiting = self._waiting.pop(uuid)
        waiting.here.waiting -= 1
        waiting.there.waiting -= 1
        if waiting.ticket.promised:
            waiting.there.free_kib += waiting.ticket.traveller.memory_kib
        else:
            waiting.there.roomless.remove(uuid)

    # ---- how

    def _try(self, gate: _Gate, most: int | None = None) -> list[Departure]:
        """Let those go who were turned away at this gate, as many as it lets through."""
        gone: list[Departure] = []
        tries = self._all.left if gate.left <= 0 else gate.left  # a rate has no count of its own
        while tries > 0 and gate.parked and (most is None or len(gone) < most):
            place = heapq.heappop(gate.parked)
            waiting = self._waiting.get(place[2])
            if waiting is None:
                continue  # it was given up
            closed = self._closed(waiting)
            if closed is None:
                gone.append(self._go(waiting))
                tries -= 1
                continue
            heapq.heappush(closed.parked, place)
            if closed is gate:
                break
            if closed is self._all:
                tries -= 1
        return gone

    @staticmethod
    def _closed(waiting: _Waiting) -> _Gate | None:
        """The first gate that is closed to it."""
        for gate in waiting.gates:
            if gate.left <= 0:
                return gate
        for node in (waiting.here, waiting.there):
            if node.rate_left < node.least:
                return node.slow
        return None

    def _go(self, waiting: _Waiting) -> Departure:
        ticket, here, there = waiting.ticket, waiting.here, waiting.there
        guest = ticket.traveller
        rate = min(self._rate(here, here.out), self._rate(there, there.into))
        del self._waiting[guest.uuid]
        here.waiting -= 1
        there.waiting -= 1
        seconds, converges = _seconds(guest, rate)
        departure = Departure(
            uuid=guest.uuid,
            name=guest.name,
            source=guest.source,
            target=ticket.target,
            memory_kib=guest.memory_kib,
            bandwidth_mib_s=rate,
            seconds=seconds,
            converges=converges,
        )
        there.free_kib += guest.memory_kib  # what was promised is used from now on
        self.occupy(departure)
        return departure

    def _rate(self, node: _Node, gate: _Gate) -> int:
        """A fair part of what is left, so that all who may go beside it get as much."""
        beside = max(1, min(self._all.left, gate.left, node.waiting))
        return min(node.rate_left, max(node.least, node.rate_left // beside))

    def _room(self, node: _Node) -> None:
        """Promise what has become free to those who wait for it: they wait at the gates from now on."""
        while node.roomless:
            guests = [self._waiting[uuid] for uuid in node.roomless]
            fits = [waiting for waiting in guests if waiting.ticket.traveller.memory_kib <= node.free_kib]
            if not fits:
                return
            first = min(fits, key=lambda waiting: waiting.place)
            guest = first.ticket.traveller
            node.roomless.remove(guest.uuid)
            node.free_kib -= guest.memory_kib
            first.ticket = Ticket(traveller=guest, target=first.ticket.target)
            heapq.heappush(self._all.parked, first.place)

    def _link(self, one: str, other: str) -> _Gate:
        key = (one, other) if one < other else (other, one)
        gate = self._links.get(key)
        if gate is None:
            gate = self._links[key] = _Gate(left=self._limits.per_link)
        return gate

    def _gates(self) -> Iterable[_Gate]:
        for node in self._nodes.values():
            yield from (node.out, node.into, node.slow)
        yield from self._links.values()


def _seconds(guest: Traveller, rate_mib_s: int) -> tuple[float, bool]:
    """How long a move takes at that rate, and whether its copy comes to an end by itself."""
    if not guest.dirty_rate:
        return AROUND_S + guest.resident_kib / (rate_mib_s * _KIB), True
    told = forecast(
        memory_bytes=guest.resident_kib * _KIB,
        dirty_rate=guest.dirty_rate,
        link_rate=rate_mib_s * _MIB,
        link_from="its part of the budget",
        downtime_limit_s=guest.downtime_limit_s,
    )
    if told.seconds is None:
        return AROUND_S + _ENDLESS * guest.resident_kib / (rate_mib_s * _KIB), False
    return AROUND_S + told.seconds, True


def plan(rooms: Sequence[Room], travellers: Iterable[Traveller], limits: Limits) -> Schedule:
    """Everything as it is expected to go."""
    guests = {guest.uuid: guest for guest in travellers}
    tickets, stays = assign(rooms, guests.values())
    traffic = Traffic(rooms, limits)
    traffic.add(tickets)
    now = 0.0
    legs: list[Leg] = []
    ends: list[tuple[float, str]] = []

    def begin(departures: list[Departure]) -> None:
        for departure in departures:
            legs.append(Leg(departure=departure, begin_s=now))
            heapq.heappush(ends, (now + departure.seconds, departure.uuid))

    while True:
        begin(traffic.next())
        while ends:
            now, uuid = heapq.heappop(ends)
            begin(traffic.ended(uuid, arrived=True))
        tickets, stuck = traffic.again()
        if not any(ticket.promised for ticket in tickets):
            # Others went elsewhere than was counted on, so somebody who was left over may have room by now.
            left = [guests[stay.uuid] for stay in stays] + [ticket.traveller for ticket in tickets]
            tickets, stays = traffic.assigned(left)
            if not any(ticket.promised for ticket in tickets):
                stays += [*stuck, *(short(ticket.traveller, traffic.free_kib) for ticket in tickets)]
                return Schedule(legs=tuple(legs), stays=tuple(stays), seconds=now)
        stays += stuck
        traffic.add(tickets)
