"""What the nodes' guests and tokens tell of moves that somebody is at: who still needs memory, and where."""

from __future__ import annotations

import pytest

from lvmigrate import balloon
from lvmigrate.census import Census, Guests
from lvmigrate.domain import DomainState
from lvmigrate.token import Errand, Held, Traces
from tests.unit.fakes import UUID, guest

NODES = ("node1", "node2", "node3")
#: A guest of 1 MiB, and its QEMU.
NEEDED_KIB = 1024 + balloon.overhead_kib(guest("node1"))
RUNNING, PAUSED, OFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.OFF


def seen(states: dict[str, DomainState], left_s: float | None) -> Guests:
    """A guest of 1 MiB, and a move of it from the first node to the second whose token has so long to live."""
    errand = Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False)

    def tokens(node: str) -> tuple[Held, ...]:
        if left_s is None or node == "node3":
            return ()
        return (Held(node=node, uuid=UUID, instance="web1", id="t", holder="h", left_s=left_s, errand=errand),)

    return Guests(
        {
            node: Census(
                domains=(guest(node, state=states[node]),) if node in states else (),
                traces=Traces(node=node, tokens=tokens(node), guards=()),
                resources={},
            )
            for node in NODES
        }
    )


@pytest.mark.parametrize(
    ("states", "left_s", "there"),
    [
        ({"node1": RUNNING}, None, []),
        ({"node1": RUNNING}, 9.0, ["node2"]),
        ({"node1": RUNNING}, -9.0, []),
        ({"node1": RUNNING, "node2": PAUSED}, 9.0, ["node2"]),
        ({"node1": RUNNING, "node2": PAUSED}, -9.0, ["node2"]),
        ({"node1": RUNNING, "node2": PAUSED}, None, ["node1", "node2"]),
        ({"node1": PAUSED, "node2": RUNNING}, 9.0, ["node2"]),
        ({"node1": OFF, "node2": PAUSED}, 9.0, []),
        ({"node2": RUNNING}, 9.0, []),
        ({"node1": OFF, "node2": OFF}, 9.0, ["node2"]),
        ({"node1": OFF}, None, []),
        ({}, 9.0, []),
    ],
    ids=[
        *("nobody moves it", "announced", "never begun", "on its way", "left on its way", "by hand", "post-copy"),
        *("it waits there", "it runs there", "shut down and not yet started there", "off", "nobody knows it"),
    ],
)
def test_where_memory_is_still_to_come(states: dict[str, DomainState], left_s: float | None, there: list[str]) -> None:
    found = list(seen(states, left_s).arrivals())
    assert [(left.target, left.memory_kib) for left in found] == [(node, NEEDED_KIB) for node in there]


@pytest.mark.parametrize(
    ("states", "memory_kib"),
    [
        ({"node1": RUNNING}, NEEDED_KIB),
        ({"node1": RUNNING, "node2": PAUSED}, NEEDED_KIB),
        ({"node2": PAUSED}, 0),
        ({"node1": OFF}, NEEDED_KIB),
    ],
)
def test_what_a_move_that_was_left_may_still_need(states: dict[str, DomainState], memory_kib: int) -> None:
    guests = seen(states, -9.0)
    (left,) = guests.unfinished({"node1"}, ())
    assert (left.source, left.target, left.memory_kib) == ("node1", "node2", memory_kib)
    assert list(guests.unfinished({"node3"}, ())) == []
    assert list(guests.unfinished({"node1"}, {UUID})) == []
