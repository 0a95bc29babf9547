"""What is seen of a fleet: who is there and can go where; looking grows with the fleet, not with its square."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from lvmigrate import balloon, fleet
from lvmigrate.domain import DomainDisk
from lvmigrate.errors import Code
from lvmigrate.fleet import Fleet
from lvmigrate.together import in_turn
from lvmigrate.token import Errand, Held
from lvmigrate.traffic import Limits, plan
from tests.fleet import Landscape

Change = Callable[[Landscape], None]


@pytest.fixture(autouse=True)
def one_after_the_other() -> Iterator[None]:
    token = in_turn.set(True)
    yield
    in_turn.reset(token)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many steps the interpreter takes inside: unlike seconds, the same each time."""
    steps = [0]

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps[0] += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


def looked(landscape: Landscape, **changes: Any) -> Fleet:
    context = landscape.context
    nodes = {name: replace(node, **changes) if name.startswith("new") else node for name, node in context.nodes.items()}
    return fleet.observe(replace(context, nodes=nodes), landscape.question)


def test_everybody_is_seen_as_it_is() -> None:
    landscape = Landscape.of(20, 200, seed=3)
    seen = looked(landscape)
    assert {each.uuid: each for each in seen.travellers} == {
        uuid: replace(
            each,
            peers=tuple(sorted(each.peers)),
            memory_kib=each.memory_kib + balloon.overhead_kib(seen.domains[uuid]),
        )
        for uuid, each in landscape.travellers.items()
    }
    assert {room.node: room.free_kib for room in seen.rooms} == {n: r.free_kib for n, r in landscape.rooms.items()}
    assert (seen.stays, seen.unfinished, seen.arrivals, seen.silent) == ((), (), (), {})


def test_a_sentence_does_not_name_every_node_there_is() -> None:
    seen = looked(Landscape.of(40, 40, seed=3), drained="new disks")
    assert {stay.finding.code for stay in seen.stays} == {Code.NODE_DRAINED}
    assert seen.stays[0].finding.sentence.endswith("new0007 is drained (new disks); and 12 more.")


def test_disks_that_are_reached_beside_drbd_lead_where_they_are_reached() -> None:
    landscape = Landscape.of(8, 8, seed=3)
    image = DomainDisk(target="vda", source="/srv/web.img", kind="file", device="disk", read_only=False)
    on = {
        "guest000000": (image,),
        "guest000001": (replace(image, source="pool/web", kind="network", network=True),),
        "guest000002": (replace(image, source="/srv/other.img"),),
    }
    landscape.reached = {"/srv/web.img": frozenset({"new0001", "new0003"})}
    for node, domains in landscape.domains_.items():
        landscape.domains_[node] = [replace(each, disks=on.get(each.name, each.disks)) for each in domains]
    seen = looked(landscape)
    peers = {each.name: each.peers for each in seen.travellers}
    assert peers["guest000000"] == ("new0001", "new0003")
    assert peers["guest000001"] == ("new0000", "new0001", "new0002", "new0003")
    assert [(stay.name, stay.finding.code) for stay in seen.stays] == [("guest000002", Code.REPLICA_MISSING)]
    assert "new0003 has no copy of vda)." in seen.stays[0].finding.sentence


def nobody_has_them(landscape: Landscape) -> None:
    for node in landscape.rooms:
        if node.startswith("new"):
            landscape.resources[node] = {}


def all_are_moving(landscape: Landscape) -> None:
    """By others: to nodes and from nodes that this drain is not about."""
    for guest in landscape.travellers.values():
        errand = Errand(source="new0000", target=guest.peers[0], ran=True, autostart=True, target_had_definition=False)
        landscape.tokens.setdefault(guest.peers[0], []).append(
            Held(
                node=guest.peers[0], uuid=guest.uuid, instance=guest.name, id="t", holder="h", left_s=9.0, errand=errand
            )
        )


def nothing(_landscape: Landscape) -> None:
    return


@pytest.mark.parametrize(
    ("change", "closed"),
    [(nothing, None), (nothing, "new disks"), (nobody_has_them, None), (all_are_moving, None)],
    ids=["as it is", "all closed", "no copies", "all moving"],
)
def test_the_look_at_a_fleet_of_twice_the_size_takes_twice_as_much(change: Change, closed: str | None) -> None:
    took, asked, calls = [], [], []
    for share in (1, 2):
        landscape = Landscape.of(20 * share, 300 * share, seed=5)
        change(landscape)
        with counted() as steps:
            seen = looked(landscape, drained=closed)
            drawn = plan(seen.left(), seen.travellers, Limits(at_once=80 * share))
        assert len(drawn.legs) + len(drawn.stays) + len(seen.stays) == 300 * share
        took.append(steps[0])
        asked.append(landscape.paths)
        calls.append(sum(landscape.calls.values()))
    assert took[1] < 2.4 * took[0]
    assert asked[1] <= 2.2 * asked[0]
    assert calls[1] <= 2 * calls[0]
