"""Two guests that have nothing in common but the name are never taken for two copies of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, ExitCode, NodeUnreachable, Refused, UsageError
from lvmigrate.failover import FailoverInstance
from lvmigrate.migrate import MigrateInstance
from lvmigrate.survey import Sightings
from lvmigrate.survivor import Survivor
from lvmigrate.tasklet import Context
from lvmigrate.whereabouts import where
from tests.unit.fakes import UUID, World, guest, unreachable

OTHER = "99999999-0000-4000-8000-000000000009"
OFF = DomainState.OFF


def namesakes(here: DomainState = DomainState.RUNNING, there: DomainState = DomainState.RUNNING) -> World:
    return World(domains={"node1": guest("node1", state=here), "node2": guest("node2", state=there, uuid=OTHER)})


def looked(world: World) -> set[str]:
    return {method for method, _ in world.calls}


@pytest.mark.parametrize("make", [MigrateInstance, CleanupInstance, FailoverInstance])
@pytest.mark.parametrize("state", [DomainState.RUNNING, OFF])
def test_who_is_meant_must_be_said(make: Callable[[Context, str], Any], state: DomainState) -> None:
    world = namesakes(state, state)
    with pytest.raises(UsageError) as caught:
        make(world.context(), "web1").check_prereq()
    error = caught.value
    assert str(error) == f"There are 2 guests of the name web1: {UUID} on node1 and {OTHER} on node2."
    assert "UUID" in error.hint
    assert (error.code, error.exit_code) == (Code.USAGE, ExitCode.USAGE)
    assert looked(world) <= {"domain", "traces"}


def test_a_cleanup_of_the_one_that_is_meant_leaves_the_other_alone() -> None:
    world = namesakes()
    world.openers["node1"] = 1
    plan = CleanupInstance(world.context(), UUID).check_prereq()
    assert (plan.scene.home, plan.acts) == ("node1", ())
    assert sorted(world.running()) == ["node1", "node2"]


def test_a_cleanup_is_not_of_one_guest_and_the_definition_of_another() -> None:
    with pytest.raises(UsageError):
        CleanupInstance(namesakes(there=OFF).context(), "web1").check_prereq()


def test_only_the_one_that_runs_can_be_meant_by_a_move() -> None:
    world = namesakes(there=OFF)
    seen = Sightings(instance="web1", by_node=world.domains)
    assert list(where(seen)) == []
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1").check_prereq()
    assert Code.INSTANCE_ON_TARGET in {finding.code for finding in caught.value.findings}


def test_nor_is_one_started_for_another_whose_node_is_dead() -> None:
    survivor = Survivor(
        context=World().context(),
        instance="web1",
        target="node2",
        is_off="node1",
        ignore_consistency=False,
        definition=None,
    )
    with pytest.raises(NodeUnreachable) as silent:
        unreachable("node1")()
    defined = {"node2": guest("node2", state=OFF), "node3": guest("node3", state=OFF, uuid=OTHER)}
    with pytest.raises(UsageError, match=f"{UUID} on node2 and {OTHER} on node3"):
        survivor.found(Sightings(instance="web1", by_node={"node1": silent.value, **defined}))
