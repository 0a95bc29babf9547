"""What holds for all guests of a node is asked once for a plan, also by checks that run side by side."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

import pytest

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.once import once
from lvmigrate.premises import Match, Premises, Wanted
from lvmigrate.together import outcomes_of, together
from tests.unit.fakes import World, unreachable

_MANY = 8
#: Long enough for all to ask meanwhile.
_SLOW_S = 0.3


def test_who_asks_the_same_meanwhile_waits_for_the_answer() -> None:
    world = World()
    world.faults["domains", "node1"] = partial(time.sleep, _SLOW_S)
    asked = once(world.context())
    answers = together([partial(asked.hypervisor.domains, "node1")] * _MANY)
    assert len(set(answers)) == 1
    assert world.calls == [("domains", "node1")]


def test_who_waits_hears_of_the_failure_and_who_comes_later_asks_again() -> None:
    world = World()

    def silent() -> None:
        time.sleep(_SLOW_S)
        unreachable("node1")()

    world.faults["host", "node1"] = silent
    asked = once(world.context())
    outcomes = outcomes_of([partial(asked.hypervisor.host, "node1")] * _MANY)
    assert all(isinstance(outcome, NodeUnreachable) for outcome in outcomes)
    assert world.calls == [("host", "node1")]
    world.faults.clear()
    assert asked.hypervisor.host("node1").node == "node1"


def test_a_peer_is_knocked_at_once_and_what_a_guest_has_is_looked_for_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    context = world.context()
    wanted: list[Wanted] = []

    def premises(node: str, asked: Wanted) -> Premises:
        wanted.append(asked)
        way = Match.NO if asked.knock else Match.UNKNOWN
        return Premises(node=node, peer=way, peer_words="no", memory=way, saved=asked.instance)

    monkeypatch.setattr(context.storage, "premises", premises)
    asked = once(context)
    for peer, name in (("node2", "web1"), ("node2", "web2"), ("node3", "web3")):
        found = asked.storage.premises("node1", Wanted(instance=name, peer=peer, knock=True, autostart=True))
        assert (found.saved, found.peer, found.peer_words, found.memory) == (name, Match.NO, "no", Match.NO)
    own = asked.storage.premises("node2", Wanted(instance="web1", peer="node1", knock=False, autostart=False))
    assert own.peer is Match.UNKNOWN
    assert Counter((each.peer, each.knock) for each in wanted) == {
        ("node2", True): 1, ("node3", True): 1, ("node2", False): 2, ("node3", False): 1, ("node1", False): 1,
    }  # fmt: skip


def test_what_is_asked_of_one_guest_is_asked_each_time() -> None:
    world = World()
    asked = once(world.context())
    for _ in range(2):
        with pytest.raises(LvmigrateError):
            world.faults["needs", "node1"] = unreachable("node1")
            asked.hypervisor.needs("node1", "u")
    assert world.calls.count(("needs", "node1")) == 2
