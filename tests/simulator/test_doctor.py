"""The doctor on simulated nodes: it finds what a move that died has left, and changes nothing while it looks."""

from __future__ import annotations

import pytest

from lvmigrate.doctor import Severity, diagnose
from lvmigrate.errors import Code, ExitCode
from lvmigrate.migrate import MigrateInstance
from lvmigrate.simulator import ControllerKilled, Kind, World, audit


def test_a_healthy_cluster_and_a_move_that_is_over() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        assert diagnose(world.controller("c1")).complaints == ()
        move = MigrateInstance(world.controller("c1"), "web1")
        move.check_prereq()
        move.exec()
        found = diagnose(world.controller("c1"))
        assert (found.complaints, found.exit_code) == ((), ExitCode.OK)
        assert world.running(guest) == ["node2"]


def test_it_only_looks() -> None:
    with World() as world:
        world.add_guest("web1", "node1")
        diagnose(world.controller("c1"))
        assert world.calls
        assert [str(call.place) for call in world.calls if call.acts] == []
        assert (world.violations, audit(world)) == ([], ())


@pytest.mark.parametrize("method", ["allow_two_primaries", "promote", "copy_memory", "demote"])
def test_what_a_killed_command_has_left_is_found_by_another_controller(method: str) -> None:
    with World() as world:
        world.add_guest("web1", "node1")
        world.faults.add(f"c1.{method}@node{1 if method in ('copy_memory', 'demote') else 2}#1", Kind.KILLED_AFTER)
        move = MigrateInstance(world.controller("c1"), "web1")
        move.check_prereq()
        with pytest.raises(ControllerKilled):
            move.exec()
        other = world.controller("c2")
        first = diagnose(other)
        # Its tokens live for a while: that is no complaint yet.
        assert [held.instance for held in first.under_way] == ["web1"]
        other.clock.sleep(300)
        found = diagnose(other)
        assert found.under_way == ()
        dangers = {one.finding.code for one in found.complaints if one.severity is Severity.DANGER}
        assert Code.LEFT_BEHIND in dangers
        assert found.exit_code is ExitCode.LEFT_BEHIND
        assert world.violations == []


@pytest.mark.parametrize("kind", [Kind.LOST_BEFORE, Kind.HANGS_BEFORE, Kind.REFUSED_BEFORE])
@pytest.mark.parametrize("method", ["domains", "traces", "openers", "vitals", "premises", "keepalive_s", "host"])
def test_a_look_that_fails_is_told_and_hides_nothing_of_the_other_node(method: str, kind: Kind) -> None:
    with World() as world:
        world.add_guest("web1", "node1")
        world.faults.add(f"c1.{method}@node2#1", kind)
        found = diagnose(world.controller("c1"))
        assert {one.severity for one in found.complaints} == {Severity.DANGER}
        assert any("node2" in one.finding.sentence for one in found.complaints)
        assert found.exit_code is not ExitCode.OK
        assert "node1" in found.nodes
        assert world.violations == []
