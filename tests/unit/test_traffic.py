"""Plans of many moves: what they promise is checked by a validator that shares nothing with the planner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmigrate.assignment import Room, Ticket, Traveller, assign
from lvmigrate.errors import Code
from lvmigrate.traffic import Departure, Leg, Limits, Schedule, Traffic, memory_share_mib_s, plan
from tests.fleet import fleet

GIB = 1 << 20  # in KiB


# ---- the validator: from the rules alone


def wrong(rooms: Sequence[Room], travellers: Sequence[Traveller], limits: Limits, made: Schedule) -> Iterator[str]:
    """Every rule that the schedule breaks, in words."""
    guests = {guest.uuid: guest for guest in travellers}
    named = [leg.departure.uuid for leg in made.legs] + [stay.uuid for stay in made.stays]
    if sorted(named) != sorted(guests):
        yield f"somebody is forgotten or named twice: {sorted(named)} for {sorted(guests)}"
    for leg in made.legs:
        guest, gone = guests[leg.departure.uuid], leg.departure
        if gone.target not in guest.peers + guest.last_resort:
            yield f"{guest.name} goes to {gone.target}, which has no copy"
        if gone.source != guest.source or gone.memory_kib != guest.memory_kib:
            yield f"{guest.name} is another one in the schedule"
        if leg.begin_s < 0 or leg.departure.seconds <= 0:
            yield f"{guest.name} moves in no time"
    yield from wrong_moments(rooms, limits, made.legs)
    end_s = max((leg.end_s for leg in made.legs), default=0.0)
    if abs(made.seconds - end_s) > 1e-6:
        yield f"the last arrives at {end_s}, and the whole is said to take {made.seconds}"
    free = {room.node: room.free_kib for room in rooms}
    for leg in made.legs:
        free[leg.departure.source] += leg.departure.memory_kib
        free[leg.departure.target] -= leg.departure.memory_kib
    for stay in made.stays:
        guest = guests[stay.uuid]
        fits = [peer for peer in guest.peers + guest.last_resort if free.get(peer, -1) >= guest.memory_kib]
        if fits:
            yield f"{guest.name} stays, and {fits} has room in the end"


def wrong_moments(  # noqa: C901 -- one rule after the other
    rooms: Sequence[Room], limits: Limits, legs: Iterable[Leg]
) -> Iterator[str]:
    """What does not hold at some moment."""
    # An end counts before a beginning at the same moment: it made the room.
    events = sorted(
        [(leg.begin_s, 1, leg.departure) for leg in legs] + [(leg.end_s, 0, leg.departure) for leg in legs],
        key=lambda event: event[:2],
    )
    free = {room.node: room.free_kib for room in rooms}
    leaving: dict[Any, int] = defaultdict(int)
    coming: dict[Any, int] = defaultdict(int)
    between: dict[Any, int] = defaultdict(int)
    rate: dict[Any, int] = defaultdict(int)
    most = {room.node: carried(room, limits) for room in rooms}
    for place, (at_s, begins, gone) in enumerate(events):
        step = 1 if begins else -1
        if begins:
            free[gone.target] -= gone.memory_kib
            if gone.bandwidth_mib_s < 1:
                yield f"{gone.name} is sent with nothing"
        else:
            free[gone.source] += gone.memory_kib
        leaving[gone.source] += step
        coming[gone.target] += step
        between[frozenset({gone.source, gone.target})] += step
        for node in (gone.source, gone.target):
            rate[node] += step * gone.bandwidth_mib_s
            if rate[node] > most[node]:
                yield f"at {at_s} the copies of {node} use {rate[node]} MiB/s of {most[node]}"
        if free[gone.target] < 0:
            yield f"at {at_s} {gone.target} is overfilled by {-free[gone.target]} KiB"
        for counts, limit, what in (
            (leaving, limits.per_source, "leave"),
            (coming, limits.per_target, "come to"),
            (between, limits.per_link, "are between"),
        ):
            if any(count > limit for count in counts.values()):
                yield f"at {at_s} more than {limit} {what} one node"
        under_way = sum(leaving.values())
        if under_way > limits.at_once:
            yield f"at {at_s} {under_way} are under way"
        later = [event for event in events[place + 1 :] if event[1]]
        if not under_way and later and later[0][0] > at_s:
            yield f"from {at_s} to {later[0][0]} nobody moves"


def carried(room: Room, limits: Limits) -> Fraction:
    """What memory may use of a node's link: three quarters of the budget, half of it during a resync; at least 1."""
    budget = Fraction(limits.budget_mib_s or 0)
    if not budget:
        budget = Fraction(100) if room.link_mib_s is None else Fraction(room.link_mib_s) * 8 / 10
    return max(Fraction(1), budget * (Fraction(1, 2) if room.resyncs else Fraction(3, 4)))


# ---- any fleet


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Room], list[Traveller], Limits]:
    """A few nodes, any of which guests may leave and come to; often with little room."""
    nodes = [f"n{number}" for number in range(draw(st.integers(2, 5)))]
    rooms = [
        Room(
            node=node,
            free_kib=draw(st.integers(0, 12)) * GIB,
            link_mib_s=draw(st.sampled_from([None, 3, 20, 110, 1100])),
            resyncs=draw(st.booleans()),
            vcpus=draw(st.integers(0, 9)),
            cpus=draw(st.sampled_from([0, 8])),
        )
        for node in nodes
    ]
    travellers = []
    for number in range(draw(st.integers(0, 12))):
        source = draw(st.sampled_from(nodes))
        others = draw(st.permutations([node for node in nodes if node != source]))
        first, last = draw(st.integers(0, 2)), draw(st.integers(0, 1))
        travellers.append(
            Traveller(
                uuid=f"u{number}",
                name=f"g{number}",
                source=source,
                memory_kib=draw(st.integers(1, 6)) * GIB,
                resident_kib=draw(st.integers(1, 6)) * GIB,
                peers=tuple(others[:first]),
                last_resort=tuple(others[first : first + last]),
                vcpus=draw(st.integers(0, 4)),
                dirty_rate=draw(st.sampled_from([0, 1 << 20, 1 << 24, 1 << 30])),
            )
        )
    limits = Limits(
        per_source=draw(st.integers(1, 3)),
        per_target=draw(st.integers(1, 3)),
        per_link=draw(st.integers(1, 3)),
        at_once=draw(st.integers(1, 6)),
        budget_mib_s=draw(st.sampled_from([None, 1, 30, 1000])),
    )
    return rooms, travellers, limits


@settings(deadline=None, max_examples=400)
@given(fleets())
def test_a_plan_keeps_every_rule(drawn: tuple[list[Room], list[Traveller], Limits]) -> None:
    rooms, travellers, limits = drawn
    made = plan(rooms, travellers, limits)
    assert list(wrong(rooms, travellers, limits, made)) == []
    assert all(stay.finding.code is Code.MEMORY_SHORT for stay in made.stays)
    assert plan(rooms, travellers, limits) == made


def test_a_plan_of_a_large_fleet_keeps_every_rule() -> None:
    rooms, travellers = fleet(60, 900, seed=7)
    for limits in (Limits(), Limits(at_once=200), Limits(per_source=5, per_target=1, at_once=50, budget_mib_s=300)):
        made = plan(rooms, travellers, limits)
        assert list(wrong(rooms, travellers, limits, made)) == []
        assert len(made.legs) > 800


def a_leg(**changes: Any) -> Leg:
    facts: dict[str, Any] = {
        "uuid": "u0", "name": "g0", "source": "a", "target": "b", "memory_kib": GIB, "bandwidth_mib_s": 75,
        "seconds": 10.0,
    }  # fmt: skip
    begin_s = changes.pop("begin_s", 0.0)
    return Leg(departure=Departure(**facts | changes), begin_s=begin_s)


@pytest.mark.parametrize(
    ("legs", "says"),
    [
        ([], "forgotten"),
        ([a_leg(), a_leg(begin_s=20.0)], "named twice"),
        ([a_leg(target="c")], "no copy"),
        ([a_leg(uuid="u0"), a_leg(uuid="u1", name="g1", begin_s=1.0)], "overfilled"),
        ([a_leg(uuid="u0"), a_leg(uuid="u1", name="g1", begin_s=1.0)], "more than 1 leave"),
        ([a_leg(bandwidth_mib_s=76)], "76 MiB/s of 75"),
        ([a_leg(uuid="u0"), a_leg(uuid="u1", name="g1", begin_s=11.0)], "nobody moves"),
        ([a_leg(memory_kib=1)], "another one"),
    ],
)
def test_the_validator_finds_what_is_wrong(legs: list[Leg], says: str) -> None:
    rooms = [room("a", 0), room("b", 1), room("c", 4)]
    guests = [
        traveller(number, peers=("b",), gib=1)
        for number in range(2 if any(leg.departure.uuid == "u1" for leg in legs) else 1)
    ]
    made = Schedule(legs=tuple(legs), stays=(), seconds=max((leg.end_s for leg in legs), default=0.0))
    assert says in "; ".join(wrong(rooms, guests, Limits(per_source=1), made))


# ---- what an operator expects


def room(node: str, gib: float, **changes: Any) -> Room:
    return Room(node=node, free_kib=int(gib * GIB), **changes)


def traveller(number: int, *, peers: tuple[str, ...], gib: int = 1, source: str = "a", **changes: Any) -> Traveller:
    facts: dict[str, Any] = {"uuid": f"u{number}", "name": f"g{number}", "source": source, "peers": peers}
    return Traveller(**facts | {"memory_kib": gib * GIB, "resident_kib": gib * GIB} | changes)


def targets(rooms: list[Room], travellers: list[Traveller]) -> dict[str, str]:
    return {ticket.traveller.name: ticket.target for ticket in assign(rooms, travellers)[0]}


def test_the_largest_goes_first_for_it_frees_the_most_memory_per_second() -> None:
    guests = [traveller(0, peers=("b",), gib=1), traveller(1, peers=("b",), gib=8), traveller(2, peers=("b",), gib=4)]
    made = plan([room("a", 0), room("b", 64)], guests, Limits(at_once=1))
    assert [leg.departure.name for leg in made.legs] == ["g1", "g2", "g0"]


def test_what_takes_long_for_what_it_frees_goes_last() -> None:
    busy = traveller(0, peers=("b",), gib=8, dirty_rate=1 << 32)
    made = plan([room("a", 0), room("b", 64)], [busy, traveller(1, peers=("b",), gib=4)], Limits(at_once=1))
    assert [(leg.departure.name, leg.departure.converges) for leg in made.legs] == [("g1", True), ("g0", False)]


def test_most_free_memory_then_least_load() -> None:
    rooms = [room("a", 0), room("b", 10, vcpus=16, cpus=8), room("c", 9.5, vcpus=2, cpus=8), room("d", 3)]
    assert targets(rooms, [traveller(0, peers=("b", "c", "d"))]) == {"g0": "c"}
    assert targets(rooms, [traveller(0, peers=("b", "d"))]) == {"g0": "b"}


def test_a_copy_that_is_not_in_step_is_the_last_resort() -> None:
    rooms = [room("a", 0), room("b", 2), room("c", 9)]
    assert targets(rooms, [traveller(0, peers=("b",), last_resort=("c",))]) == {"g0": "b"}
    assert targets(rooms, [traveller(0, peers=("b",), last_resort=("c",), gib=3)]) == {"g0": "c"}


def test_who_has_no_choice_is_not_left_over() -> None:
    rooms = [room("a", 0), room("b", 4), room("c", 3)]
    guests = [traveller(0, peers=("b", "c"), gib=3), traveller(1, peers=("b",), gib=4)]
    assert targets(rooms, guests) == {"g0": "c", "g1": "b"}


def test_one_is_sent_on_so_that_another_finds_room() -> None:
    # g0 and g1 take the two nodes that are free; g2 fits only where one of them is.
    rooms = [room("a", 0), room("b", 4), room("c", 4), room("d", 2)]
    guests = [
        traveller(0, peers=("b", "d"), gib=2),
        traveller(1, peers=("c", "d"), gib=3),
        traveller(2, peers=("b", "c"), gib=4),
    ]
    tickets, stays = assign(rooms, guests)
    assert {ticket.traveller.name: ticket.target for ticket in tickets}["g2"] == "b"
    assert stays == []


def test_two_nodes_that_change_places() -> None:
    rooms = [room("a", 2), room("b", 0)]
    guests = [traveller(0, peers=("b",), gib=2), traveller(1, source="b", peers=("a",), gib=2)]
    made = plan(rooms, guests, Limits())
    assert [(leg.departure.name, leg.begin_s > 0) for leg in made.legs] == [("g1", False), ("g0", True)]


def test_who_fits_nowhere_is_named_with_what_is_free() -> None:
    made = plan([room("a", 0), room("b", 2)], [traveller(0, peers=("b",), gib=3)], Limits())
    assert made.legs == ()
    assert made.stays[0].finding.code is Code.MEMORY_SHORT
    assert "b 2048" in made.stays[0].finding.sentence


@pytest.mark.parametrize(
    ("changes", "budget", "share"),
    [
        ({}, None, 75),
        ({"link_mib_s": 1000}, None, 600),
        ({"link_mib_s": 1000, "resyncs": True}, None, 400),
        ({"link_mib_s": 1000}, 200, 150),
        ({}, 1, 1),
    ],
)
def test_drbd_keeps_its_part_of_the_link(changes: Any, budget: int | None, share: int) -> None:
    assert memory_share_mib_s(room("a", 1, **changes), Limits(budget_mib_s=budget)) == share


def test_who_goes_alone_has_all_of_it() -> None:
    rooms = [room("a", 0), room("b", 64)]
    guests = [traveller(number, peers=("b",)) for number in range(3)]
    made = plan(rooms, guests, Limits(budget_mib_s=80))
    assert [leg.departure.bandwidth_mib_s for leg in made.legs] == [30, 30, 30]
    assert plan(rooms, guests[:1], Limits(budget_mib_s=80)).legs[0].departure.bandwidth_mib_s == 60


def test_one_that_did_not_arrive_gives_its_room_back() -> None:
    traffic = Traffic([room("a", 0), room("b", 2)], Limits(at_once=1))
    traffic.add(assign([room("a", 0), room("b", 2)], [traveller(0, peers=("b",), gib=2)])[0])
    assert [gone.name for gone in traffic.next()] == ["g0"]
    assert (traffic.free_kib["b"], list(traffic.under_way)) == (0, ["u0"])
    assert traffic.ended("u0", arrived=False) == []
    assert (traffic.free_kib, dict(traffic.under_way)) == ({"a": 0, "b": 2 * GIB}, {})


def test_who_sets_out_soon_are_the_next_ones_and_none_without_a_promise() -> None:
    guests = [traveller(n, peers=("b",), gib=gib) for n, gib in enumerate((1, 8, 4, 2))]
    traffic = Traffic([room("a", 0), room("b", 13)], Limits(at_once=1))
    traffic.add(Ticket(traveller=guest, target="b", promised=guest.name != "g3") for guest in guests)
    assert [gone.name for gone in traffic.next()] == ["g1"]
    assert [[ticket.traveller.name for ticket in traffic.soon(most)] for most in (1, 9)] == [["g2"], ["g2", "g0"]]


def test_what_was_under_way_before_counts() -> None:
    rooms = [room("a", 0), room("b", 3)]
    traffic = Traffic(rooms, Limits(per_source=1))
    earlier = a_leg(uuid="u9", name="g9").departure
    traffic.occupy(earlier)
    traffic.add(assign([room("a", 0), room("b", 2)], [traveller(0, peers=("b",))])[0])
    assert traffic.next() == []
    assert [gone.name for gone in traffic.ended("u9", arrived=True)] == ["g0"]
