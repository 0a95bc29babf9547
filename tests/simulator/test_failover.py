"""Failover in the simulator: between two nodes that answer, and from one that does not."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from lvmigrate.audit import audit as leftovers
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import (
    Code,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    OutcomeUnknown,
    Refused,
)
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.fencing import FenceFailed, Signs
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.replication import DiskState
from lvmigrate.report import Report
from lvmigrate.simulator import (
    DRBD,
    Breach,
    ControllerKilled,
    Guest,
    Happening,
    Kind,
    Settings,
    Version,
    World,
    Wrong,
    audit,
)
from lvmigrate.takeover import Takeover

OFF = FailoverOptions(is_off="node1")
VARIANTS = [
    Settings(version=Version.V9, auto_promote=True),
    Settings(version=Version.V9, auto_promote=False),
    Settings(version=Version.V84),
]


def fail_over(world: World, options: FailoverOptions | None = None, **changes: Any) -> Report:
    context = dataclasses.replace(world.controller("c1"), **changes)
    tasklet = FailoverInstance(context, "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def clean_up(world: World, name: str = "c9") -> None:
    tasklet = CleanupInstance(world.controller(name), "web1")
    tasklet.check_prereq()
    tasklet.exec()


def whole(world: World, guest: Guest, node: str) -> None:
    assert world.running(guest) == [node]
    assert not world.violations
    assert [str(finding) for finding in audit(world)] == []


# ---- both answer


@pytest.mark.parametrize("settings", VARIANTS, ids=["9-auto", "9", "8.4"])
def test_there_and_back(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        report = fail_over(world)
        assert (report.source, report.target, report.mode, report.dual_primary_s) == ("node1", "node2", "failover", 0.0)
        assert report.downtime_s > 0
        whole(world, guest, "node2")
        report = fail_over(world)
        assert report.target == "node1"
        whole(world, guest, "node1")


def test_a_guest_that_does_not_listen_stays() -> None:
    with World(settings=Settings(shutdown_s=None)) as world:
        guest = world.add_guest("web1", "node1")
        with pytest.raises(MoveFailed) as caught:
            fail_over(world)
        assert caught.value.code is Code.SHUTDOWN_TIMEOUT
        assert "--hard" in caught.value.hint
        whole(world, guest, "node1")


def test_a_guest_that_does_not_listen_is_switched_off_if_that_was_asked_for() -> None:
    with World(settings=Settings(shutdown_s=None)) as world:
        guest = world.add_guest("web1", "node1")
        fail_over(world, FailoverOptions(hard=True))
        whole(world, guest, "node2")


def test_a_guest_that_does_not_start_on_the_target_is_started_at_the_source_again() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("c1.start@node2#1", Kind.REFUSED_BEFORE)
        with pytest.raises(MoveFailed) as caught:
            fail_over(world)
        assert caught.value.code is Code.START_FAILED
        assert "goes on at node1" in str(caught.value)
        whole(world, guest, "node1")


def test_a_start_whose_reply_is_lost_is_seen() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("c1.start@node2#1", Kind.LOST_AFTER)
        fail_over(world)
        whole(world, guest, "node2")


@pytest.mark.parametrize("settings", VARIANTS, ids=["9-auto", "9", "8.4"])
def test_a_start_that_may_come_late_is_not_undone_where_nothing_keeps_two_copies_apart(settings: Settings) -> None:
    """The configuration allows two primaries for good, so that DRBD would let the late one run beside the source's."""
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1")
        for resource in guest.resources:
            resource.for_good = True
            for end in resource.ends.values():
                end.two_primaries = True
        world.timeline.advance(1.0)
        world.faults.add("c1.start@node2#1", Kind.LATE)
        with pytest.raises(OutcomeUnknown) as caught:
            fail_over(world)
        assert "`lvmigrate status web1` in a minute" in caught.value.hint
        world.timeline.advance(400.0)
        assert world.running(guest) == ["node2"]
        assert not world.violations


def test_an_abort_while_the_guest_is_off_starts_it_again() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("c1.demote@node1#1", Happening.ABORTED)
        with pytest.raises(MoveAborted):
            fail_over(world)
        whole(world, guest, "node1")


def test_a_disk_that_falls_behind_while_the_guest_shuts_down_is_not_started_from() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("c1.shut_down@node1#1", Happening.DRBD_CUT_LONG)
        with pytest.raises(LvmigrateError):
            fail_over(world)
        assert world.running(guest) in (["node1"], [])
        assert not world.violations
        world.heal()
        world.timeline.advance(400)
        clean_up(world)
        whole(world, guest, "node1")


@pytest.mark.parametrize(
    "call",
    ["define@node2", "set_autostart@node1", "shut_down@node1", "demote@node1", "start@node2", "undefine@node1"],
)
@pytest.mark.parametrize("when", [Kind.KILLED_BEFORE, Kind.KILLED_AFTER])
def test_a_cleanup_leads_back_wherever_the_controller_died(call: str, when: Kind) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(f"c1.{call}#1", when)
        with pytest.raises(ControllerKilled):
            fail_over(world)
        world.timeline.advance(60)
        clean_up(world)
        arrived = call in ("start@node2", "undefine@node1") and (call, when) != ("start@node2", Kind.KILLED_BEFORE)
        whole(world, guest, "node2" if arrived else "node1")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"persistent": False}, Code.DEFINITION_MISSING),
        ({"running": False}, Code.INSTANCE_STATE),
    ],
)
def test_what_is_refused_between_living_nodes(given: dict[str, Any], code: Code) -> None:
    with World() as world:
        world.add_guest("web1", "node1", **given)
        with pytest.raises(Refused) as caught:
            fail_over(world)
        assert code in {finding.code for finding in caught.value.findings}
        assert not world.violations


# ---- one does not


def dead(world: World, **given: Any) -> Guest:
    """A guest whose node has lost its power some time ago; its definition is on the other node, too."""
    guest = world.add_guest("web1", "node1", defined_on_peer=True, **given)
    world.timeline.advance(2.0)
    world.power_cut("node1")
    world.timeline.advance(60.0)
    return guest


@pytest.mark.parametrize("settings", VARIANTS, ids=["9-auto", "9", "8.4"])
def test_a_dead_node(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = dead(world)
        report = fail_over(world, OFF)
        assert report.target == "node2"
        assert world.running(guest) == ["node2"]
        assert {finding.wrong for finding in audit(world)} <= {
            Wrong.NODE,
            Wrong.APART,
            Wrong.DEFINITION,
            Wrong.AUTOSTART,
        }
        assert not leftovers(world.controller("c2")).findings
        world.power_on("node1")
        world.timeline.advance(60.0)
        assert world.running(guest) == ["node2"]  # DRBD does not let the autostart of node1 open its disk
        found = [f for f in leftovers(world.controller("c2")).findings if "is back" in f.sentence]
        assert [f.code for f in found] == [Code.LEFT_BEHIND]
        clean_up(world)
        assert not leftovers(world.controller("c2")).findings
        assert world.running(guest) == ["node2"]
        assert set(world.hosts["node1"].definitions) == set()
        assert world.hosts["node2"].definitions[guest.uuid].autostart
        assert not world.violations


def test_a_tombstone_of_the_living_is_taken_off() -> None:
    """The command died before it started the guest; the node is back, and has started it itself."""
    with World(settings=VARIANTS[0]) as world:
        guest = dead(world)
        world.faults.add("c1.start@node2#1", Kind.KILLED_BEFORE)
        with pytest.raises(ControllerKilled):
            fail_over(world, OFF)
        world.power_on("node1")
        world.timeline.advance(60.0)
        assert world.running(guest) == ["node1"]
        assert world.hosts["node2"].definitions[guest.uuid].left_on == "node1"
        plan = CleanupInstance(world.controller("c2"), "web1").check_prereq()
        assert "take the tombstone of node1 off the definition on node2" in plan.acts
        clean_up(world)
        whole(world, guest, "node1")
        assert world.hosts["node1"].definitions[guest.uuid].autostart
        assert not leftovers(world.controller("c3")).findings


def test_the_fence_command_is_run_before_anything_is_promoted() -> None:
    with World() as world:
        guest = dead(world)
        calls: list[str] = []

        def fence() -> None:
            calls.extend(str(call.place) for call in world.calls if call.acts)

        fail_over(world, fences={"node1": fence})
        assert [call for call in calls if "take_token" not in call] == []
        assert calls
        assert world.running(guest) == ["node2"]


@pytest.mark.parametrize("call", ["c1.define@node2#1", "c1.start@node2#1"])
def test_somebody_who_asks_to_stop_is_heard_until_the_guest_is_started(call: str) -> None:
    with World() as world:
        guest = dead(world)
        world.faults.add(call, Happening.ABORTED)
        if "start" in call:
            fail_over(world, OFF)
            assert world.running(guest) == ["node2"]
            return
        with pytest.raises(MoveAborted):
            fail_over(world, OFF)
        assert world.running(guest) == []
        assert world.hosts["node2"].definitions[guest.uuid].left_on is None
        assert not world.hosts["node2"].tokens
        assert not world.violations


def test_somebody_who_asks_to_stop_is_heard_while_a_fenced_node_goes_on_answering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World() as world:
        guest = dead(world)
        cancel = threading.Event()
        look, looks = Takeover._signs, []

        def signs(takeover: Takeover) -> Signs:
            looks.append(takeover)
            if len(looks) == 2:
                cancel.set()
            return dataclasses.replace(look(takeover), drbd=True)

        monkeypatch.setattr(Takeover, "_signs", signs)
        with pytest.raises(MoveAborted):
            fail_over(world, fences={"node1": lambda: None}, cancel=cancel)
        assert len(looks) == 2
        assert world.running(guest) == []


def test_a_fence_command_that_fails_keeps_everything_as_it_is() -> None:
    with World() as world:
        guest = dead(world)

        def fence() -> None:
            raise FenceFailed("The fence command of node1 failed (1).", hint="Look.")

        with pytest.raises(FenceFailed):
            fail_over(world, fences={"node1": fence})
        assert world.running(guest) == []
        assert world.hosts["node2"].tokens == {}
        assert world.hosts["node2"].definitions[guest.uuid].left_on is None


@pytest.mark.parametrize("typed", [None, "node2", "node3"])
def test_silence_alone_is_no_proof(typed: str | None) -> None:
    with World() as world:
        guest = dead(world)
        with pytest.raises(Refused) as caught:
            fail_over(world, FailoverOptions(is_off=typed))
        assert [finding.code for finding in caught.value.findings] == [Code.NOT_FENCED]
        assert world.running(guest) == []


def test_a_node_that_only_the_controller_cannot_reach_is_alive() -> None:
    """DRBD is still connected to it: whatever the operator says, it lives."""
    with World() as world:
        guest = world.add_guest("web1", "node1", defined_on_peer=True)
        world.controller("c1")
        world.controllers["c1"].cut_way("node1")
        with pytest.raises(Refused) as caught:
            fail_over(world, OFF)
        assert [finding.code for finding in caught.value.findings] == [Code.NODE_ALIVE]
        assert "DRBD" in caught.value.findings[0].sentence
        assert world.running(guest) == ["node1"]


def test_a_node_whose_libvirt_alone_is_dead_is_alive() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1", defined_on_peer=True)
        world.kill_daemon("node1", back_s=10_000)
        world.cut(DRBD, "node1", "node2")
        world.timeline.advance(60)
        with pytest.raises(Refused) as caught:
            fail_over(world, OFF)
        assert [finding.code for finding in caught.value.findings] == [Code.NODE_ALIVE]
        assert "ssh" in caught.value.findings[0].sentence
        assert world.running(guest) == ["node1"]


def test_a_node_that_comes_back_while_it_is_fenced_is_seen_right_before_promoting() -> None:
    with World() as world:
        guest = dead(world)
        world.faults.add("c1.define@node2#1", Kind.STOPPED_AFTER)

        def fence() -> None:
            world.power_on("node1")  # it answers from 20 s later on, while the controller stands still

        with pytest.raises(LvmigrateError) as caught:
            fail_over(world, fences={"node1": fence})
        assert caught.value.code in (Code.NODE_ALIVE, Code.TOKEN_LOST)
        world.timeline.advance(60)
        assert world.running(guest) in (["node1"], [])
        assert not world.violations


def test_a_definition_that_a_move_has_kept_serves_when_the_other_node_dies() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        guest.keeps_definition = True
        world.timeline.advance(1.0)
        move = MigrateInstance(world.controller("c1"), "web1", options=Options(keep_definition=True))
        move.check_prereq()
        move.exec()
        whole(world, guest, "node2")
        assert not world.hosts["node1"].definitions[guest.uuid].autostart
        world.power_cut("node2")
        world.timeline.advance(60.0)
        fail_over(world, FailoverOptions(is_off="node2"))
        assert world.running(guest) == ["node1"]
        assert not world.violations


def test_without_a_definition_nothing_is_started() -> None:
    with World() as world:
        world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        world.power_cut("node1")
        world.timeline.advance(60.0)
        with pytest.raises(Refused) as caught:
            fail_over(world, OFF)
        assert caught.value.code is Code.DEFINITION_MISSING


def test_a_start_that_nobody_confirms_is_unknown() -> None:
    with World() as world:
        dead(world)
        world.faults.add("c1.start@node2#1", Happening.TARGET_WAY_CUT_LONG)
        with pytest.raises((OutcomeUnknown, GuestLost)):
            fail_over(world, OFF)
        assert not world.violations


def test_a_start_that_fails_leaves_the_survivor_as_it_was() -> None:
    with World(settings=Settings(auto_promote=False)) as world:
        guest = dead(world)
        world.faults.add("c1.start@node2#1", Kind.REFUSED_BEFORE)
        with pytest.raises(MoveFailed) as caught:
            fail_over(world, OFF)
        assert caught.value.code is Code.START_FAILED
        assert world.hosts["node2"].tokens == {}
        assert world.hosts["node2"].definitions[guest.uuid].left_on is None
        assert Wrong.UNUSED not in {finding.wrong for finding in audit(world)}


# ---- of three nodes


def three(**given: Any) -> World:
    world = World(nodes=("node1", "node2", "node3"))
    world.add_guest("web1", "node1", peer="node2", **given)
    world.timeline.advance(2.0)
    world.power_cut("node1")
    world.timeline.advance(60.0)
    return world


def refused(world: World, target: str | None, options: FailoverOptions = OFF, **changes: Any) -> Code:
    context = dataclasses.replace(world.controller("c1"), **changes)
    with pytest.raises(Refused) as caught:
        FailoverInstance(context, "web1", target=target, options=options).check_prereq()
    (code,) = {finding.code for finding in caught.value.findings}
    return code


def test_of_two_silent_nodes_it_may_run_on_either() -> None:
    with three(defined_on_peer=True) as world:
        assert refused(world, None) is Code.TARGET_AMBIGUOUS
        world.power_cut("node3")
        world.timeline.advance(60.0)
        assert refused(world, None) is Code.NODE_UNREACHABLE
        assert refused(world, "node2") is Code.NODE_UNREACHABLE
        world.power_cut("node2")
        world.timeline.advance(60.0)
        assert refused(world, None) is Code.NODE_UNREACHABLE
        assert refused(world, "node1") is Code.NODE_UNREACHABLE


def test_the_definition_of_a_third_node_is_not_the_target_s() -> None:
    with three() as world:
        (guest,) = world.guests.values()
        world.define("node3", guest.uuid, None)
        assert refused(world, "node2") is Code.DEFINITION_MISSING


@pytest.mark.parametrize("closed", ["drained", "offline"])
def test_a_node_that_takes_nothing_is_not_chosen(closed: str) -> None:
    with three(defined_on_peer=True) as world:
        nodes = dict(world.nodes)
        why: dict[str, Any] = {closed: "for a test"}
        shut = dataclasses.replace(nodes["node3"], **why)
        assert refused(world, "node3", nodes=nodes | {"node3": shut}) is Code.NODE_DRAINED
        context = dataclasses.replace(world.controller("c1"), nodes=nodes | {"node3": shut})
        assert FailoverInstance(context, "web1", options=OFF).check_prereq().target == "node2"


@pytest.mark.parametrize("always", [False, True])
def test_a_node_out_of_use_keeps_no_guest_from_leaving_one_that_answers(*, always: bool) -> None:
    with World(nodes=("node1", "node2", "node3")) as world:
        guest = world.add_guest("web1", "node1", peer="node2")
        world.timeline.advance(2.0)
        world.power_cut("node3")
        world.timeline.advance(60.0)
        nodes = {**world.nodes, "node3": dataclasses.replace(world.nodes["node3"], offline="burnt")}
        silent = dataclasses.replace(world.controller("c1"), nodes=world.nodes)
        with pytest.raises(Refused) as caught:
            FailoverInstance(silent, "web1", target="node2").check_prereq()
        assert caught.value.code is Code.NODE_UNREACHABLE
        context = dataclasses.replace(world.controller("c1"), nodes=nodes)
        tasklet = (
            MigrateInstance(context, "web1", target="node2", options=Options(always_failover=True))
            if always
            else FailoverInstance(context, "web1", target="node2")
        )
        tasklet.check_prereq()
        assert tasklet.exec().mode == "failover"
        assert world.running(guest) == ["node2"]
        assert not world.violations


# ---- from an old copy, which somebody takes for good

GIVEN_UP = FailoverOptions(is_off="node1", ignore_consistency=True)


def dead_and_old(world: World, **given: Any) -> Guest:
    """As `dead`, and the other node's copy was taken out of replication long before: what followed is on node1 only."""
    guest = world.add_guest("web1", "node1", defined_on_peer=True, **given)
    world.timeline.advance(2.0)
    for resource in guest.resources:
        resource.outdate("node2")
    world.timeline.advance(30.0)
    world.power_cut("node1")
    world.timeline.advance(60.0)
    return guest


def give_up(world: World, **changes: Any) -> Report:
    context = dataclasses.replace(world.controller("c1"), **changes)
    tasklet = FailoverInstance(context, "web1", target="node2", options=GIVEN_UP)
    tasklet.check_prereq()
    return tasklet.exec()


@pytest.mark.parametrize("settings", VARIANTS, ids=["9-auto", "9", "8.4"])
def test_an_old_copy_is_refused_and_taken_if_asked(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = dead_and_old(world)
        with pytest.raises(Refused) as caught:
            fail_over(world, OFF)
        assert [finding.code for finding in caught.value.findings] == [Code.NOT_UPTODATE]
        assert world.running(guest) == []
        guest.old_copy_on = "node2"
        report = give_up(world)
        assert [warning.code for warning in report.warnings] == [Code.COPY_OLD]
        assert world.running(guest) == ["node2"]
        assert world.hosts["node2"].definitions[guest.uuid].left_on == "node1"
        assert not world.violations


def test_what_is_taken_by_force_without_the_word_is_a_violation_in_the_simulator() -> None:
    """It would be noticed, if it happened."""
    with World() as world:
        dead_and_old(world)
        give_up(world)
        assert {violation.breach for violation in world.violations} >= {Breach.LAW, Breach.STALE}


@pytest.mark.parametrize("settings", VARIANTS, ids=["9-auto", "9", "8.4"])
def test_the_node_that_has_the_newer_data_comes_back_and_a_person_gives_them_up(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = dead_and_old(world)
        guest.old_copy_on = "node2"
        give_up(world)
        world.hosts["node1"].definitions[guest.uuid].autostart = False  # as the warning says
        world.power_on("node1")
        world.timeline.advance(60.0)
        found = [f for f in leftovers(world.controller("c2")).findings if "is back" in f.sentence]
        assert [f.code for f in found] == [Code.LEFT_BEHIND]
        with pytest.raises(LeftBehind) as caught:
            clean_up(world, "c3")
        assert "Split-brain" in str(caught.value.leftovers)
        assert "on node1 `drbdadm connect --discard-my-data web1`" in caught.value.hint
        (resource,) = guest.resources
        for node in resource.nodes:
            resource.disconnect(node)
        resource.reconnect("node1", discard=True)
        resource.reconnect("node2")
        world.timeline.advance(60.0)
        clean_up(world, "c4")
        assert not leftovers(world.controller("c5")).findings
        world.hosts["node2"].definitions[guest.uuid].autostart = True  # as the hint says: nobody could know it
        whole(world, guest, "node2")


def test_a_node_with_two_volumes_of_which_one_is_old_takes_both() -> None:
    with World() as world:
        guest = dead_and_old(world, volumes=2)
        (resource,) = guest.resources
        resource.ends["node2"].disks[1] = DiskState.UP_TO_DATE
        resource.ends["node2"].seen = None
        guest.old_copy_on = "node2"
        give_up(world)
        assert world.running(guest) == ["node2"]


def test_a_resync_that_was_cut_off_is_never_taken() -> None:
    with World() as world:
        guest = dead_and_old(world)
        (resource,) = guest.resources
        resource.ends["node2"].disks[0] = DiskState.INCONSISTENT
        resource.ends["node2"].seen = None
        guest.old_copy_on = "node2"
        with pytest.raises(Refused) as caught:
            give_up(world)
        assert [finding.code for finding in caught.value.findings] == [Code.NOT_UPTODATE]
        assert "No option" in caught.value.findings[0].hint


# ---- without a definition on the survivor


def test_a_definition_that_was_kept_is_defined_there(tmp_path: Path) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(2.0)
        fail_over(world, definitions=tmp_path)
        fail_over(world, definitions=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [f"{guest.uuid}.xml"]
        world.power_cut("node1")
        world.timeline.advance(60.0)
        with pytest.raises(Refused) as caught:
            fail_over(world, OFF, definitions=tmp_path)
        assert (caught.value.code, "--definition kept" in caught.value.findings[0].hint) == (
            Code.DEFINITION_MISSING,
            True,
        )
        kept = dataclasses.replace(OFF, definition="kept")
        report = fail_over(world, kept, definitions=tmp_path)
        assert [warning.code for warning in report.warnings] == [Code.COPY_CUT_OFF, Code.DEFINITION_KEPT]
        assert world.running(guest) == ["node2"]
        world.power_on("node1")
        world.timeline.advance(60.0)
        clean_up(world)
        whole(world, guest, "node2")  # its autostart too, which only the node that was off could tell


def test_a_definition_that_was_kept_is_gone_again_where_the_guest_does_not_start(tmp_path: Path) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        text = world.controller("c1").hypervisor.definition("node1", guest.uuid)
        assert text is not None
        (tmp_path / f"{guest.uuid}.xml").write_text(text)
        world.power_cut("node1")
        world.timeline.advance(60.0)
        world.faults.add("c1.start@node2#1", Kind.REFUSED_BEFORE)
        with pytest.raises(MoveFailed):
            fail_over(world, dataclasses.replace(OFF, definition="kept"), definitions=tmp_path)
        assert guest.uuid not in world.hosts["node2"].definitions
        assert world.hosts["node2"].tokens == {}
