"""The tasklet on two nodes in memory: what each failure leaves behind, step by step."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest

from lvmigrate.domain import DomainState, JobKind
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
from lvmigrate.migrate import MigrateInstance
from lvmigrate.move import STEPS
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.replication import ConnectionState, DiskState, ReplicationState, Role
from lvmigrate.report import Report
from lvmigrate.token import Errand, Token
from tests.unit.fakes import NODES, UUID, FakeCopy, World, guest, refusing, unreachable

FAILED = CopyEnd(ok=False, detail="libvirt's words (libvirt error 9)")


def somebodys(holder: str, source: str = "node1", target: str = "node2") -> Token:
    errand = Errand(source=source, target=target, ran=True, autostart=True, target_had_definition=False)
    return Token(uuid=UUID, instance="web1", id="theirs", holder=holder, lease_s=30, errand=errand)


def migrate(world: World, *, cancel: threading.Event | None = None, options: Options | None = None) -> Report:
    context = world.context(**({"cancel": cancel} if cancel else {}))
    tasklet = MigrateInstance(context, "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def test_a_move() -> None:
    world = World()
    report = migrate(world)
    assert (report.source, report.target, report.running) == ("node1", "node2", True)
    assert world.running() == ["node2"]
    assert list(world.violations()) == []
    assert world.domains["node2"].autostart
    assert world.protocol is None
    assert [step.name for step in report.steps] == [step.name for step in STEPS]


def test_the_order_of_what_is_changed_is_the_design() -> None:
    world = World()
    migrate(world)
    changes = [
        call for call in world.calls if call[0] not in {"domain", "observe", "options", "renew_token", "generations"}
    ]
    acts = [name for name, _ in changes[changes.index(("take_token", "node1")) :]]
    order = [
        "take_token",
        "watch",
        "arm_guard",
        "allow_two_primaries",
        "promote",
        "set_autostart",  # off at the source
        "copy_memory",
        "resume",
        "demote",
        "restore_options",
        "undefine",
        "disarm_guard",
        "drop_token",
    ]
    assert list(dict.fromkeys(acts)) == order


def test_where_opening_promotes_nothing_is_promoted_explicitly() -> None:
    world = World(auto_promote=True)

    def arrive(world: World) -> CopyEnd:
        world.roles["node2"] = Role.PRIMARY  # QEMU opened the device
        return world.arrive()

    world.ending = arrive
    migrate(world)
    assert ("promote", "node2") not in world.calls
    assert list(world.violations()) == []


def test_a_paused_guest_stays_paused() -> None:
    world = World(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")})
    report = migrate(world)
    assert not report.running
    assert world.domains["node2"].state is DomainState.PAUSED
    assert ("resume", "node2") not in world.calls


def test_a_definition_on_the_target_from_before_stays_after_a_failure() -> None:
    world = World(domains={"node1": guest("node1"), "node2": guest("node2", state=DomainState.OFF)})
    world.ending = lambda _world: FAILED
    with pytest.raises(MoveFailed):
        migrate(world)
    assert set(world.domains) == set(NODES)


# How the call that copies memory may end, and what must follow whatever it said.


def stayed(world: World) -> CopyEnd:
    return FAILED


def reply_lost(world: World) -> CopyEnd:
    """The target waits paused, the source daemon has resumed its own copy."""
    world.arrive()
    world.set("node1", state=DomainState.RUNNING)
    return FAILED


def reply_lost_and_both_wait(world: World) -> CopyEnd:
    world.arrive()
    world.set("node1", state=DomainState.PAUSED, reason="migration")
    return FAILED


def source_left_paused(world: World) -> CopyEnd:
    world.set("node1", state=DomainState.PAUSED, reason="migration")
    return FAILED


@pytest.mark.parametrize("ending", [stayed, reply_lost, reply_lost_and_both_wait, source_left_paused])
@pytest.mark.parametrize("auto_promote", [False, True], ids=["explicit", "auto-promote"])
def test_what_did_not_arrive_goes_on_at_the_source(ending: Callable[[World], CopyEnd], auto_promote: bool) -> None:  # noqa: FBT001
    world = World(ending=ending, auto_promote=auto_promote)
    with pytest.raises(MoveFailed) as caught:
        migrate(world)
    assert caught.value.code is Code.COPY_FAILED
    assert world.running() == ["node1"]
    assert list(world.violations()) == []


def test_a_call_that_failed_after_the_guest_had_arrived_is_a_success() -> None:
    def arrived_but_failed(world: World) -> CopyEnd:
        world.arrive()
        return FAILED

    world = World(ending=arrived_but_failed)
    assert migrate(world).target == "node2"
    assert list(world.violations()) == []


@pytest.mark.parametrize("whole", [True, False], ids=["disks in step", "disks apart"])
def test_a_guest_that_ends_during_the_copy_is_said_to_be_lost_and_what_was_opened_is_closed(whole: bool) -> None:  # noqa: FBT001
    def lost(world: World) -> CopyEnd:
        world.set("node1", state=DomainState.OFF, reason="migrated")
        if not whole:
            world.disks["node2"] = DiskState.OUTDATED
        return CopyEnd(ok=True)

    world = World(ending=lost)
    with pytest.raises(GuestLost) as caught:
        migrate(world)
    assert ("start it on node1 only" in caught.value.hint) is not whole
    assert "start it on node1" in caught.value.hint
    assert (world.roles["node2"], world.two_primaries, world.tokens) == (Role.SECONDARY, False, {})
    assert set(world.domains) == {"node1"}


def test_what_cannot_be_closed_for_a_lost_guest_is_said() -> None:
    def lost(world: World) -> CopyEnd:
        world.set("node1", state=DomainState.OFF, reason="migrated")
        world.faults["demote", "node2"] = unreachable("node2")
        return FAILED

    with pytest.raises(GuestLost) as caught:
        migrate(World(ending=lost))
    assert "Left open: two primaries allowed for r0" in caught.value.hint


def test_two_running_copies_are_both_suspended() -> None:
    def both(world: World) -> CopyEnd:
        world.arrive(DomainState.RUNNING)
        world.set("node1", state=DomainState.RUNNING)
        return FAILED

    world = World(ending=both)
    with pytest.raises(OutcomeUnknown, match="both"):
        migrate(world)
    assert world.running() == []
    assert {d.state for d in world.domains.values()} == {DomainState.PAUSED}
    assert world.two_primaries  # nothing was undone


@pytest.mark.parametrize("node", NODES)
def test_without_both_words_nothing_is_undone(node: str) -> None:
    def cut(world: World) -> CopyEnd:
        world.faults["domain", node] = unreachable(node)
        return FAILED

    world = World(ending=cut)
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world)
    assert f"web1 on {node}: unknown" in caught.value.known
    assert world.two_primaries
    assert not {("discard", n) for n in NODES} & set(world.calls)
    assert not {("resume", n) for n in NODES} & set(world.calls)


def test_a_job_that_never_ends_is_held() -> None:
    def busy(world: World) -> CopyEnd:
        world.set("node1", job=JobKind.OUTGOING)
        return FAILED

    world = World(ending=busy, stubborn=True)
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world)
    assert world.two_primaries
    assert "two primaries allowed on r0" in caught.value.known
    assert "domjobabort" in caught.value.hint


def test_a_job_that_outlives_the_call_is_aborted() -> None:
    """Our connection to the source broke: the job goes on in its daemon, and nobody would meet the guest."""

    def busy(world: World) -> CopyEnd:
        world.set("node1", job=JobKind.OUTGOING)
        return FAILED

    world = World(ending=busy)
    with pytest.raises(MoveFailed):
        migrate(world)
    assert ("abort_job", "node1") in world.calls
    assert list(world.violations()) == []


def test_a_call_that_never_ends_is_held_whatever_the_nodes_say() -> None:
    """It may still begin to move the guest when its QEMU answers again."""
    world = World(looks=10_000, stubborn=True)
    with pytest.raises(OutcomeUnknown, match="does not end the copy"):
        migrate(world, options=Options(copy_timeout_s=1))
    assert world.running() == ["node1"]
    assert world.two_primaries


def test_a_guest_that_dies_right_after_it_arrived_is_lost_not_moved() -> None:
    world = World()
    world.late_faults["resume", "node2"] = lambda: world.set("node2", state=DomainState.OFF)
    with pytest.raises(GuestLost, match="died"):
        migrate(world)
    assert "node1" in world.domains  # its definition is kept


def test_a_guest_that_dies_while_the_disks_are_closed_is_no_success() -> None:
    world = World()
    world.late_faults["restore_options", "node2"] = lambda: (
        world.set("node2", state=DomainState.OFF) if world.domains["node2"].state is DomainState.RUNNING else None
    )
    with pytest.raises(GuestLost, match="died"):
        migrate(world)
    assert "node1" in world.domains  # its definition is kept
    assert not world.two_primaries


def test_a_second_copy_that_somebody_starts_at_the_source_is_noticed() -> None:
    world = World()

    def start() -> None:
        world.set("node1", state=DomainState.RUNNING)
        world.late_faults.clear()

    world.late_faults["resume", "node2"] = start
    with pytest.raises(OutcomeUnknown, match="suspended on both") as caught:
        migrate(world)
    assert world.running() == []
    assert "r0 is Primary on node1" in caught.value.known


def test_a_second_copy_that_keeps_the_source_primary_is_noticed() -> None:
    world = World()

    def start() -> None:
        world.set("node1", state=DomainState.RUNNING)
        refusing("node1")()

    world.faults["demote", "node1"] = start
    with pytest.raises(OutcomeUnknown, match="suspended on both"):
        migrate(world)
    assert world.running() == []


def test_two_copies_that_cannot_be_suspended_are_not_said_to_be() -> None:
    world = World()
    world.faults["suspend", "node1"] = unreachable("node1")

    def both(world: World) -> CopyEnd:
        world.arrive(DomainState.RUNNING)
        world.set("node1", state=DomainState.RUNNING)
        return FAILED

    world.ending = both
    with pytest.raises(OutcomeUnknown, match="could not be suspended there"):
        migrate(world)


def test_a_guest_that_was_moved_by_somebody_else_meanwhile_is_not_lost() -> None:
    world = World()
    tasklet = MigrateInstance(world.context(), "web1")
    tasklet.check_prereq()
    world.arrive(DomainState.RUNNING)
    with pytest.raises(MoveFailed, match=r"changed between.*on node2: runs"):
        tasklet.exec()


@pytest.mark.parametrize(
    "breaks",
    [
        lambda world: setattr(world, "connected", False),
        lambda world: setattr(world, "replication", ReplicationState.SYNC_SOURCE),
        lambda world: world.disks.update(node2=DiskState.OUTDATED),
        lambda world: world.lost_a_write(),
        lambda world: world.faults.update({("observe", "node1"): unreachable("node1")}),
    ],
    ids=["cut", "resync", "outdated", "once broken", "source silent"],
)
def test_a_guest_that_arrived_on_a_doubtful_disk_is_held_paused(breaks: Callable[[World], None]) -> None:
    def arrive(world: World) -> CopyEnd:
        end = world.arrive()
        breaks(world)
        return end

    world = World(ending=arrive)
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world)
    assert caught.value.known
    assert world.domains["node2"].state is DomainState.PAUSED
    assert world.running() == []


def test_a_break_without_a_write_that_the_kernel_proves_harmless_holds_nobody() -> None:
    def arrive(world: World) -> CopyEnd:
        world.broke.append("node1: Connecting for a moment")
        return world.arrive()

    world = World(ending=arrive)
    migrate(world)
    assert world.running() == ["node2"]
    assert list(world.violations()) == []


def test_resuming_is_tried_again() -> None:
    world = World()
    tries: list[int] = []

    def fault() -> None:
        tries.append(1)
        if len(tries) < 3:
            unreachable("node2")()

    world.faults["resume", "node2"] = fault
    migrate(world)
    assert list(world.violations()) == []


# Stopping.


def test_asked_to_stop_during_the_copy_it_aborts_and_puts_everything_back() -> None:
    world, cancel = World(), threading.Event()
    world.late_faults["copy_memory", "node1"] = cancel.set
    with pytest.raises(MoveAborted) as caught:
        migrate(world, cancel=cancel)
    assert caught.value.code is Code.ABORTED
    assert world.abort_asked
    assert list(world.violations()) == []


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the call has ended"])
def test_asked_to_stop_by_what_ends_the_call_too_it_says_aborted(*, late: bool) -> None:
    """Ctrl-C in a terminal reaches the ssh under libvirt's connection as well, and that may end first."""
    cancel = threading.Event()

    def ending(world: World) -> CopyEnd:
        if late:
            world.late_faults["domain", "node1"] = cancel.set
        else:
            cancel.set()
        world.set("node1", job=JobKind.OUTGOING)
        return CopyEnd(ok=False, detail="End of file while reading data")

    world = World(ending=ending)
    with pytest.raises(MoveAborted):
        migrate(world, cancel=cancel)
    assert ("abort_job", "node1") in world.calls
    assert list(world.violations()) == []


@pytest.mark.parametrize("method", ["take_token", "watch", "allow_two_primaries", "promote"])
def test_asked_to_stop_before_the_copy_it_puts_everything_back(method: str) -> None:
    world, cancel = World(), threading.Event()
    for node in NODES:
        world.late_faults[method, node] = cancel.set
    with pytest.raises(MoveAborted):
        migrate(world, cancel=cancel)
    assert ("copy_memory", "node1") not in world.calls
    assert list(world.violations()) == []


def test_asked_to_stop_after_the_guest_has_arrived_it_goes_on() -> None:
    world, cancel = World(), threading.Event()
    world.faults["resume", "node2"] = cancel.set
    assert migrate(world, cancel=cancel).target == "node2"
    assert list(world.violations()) == []


def test_replication_that_breaks_during_the_copy_ends_it() -> None:
    world = World()
    world.late_faults["copy_memory", "node1"] = lambda: world.broke.append("r0 on node1 is not connected to node2")
    with pytest.raises(MoveFailed) as caught:
        migrate(world)
    assert caught.value.code is Code.REPLICATION_BROKE
    assert "r0 on node1 is not connected" in str(caught.value)
    assert world.abort_asked
    assert list(world.violations()) == []


def test_a_watch_that_does_not_come_back_during_the_copy_ends_it() -> None:
    world = World(looks=100)

    def on_look(_left: int) -> None:
        world.unwatched = not world.abort_asked  # it comes back in the end, so that what was opened can be closed

    world.on_look = on_look
    world.ending = stayed
    with pytest.raises(MoveFailed) as caught:
        migrate(world)
    assert caught.value.code is Code.REPLICATION_BROKE
    assert "not watched" in str(caught.value)
    assert list(world.violations()) == []


def test_a_gap_of_the_watch_that_ends_does_not_end_the_copy() -> None:
    world = World(looks=6)

    def on_look(left: int) -> None:
        world.unwatched = left > 3

    world.on_look = on_look
    assert migrate(world).target == "node2"
    assert list(world.violations()) == []


def test_a_copy_that_takes_too_long_is_aborted() -> None:
    world = World()
    with pytest.raises(MoveFailed) as caught:
        migrate(world, options=Options(copy_timeout_s=0.6))
    assert caught.value.code is Code.COPY_TIMEOUT
    assert list(world.violations()) == []


# A failure at every call of the steps before the copy, before and after the call acted.

BEFORE_THE_COPY = ["take_token", "watch", "allow_two_primaries", "promote", "copy_memory"]


@pytest.mark.parametrize("method", BEFORE_THE_COPY)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("late", [False, True], ids=["before acting", "after acting"])
@pytest.mark.parametrize("fault", [unreachable, refusing])
def test_a_failure_before_the_copy_leaves_nothing(
    method: str,
    node: str,
    late: bool,  # noqa: FBT001
    fault: Callable[[str], Callable[[], None]],
) -> None:
    world = World()
    (world.late_faults if late else world.faults)[method, node] = fault(node)
    reached = False
    try:
        migrate(world)
    except MoveFailed as error:
        reached = True
        assert error.hint
    assert reached == ((method, node) in world.calls)
    # The one exception: libvirt was asked to copy and the asking failed; the guest of the fake stays at the source.
    assert list(world.violations()) == []


@pytest.mark.parametrize("method", ["demote", "restore_options"])
def test_what_cannot_be_closed_after_the_move_is_said(method: str) -> None:
    world = World()

    def fault_from_now_on() -> None:
        world.faults[method, "node1"] = unreachable("node1")

    world.late_faults["resume", "node2"] = fault_from_now_on
    with pytest.raises(LeftBehind) as caught:
        migrate(world)
    assert "node1" in caught.value.leftovers[0]
    assert "on node2: runs" in str(caught.value)
    assert any("definition of web1" in leftover for leftover in caught.value.leftovers)
    assert world.running() == ["node2"]
    assert not world.domains["node1"].autostart  # a reboot of the source starts no second copy


def test_an_undo_that_fails_never_hides_the_first_error_nor_the_other_undos() -> None:
    world = World(ending=stayed)
    world.faults["demote", "node2"] = unreachable("node2")
    with pytest.raises(LeftBehind, match="libvirt did not move web1") as caught:
        migrate(world)
    assert any("two primaries" in leftover for leftover in caught.value.leftovers)
    # The record of the move stays, and runs out: a cleanup reads there what is still to be undone.
    assert sorted(world.tokens) == ["node1", "node2"]
    assert world.running() == ["node1"]


def test_a_device_that_is_held_for_a_moment_is_waited_for() -> None:
    world = World()
    holds = iter([True, True, False])

    def held() -> None:
        if next(holds, False):
            refusing_held()

    def refusing_held() -> None:
        from lvmigrate.errors import DeviceHeld  # noqa: PLC0415

        raise DeviceHeld("node1", "Demoting r0", status=11, hint="none", code=Code.DEVICE_HELD)

    world.faults["demote", "node1"] = held
    migrate(world)
    assert list(world.violations()) == []


def test_a_defect_of_ours_leaves_nothing_open() -> None:
    def defect() -> None:
        raise ZeroDivisionError

    world = World()
    world.faults["copy_memory", "node1"] = defect
    with pytest.raises(MoveFailed, match="defect: ZeroDivisionError"):
        migrate(world)
    assert list(world.violations()) == []


def test_a_defect_of_ours_in_mid_copy_proves_first_where_the_guest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(_copy: FakeCopy) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeCopy, "progress", defect)
    world = World()
    with pytest.raises(MoveFailed, match="defect: ZeroDivisionError"):
        migrate(world)
    assert world.abort_asked
    assert list(world.violations()) == []


def test_a_defect_of_ours_after_the_arrival_undoes_nothing() -> None:
    def arrive(world: World) -> CopyEnd:
        end = world.arrive()
        world.faults["observe", "node1"] = lambda: 1 // 0  # type: ignore[assignment]
        return end

    world = World(ending=arrive)
    with pytest.raises(OutcomeUnknown, match="may have arrived on node2") as caught:
        migrate(world)
    assert caught.value.known[:2] == ("web1 on node1: gone", "web1 on node2: waits paused")
    assert world.two_primaries
    assert world.domains["node2"].state is DomainState.PAUSED


def test_a_copy_on_the_target_that_cannot_be_ended_undoes_nothing() -> None:
    world = World(ending=reply_lost)
    world.faults["discard", "node2"] = refusing("node2")
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world)
    assert caught.value.known[:2] == ("web1 on node1: runs", "web1 on node2: waits paused")
    assert world.two_primaries


def test_a_listener_that_fails_does_not_stop_the_move() -> None:
    def listener(_progress: StepProgress) -> None:
        raise ValueError

    world = World()
    tasklet = MigrateInstance(world.context(on_progress=listener), "web1")
    tasklet.check_prereq()
    tasklet.exec()
    assert list(world.violations()) == []


def test_a_move_that_was_taken_over_between_check_and_lock_is_refused() -> None:
    world = World()
    theirs = somebodys("root@elsewhere pid 1")
    tasklet = MigrateInstance(world.context(), "web1")
    tasklet.check_prereq()
    world.tokens["node2"] = theirs
    with pytest.raises(Refused, match="root@elsewhere pid 1"):
        tasklet.exec()
    assert world.tokens == {"node2": theirs}


def test_what_changed_between_check_and_lock_is_noticed() -> None:
    world = World()
    tasklet = MigrateInstance(world.context(), "web1")
    tasklet.check_prereq()
    world.set("node1", state=DomainState.PAUSED)
    with pytest.raises(MoveFailed, match="changed between"):
        tasklet.exec()
    assert world.tokens == {}


# The checks.


def broken(**changes: object) -> World:
    return dataclasses.replace(World(), **changes)  # type: ignore[arg-type]


STOPPED = {"node1": guest("node1", state=DomainState.OFF)}
UNSTARTED = {"node1": guest("node1", autostart=False)}
TWICE = {node: guest(node) for node in NODES}
SHARED = guest("node1", name="db1", uuid="8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0011", state=DomainState.OFF)
NAMESAKE = guest("node2", uuid="8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0012", state=DomainState.OFF, disks=())


@pytest.mark.parametrize(
    ("world", "code"),
    [
        (broken(domains=STOPPED), Code.INSTANCE_STOPPED),
        (broken(domains=TWICE), Code.INSTANCE_TWICE),
        (broken(domains={"node1": guest("node1", name="another")}), Code.INSTANCE_UNKNOWN),
        (broken(domains={"node1": guest("node1", job=JobKind.OUTGOING)}), Code.JOB_ACTIVE),
        (broken(domains={"node1": guest("node1", state=DomainState.SUSPENDED)}), Code.INSTANCE_STATE),
        (
            broken(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="i/o error")}),
            Code.INSTANCE_STATE,
        ),
        (broken(domains={"node1": guest("node1", disks=())}), Code.NO_DISKS),
        (broken(domains={"node1": guest("node1", memory_kib=1 << 30)}), Code.MEMORY_SHORT),
        (broken(replicated=False), Code.DISK_NOT_REPLICATED),
        (broken(connected=False), Code.NOT_CONNECTED),
        (broken(disks={"node1": DiskState.UP_TO_DATE, "node2": DiskState.OUTDATED}), Code.NOT_UPTODATE),
        (broken(disks={"node1": DiskState.DISKLESS, "node2": DiskState.UP_TO_DATE}), Code.NOT_UPTODATE),
        (broken(replication=ReplicationState.SYNC_TARGET), Code.NOT_UPTODATE),
        (broken(roles=dict.fromkeys(NODES, Role.PRIMARY)), Code.DUAL_PRIMARY),
        (broken(roles=dict.fromkeys(NODES, Role.SECONDARY)), Code.SOURCE_NOT_PRIMARY),
        (broken(two_primaries=True), Code.TWO_PRIMARIES_ON),
        (broken(openers={"node1": 1, "node2": 1}), Code.DEVICE_HELD),
        (broken(mounted_on="node1"), Code.DEVICE_HELD),
        (broken(intruder_on="node1"), Code.DEVICE_HELD),
        (
            broken(
                domains={
                    "node1": guest("node1", job=JobKind.OUTGOING),
                    "node2": guest("node2", job=JobKind.INCOMING, state=DomainState.PAUSED),
                }
            ),
            Code.JOB_ACTIVE,
        ),
        (
            broken(
                domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")},
                roles=dict.fromkeys(NODES, Role.PRIMARY),
            ),
            Code.INSTANCE_STATE,
        ),
        (broken(shared_with=SHARED), Code.RESOURCE_SHARED),
        (broken(shared_with=NAMESAKE), Code.INSTANCE_ON_TARGET),
        (broken(faults={("domain", "node2"): unreachable("node2")}), Code.NODE_UNREACHABLE),
        (broken(faults={("locate", "node2"): unreachable("node2")}), Code.NODE_UNREACHABLE),
        (broken(faults={("observe", "node1"): refusing("node1")}), Code.STORAGE_FAILED),
        (
            broken(tokens={"node1": somebodys("somebody")}),
            Code.LOCKED,
        ),
        # Moves to and from a third node, whose commands died: the guest's autostart is still as they left it.
        (
            broken(domains=UNSTARTED, tokens={"node1": somebodys("a dead one", target="node3")}, left_s=-9),
            Code.LEFT_BEHIND,
        ),
        (
            broken(domains=UNSTARTED, tokens={"node1": somebodys("a dead one", "node3", "node1")}, left_s=-9),
            Code.LEFT_BEHIND,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
def test_refusals(world: World, code: Code) -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1").check_prereq()
    assert code in [finding.code for finding in caught.value.findings]
    assert all(finding.sentence.endswith(".") and finding.hint for finding in caught.value.findings)
    changed = {"take_token", "allow_two_primaries", "promote", "copy_memory", "resume", "demote", "undefine"}
    assert not changed & {name for name, _ in world.calls}


@pytest.mark.parametrize(
    ("target", "code"), [("node3", Code.NODE_UNKNOWN), ("node1", Code.TARGET_IS_SOURCE), ("", Code.NODE_UNKNOWN)]
)
def test_targets_that_are_none(target: str, code: Code) -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(World().context(), "web1", target=target).check_prereq()
    assert caught.value.code is code


def test_all_refusals_are_named_at_once() -> None:
    world = broken(two_primaries=True, openers={"node1": 1, "node2": 1}, roles=dict.fromkeys(NODES, Role.PRIMARY))
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1").check_prereq()
    assert [f.code for f in caught.value.findings] == [Code.DUAL_PRIMARY, Code.TWO_PRIMARIES_ON, Code.DEVICE_HELD]
    assert "2 more reasons" in str(caught.value)


def test_a_resynchronisation_towards_the_target_is_waited_for() -> None:
    world = World(
        replication=ReplicationState.SYNC_SOURCE,
        disks={"node1": DiskState.UP_TO_DATE, "node2": DiskState.INCONSISTENT},
    )
    told: list[StepProgress] = []

    def listen(progress: StepProgress) -> None:
        told.append(progress)
        if progress.sync is not None:  # it was asked for: let it end
            world.replication = ReplicationState.ESTABLISHED
            world.disks["node2"] = DiskState.UP_TO_DATE

    tasklet = MigrateInstance(world.context(on_progress=listen), "web1")
    tasklet.check_prereq()
    tasklet.exec()
    assert any(progress.sync and progress.sync.waiting_for for progress in told)
    assert list(world.violations()) == []


def test_a_resynchronisation_that_never_ends_is_not_waited_for_for_ever() -> None:
    world = World(replication=ReplicationState.SYNC_SOURCE)
    with pytest.raises(MoveFailed) as caught:
        migrate(world, options=Options(sync_timeout_s=5))
    assert caught.value.code is Code.SYNC_TIMEOUT
    assert "SyncSource" in str(caught.value)
    assert list(world.violations()) == []


def test_exec_needs_the_checks() -> None:
    with pytest.raises(LvmigrateError, match="before check_prereq"):
        MigrateInstance(World().context(), "web1").exec()


def test_states_have_the_kernels_names() -> None:
    assert ConnectionState("StandAlone") is ConnectionState.STANDALONE


def test_a_resynchronisation_that_stands_still_is_given_up_with_the_reason() -> None:
    world = World(replication=ReplicationState.PAUSED_SOURCE)
    with pytest.raises(MoveFailed) as caught:
        migrate(world, options=Options(sync_stall_s=20))
    assert caught.value.code is Code.SYNC_STALLED
    assert "it is paused" in str(caught.value)
    assert "resume-sync" in caught.value.hint
    assert list(world.violations()) == []
