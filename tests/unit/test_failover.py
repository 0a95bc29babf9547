"""What a failover asks before it begins anything."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from lvmigrate import failover, hooks
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, Finding, Refused, UsageError
from lvmigrate.failover import FailoverInstance
from lvmigrate.journal import Journal, NoJournal
from lvmigrate.occasion import Occasion
from lvmigrate.target import Choice
from lvmigrate.tasklet import Context
from tests.unit.fakes import NODES, PATH, World, guest, unreachable


def codes(world: World, *, to: str | None = None, journal: Journal | None = None) -> list[Code]:
    context = world.context(**({"journal": journal} if journal else {}))
    with pytest.raises(Refused) as caught:
        FailoverInstance(context, "web1", target=to).check_prereq()
    assert "shut_down" not in {method for method, _ in world.calls}
    return [finding.code for finding in caught.value.findings]


def test_a_target_that_the_configuration_does_not_name() -> None:
    world = World()
    assert codes(world, to="node9") == [Code.NODE_UNKNOWN]
    assert world.calls == []


def test_so_is_one_where_the_source_does_not_answer() -> None:
    world = World(faults={("domain", "node1"): unreachable("node1")})
    assert codes(world, to="node9") == [Code.NODE_UNKNOWN]


def test_a_target_that_is_silent_is_not_taken_for_a_source_that_is_dead() -> None:
    """The guest was seen running: nobody is asked whether a node is off."""
    world = World(faults={("domain", "node2"): unreachable("node2")})
    assert codes(world) == [Code.NODE_UNREACHABLE]


def test_a_copy_that_waits_while_its_source_is_silent_is_told_of_with_the_way_out() -> None:
    world = World(
        domains={"node2": guest("node2", state=DomainState.PAUSED, reason="user")},
        faults={("domain", "node1"): unreachable("node1")},
    )
    assert codes(world) == [Code.NODE_UNREACHABLE, Code.INSTANCE_STATE]
    with pytest.raises(Refused) as caught:
        CleanupInstance(world.context(), "web1").check_prereq()
    told = caught.value.findings[-1]
    assert "waits paused on node2; only node1 could tell" in told.sentence
    assert "`virsh destroy web1` on node2, then `lvmigrate failover web1 --to node2 --is-off" in told.hint
    world.set("node2", state=DomainState.RUNNING)
    assert codes(world) == [Code.NODE_UNREACHABLE]


def test_what_cannot_be_written_down_is_not_begun() -> None:
    class Full(NoJournal):
        def trouble(self) -> Finding | None:
            return Finding(code=Code.JOURNAL_UNUSABLE, sentence="The disk is full.", hint="Make room.")

    assert codes(World(), journal=Full()) == [Code.JOURNAL_UNUSABLE]


@pytest.mark.parametrize(("why", "because"), [("", "it was asked for"), ("it has the most memory", "")])
def test_the_plan_says_why_it_is_this_target(monkeypatch: pytest.MonkeyPatch, why: str, because: str) -> None:
    monkeypatch.setattr(failover, "chosen", lambda *_: Choice(node="node2", why=why))
    plan = FailoverInstance(World().context(), "web1", because=because).check_prereq()
    assert plan.target_because == (why or because)


def test_what_was_not_checked_is_not_begun() -> None:
    world = World()
    with pytest.raises(UsageError):
        FailoverInstance(world.context(), "web1").exec()
    assert world.calls == []


@pytest.mark.parametrize("dead", [False, True])
def test_hooks_are_told_how_large_the_disks_are(monkeypatch: pytest.MonkeyPatch, *, dead: bool) -> None:
    told: list[dict[str, int]] = []

    def note(_context: Context, occasion: Occasion) -> tuple[Finding, ...]:
        told.append(dict(occasion.sizes_mib))
        return ()

    monkeypatch.setattr(hooks, "objections", note)
    world = World(domains={"node1": guest("node1"), "node2": guest("node2", state=DomainState.OFF)})
    world.sizes = dict.fromkeys(NODES, 2048)
    if dead:
        world.faults = {
            (method, "node1"): unreachable("node1") for method in ("domain", "domains", "traces", "observe")
        }
    with contextlib.suppress(Refused):
        FailoverInstance(world.context(), "web1").check_prereq()
    assert told == [{PATH: 2}]


def test_a_node_out_of_use_that_answers_is_asked_like_any_other() -> None:
    world = World()
    context = world.context()
    out = dataclasses.replace(context.nodes["node1"], offline="until Friday")
    context = dataclasses.replace(context, nodes={**context.nodes, "node1": out})
    plan = FailoverInstance(context, "web1").check_prereq()
    assert (plan.source, plan.target) == ("node1", "node2")
    world.domains["node2"] = guest("node2")
    with pytest.raises(Refused) as caught:
        FailoverInstance(context, "web1").check_prereq()
    assert caught.value.code is Code.INSTANCE_TWICE
