"""What a move keeps to when something comes in between: whom it obeys, what it leaves alone, what it still knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lvmigrate import convergence
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import Domain, DomainDisk, DomainState, JobKind
from lvmigrate.errors import (
    Code,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options, Switch
from lvmigrate.progress import StepProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.replication import DiskState, Reach, ReplicationState, Role
from lvmigrate.tasklet import Context
from lvmigrate.together import in_turn
from lvmigrate.token import Token
from tests.unit.fakes import NODES, UUID, FakeCopy, FakeHypervisor, FakeStorage, Renewing, World, guest, unreachable

FAILED = CopyEnd(ok=False, detail="libvirt's words")
#: What was attached, and is another node's own on another node.
LOCAL = DomainDisk(target="vdb", source="/dev/sdb", kind="block", device="disk", read_only=False, cache="none")
THEIRS = Token(uuid=UUID, instance="web1", id="theirs", holder="they", lease_s=30, errand=None)


def checked(world: World, context: Context | None = None, options: Options | None = None) -> MigrateInstance:
    tasklet = MigrateInstance(context or world.context(), "web1", options=options)
    tasklet.check_prereq()
    return tasklet


def take_over(world: World) -> None:
    world.tokens = dict.fromkeys(NODES, THEIRS)


def acts_after(world: World, method: str, node: str) -> set[str]:
    """What was done after that call, apart from looking."""
    after = world.calls[world.calls.index((method, node)) + 1 :]
    return {name for name, _ in after} - {"domain", "observe", "options", "renew_token", "generations"}


# Somebody else has taken the guest over.


def test_whoever_lost_the_token_undoes_nothing() -> None:
    world = World()
    world.late_faults["allow_two_primaries", "node2"] = lambda: take_over(world)
    with pytest.raises(TokenLost) as caught:
        checked(world).exec()
    assert "autostart" not in caught.value.hint
    assert acts_after(world, "allow_two_primaries", "node2") <= {"allow_two_primaries", "promote"}
    assert world.two_primaries


def test_whoever_lost_the_token_after_a_call_that_carries_none_says_what_to_look_at() -> None:
    world = World()

    def sleep_for_long() -> None:
        world.time += THEIRS.lease_s
        take_over(world)

    world.late_faults["set_autostart", "node1"] = sleep_for_long
    with pytest.raises(TokenLost) as caught:
        checked(world).exec()
    assert "autostart" in caught.value.hint
    assert acts_after(world, "set_autostart", "node1") == set()


def test_whoever_lost_the_token_after_the_move_forgets_no_definition() -> None:
    world = World()

    def closed() -> None:
        if {("restore_options", node) for node in NODES} <= set(world.calls):
            take_over(world)

    world.late_faults.update({("restore_options", node): closed for node in NODES})
    with pytest.raises(TokenLost):
        checked(world).exec()
    assert "node1" in world.domains


def test_whoever_lost_the_token_ends_no_copy_that_may_be_somebody_else_s_by_now() -> None:
    def ending(world: World) -> CopyEnd:
        take_over(world)
        world.set("node1", job=JobKind.OUTGOING)
        return FAILED

    world = World(ending=ending)
    with pytest.raises(TokenLost):
        checked(world).exec()
    assert "abort_job" not in acts_after(world, "copy_memory", "node1")


# What is late must not act after its undo; what is asked to wait must be the guards' too.


def test_before_anything_is_undone_the_token_has_another_id() -> None:
    world = World(ending=lambda _world: FAILED)
    ids: list[str] = []

    def note() -> None:
        ids.append(world.tokens["node1"].id)

    world.faults["allow_two_primaries", "node1"] = note
    world.faults["restore_options", "node1"] = note
    with pytest.raises(MoveFailed):
        checked(world).exec()
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("slow", "slow_s", "renewed"),
    [
        # Both were acknowledged a moment ago, by their guards too.
        ("set_autostart", 0.0, []),
        ("arm_guard", 1.5, []),
        ("arm_guard", 2.5, ["opening"]),
        ("set_autostart", 3.5, []),
        ("set_autostart", 4.5, ["copy"]),
    ],
)
def test_right_before_the_copy_both_nodes_have_the_lease_ahead(slow: str, slow_s: float, renewed: list[str]) -> None:
    """They are told while two primaries are allowed, and once more before the copy, if anything took its time."""
    world = World()

    def slowly() -> None:
        world.time += slow_s

    world.late_faults[slow, "node1"] = slowly
    checked(world).exec()
    before = world.calls[: world.calls.index(("copy_memory", "node1"))]
    armed = max(n for n, call in enumerate(before) if call[0] == "arm_guard")
    opened = max(n for n, call in enumerate(before) if call[0] == "set_autostart")
    for node in NODES:
        asked = [n for n, call in enumerate(before) if call == ("renew_token", node) and n > armed]
        assert ["opening" if n < opened else "copy" for n in asked] == renewed


@pytest.mark.parametrize("slow", ["allow_two_primaries", "set_autostart"])
def test_without_a_guard_that_acknowledges_no_copy_begins(slow: str) -> None:
    world = World()

    def late_and_unguarded() -> None:
        world.time += 5
        world.guards.clear()

    world.late_faults[slow, "node1"] = late_and_unguarded
    with pytest.raises(MoveFailed) as caught:
        checked(world).exec()
    assert caught.value.code is Code.GUARD_LOST
    assert ("copy_memory", "node1") not in world.calls
    assert list(world.violations()) == []


def test_a_move_without_guards_arms_none() -> None:
    world = World()
    checked(world, options=Options(guard=False)).exec()
    assert "arm_guard" not in {method for method, _ in world.calls}
    assert list(world.violations()) == []


@pytest.mark.parametrize(
    ("world", "orders"),
    [
        (World(), {"node1": False, "node2": True}),
        (
            World(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")}),
            {"node1": False, "node2": False},
        ),
        # The other guard's word is that it forbids two primaries: where they stay allowed, it has none.
        (World(two_primaries=True, for_good=True, protocol="C"), {"node1": False, "node2": False}),
    ],
    ids=["ran", "stood", "two primaries for good"],
)
def test_only_the_target_s_guard_may_let_a_guest_run_and_only_one_that_ran(
    world: World, orders: dict[str, bool]
) -> None:
    checked(world).exec()
    assert world.orders == orders


def with_renewing(world: World) -> tuple[Context, Renewing]:
    renewing, context = Renewing(), world.context()
    return renewing.of(context), renewing


def test_the_token_is_renewed_until_right_before_it_is_removed() -> None:
    world = World()
    context, renewing = with_renewing(world)
    stories: list[list[str]] = []
    for method in ("copy_memory", "disarm_guard", "drop_token"):
        world.faults[method, "node1"] = lambda: stories.append(list(renewing.story))
    checked(world, context).exec()
    assert stories == [["began"], ["began"], ["began", "ended"]]


def test_the_token_of_a_move_whose_outcome_is_unknown_is_left_to_run_out() -> None:
    world = World()
    context, renewing = with_renewing(world)
    world.faults["observe", "node1"] = lambda: unreachable("node1")() if len(world.domains) == 2 else None
    with pytest.raises(OutcomeUnknown):
        checked(world, context).exec()
    assert renewing.story == ["began", "ended"]
    # It tells a cleanup what the move has seen.
    assert [token.errand is not None and token.errand.handed_over for token in world.tokens.values()] == [True, True]


def test_while_the_guards_are_disarmed_the_token_does_not_wait_for_them() -> None:
    world = World()
    context, renewing = with_renewing(world)
    guarded: list[bool] = []

    def renew() -> None:
        renewing.call()
        guarded.append(world.tokens["node2"].guarded)

    world.faults["disarm_guard", "node2"] = renew
    checked(world, context).exec()
    assert guarded == [False]


def test_a_copy_ends_when_the_token_is_not_acknowledged_any_more() -> None:
    world = World(looks=100)
    world.on_look = lambda _left: world.tokens.pop("node2", None)  # type: ignore[assignment]
    context, _ = with_renewing(world)
    with pytest.raises(LvmigrateError):
        checked(world, context, Options(poll_s=1.0)).exec()
    assert world.abort_asked


def test_two_short_gaps_of_the_watch_are_no_long_one() -> None:
    world = World(looks=60)
    context, renewing = with_renewing(world)

    def look(left: int) -> None:
        renewing.call()
        world.unwatched = left // 10 in (2, 4)

    world.on_look = look
    checked(world, context, Options(poll_s=1.0)).exec()
    assert world.running() == ["node2"]


# Being asked to stop.


@pytest.mark.parametrize(
    ("method", "never"),
    [
        ("take_token", "arm_guard"),
        ("watch", "arm_guard"),
        ("arm_guard", "allow_two_primaries"),
        ("promote", "set_autostart"),
    ],
)
def test_asked_to_stop_it_begins_nothing_more(method: str, never: str) -> None:
    world, cancel = World(), threading.Event()
    for node in NODES:
        world.late_faults[method, node] = cancel.set
    with pytest.raises(MoveAborted):
        checked(world, world.context(cancel=cancel)).exec()
    assert never not in {name for name, _ in world.calls}
    assert list(world.violations()) == []


def test_asked_to_stop_it_waits_no_longer_for_the_disks() -> None:
    world, cancel = World(replication=ReplicationState.SYNC_SOURCE), threading.Event()

    def listen(progress: StepProgress) -> None:
        if progress.sync is not None:
            cancel.set()

    with pytest.raises(MoveAborted):
        checked(world, world.context(cancel=cancel, on_progress=listen)).exec()
    assert list(world.violations()) == []


@pytest.mark.parametrize("post_copy", [False, True])
def test_a_wait_that_cannot_be_ended_by_asking_again_is_not(
    monkeypatch: pytest.MonkeyPatch,
    post_copy: bool,  # noqa: FBT001
) -> None:
    """It would come back at once for as long as the copy takes."""
    world, cancel = World(looks=10, stubborn=True), threading.Event()
    waits: list[bool] = []
    wait = FakeCopy.wait

    def noted(copy: FakeCopy, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:
        waits.append(cancel is not None)
        return wait(copy, timeout_s, cancel=cancel)

    def look(left: int) -> None:
        if left == 5:
            if post_copy:
                world.listener("node1", "suspended post-copy")
            cancel.set()

    monkeypatch.setattr(FakeCopy, "wait", noted)
    world.on_look = look
    tasklet = checked(world, world.context(cancel=cancel), Options(policy=convergence.POST_COPY))
    if post_copy:
        tasklet.exec()
    else:
        with pytest.raises(MoveAborted):
            tasklet.exec()
    assert waits[:5] == [True] * 5
    assert not any(waits[5:])


def test_asked_to_stop_too_late_it_says_so() -> None:
    cancel = threading.Event()

    def arrive(world: World) -> CopyEnd:
        cancel.set()
        world.arrive()
        return FAILED

    world = World(ending=arrive)
    report = checked(world, world.context(cancel=cancel)).exec()
    assert report.target == "node2"
    assert any("too late to stop" in moment.what for moment in report.timeline)


# What was seen once is not forgotten, and what is not proved is not undone.


def test_a_guest_that_was_proved_to_have_stayed_is_not_doubted_again() -> None:
    world = World(ending=lambda _world: FAILED)

    def looked() -> None:
        if ("copy_memory", "node1") in world.calls:
            after = world.calls[world.calls.index(("copy_memory", "node1")) :]
            if after.count(("domain", "node2")) > 1:
                unreachable("node2")()

    world.faults["domain", "node2"] = looked
    with pytest.raises(MoveFailed):
        checked(world).exec()
    assert not world.two_primaries
    assert world.roles["node2"] is Role.SECONDARY


def test_a_copy_that_cannot_be_stopped_after_a_defect_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defect(_copy: FakeCopy) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeCopy, "progress", defect)
    world = World(looks=10_000, stubborn=True)
    with pytest.raises(OutcomeUnknown, match="may have arrived on node2"):
        checked(world).exec()
    assert world.two_primaries


def test_a_call_that_succeeded_is_word_enough_that_it_was_handed_over() -> None:
    def arrive(world: World) -> CopyEnd:
        world.arrive()
        world.set("node1", reason="unknown")  # its daemon was restarted
        return CopyEnd(ok=True)

    world = World(ending=arrive)
    checked(world).exec()
    assert world.running() == ["node2"]


def test_so_is_an_event_where_the_call_failed() -> None:
    def arrive(world: World) -> CopyEnd:
        world.listener("node1", "stopped migrated")
        world.arrive()
        world.set("node1", reason="unknown")
        return FAILED

    world = World(ending=arrive)
    checked(world).exec()
    assert world.running() == ["node2"]


@pytest.mark.parametrize(
    ("node", "event"), [("node2", "stopped migrated"), ("node1", "stopped crashed")], ids=["of the target", "a crash"]
)
def test_no_other_event_is(node: str, event: str) -> None:
    def arrive(world: World) -> CopyEnd:
        world.listener(node, event)
        world.arrive()
        world.set("node1", reason="unknown")
        return FAILED

    world = World(ending=arrive)
    with pytest.raises(OutcomeUnknown, match="may have run on at node1"):
        checked(world).exec()
    assert world.running() == []


@pytest.mark.parametrize(("event", "runs"), [("suspended paused", False), ("resumed unpaused", True)])
def test_a_guest_arrives_as_an_operator_wanted_it_during_the_copy(event: str, runs: bool) -> None:  # noqa: FBT001
    def arrive(world: World) -> CopyEnd:
        world.listener("node2", "resumed unpaused" if not runs else "suspended paused")  # no operator's
        world.listener("node1", event)
        return world.arrive()

    state = {"state": DomainState.PAUSED, "reason": "user"} if runs else {}
    world = World(domains={"node1": guest("node1", **state)}, ending=arrive)
    report = checked(world).exec()
    assert report.running is runs
    assert world.domains["node2"].state is (DomainState.RUNNING if runs else DomainState.PAUSED)


def test_the_downtime_is_between_the_events_of_both_nodes() -> None:
    def arrive(world: World) -> CopyEnd:
        world.listener("node1", "suspended migrated")
        world.time += 2.0
        return world.arrive()

    world = World(ending=arrive)

    def resumed() -> None:
        world.time += 1.0
        world.listener("node2", "resumed unpaused")
        world.time += 10.0

    world.faults["resume", "node2"] = resumed
    report = checked(world).exec()
    assert any("replication never left Established" in moment.what for moment in report.timeline)
    assert report.downtime_s == pytest.approx(3.0)
    assert 13.0 <= report.two_primaries_allowed_s < 40.0


# Past the point of no return.


@pytest.mark.parametrize("event", ["suspended paused", "suspended i/o error"])
def test_a_pause_during_the_copy_is_no_downtime_of_the_move(event: str) -> None:
    def look(left: int) -> None:
        if left:
            world.listener("node1", event)
            world.listener("node1", "resumed unpaused")

    world = World(looks=20, on_look=look)
    assert checked(world).exec().downtime_s < 1.0


def test_where_the_target_has_no_definition_the_source_keeps_its_own() -> None:
    def arrive(world: World) -> CopyEnd:
        end = world.arrive()
        world.set("node2", persistent=False)
        return end

    world = World(ending=arrive)
    with pytest.raises(LeftBehind) as caught:
        checked(world).exec()
    assert "is not defined on node2" in caught.value.leftovers[0]
    assert set(world.domains) == set(NODES)


def test_disks_that_are_not_in_step_after_the_move_are_said() -> None:
    world = World()

    def outdate() -> None:
        if ("demote", "node1") in world.calls:
            world.disks["node1"] = DiskState.OUTDATED

    world.late_faults["restore_options", "node2"] = outdate
    with pytest.raises(LeftBehind) as caught:
        checked(world).exec()
    assert "not in step and Primary on node2 alone" in caught.value.leftovers[0]
    assert set(world.domains) == set(NODES)


def test_what_is_closed_is_not_said_to_be_open() -> None:
    world = World()

    def silent() -> None:
        if ("restore_options", "node1") in world.calls and ("restore_options", "node2") in world.calls:
            unreachable("node1")()

    world.faults["domain", "node1"] = silent
    with pytest.raises(OutcomeUnknown) as caught:
        checked(world).exec()
    assert not [word for word in caught.value.known if "two primaries" in word]


def test_a_guest_that_dies_on_its_arrival_leaves_nothing_open() -> None:
    """Before the point of no return: everything is undone for it."""
    world = World()
    world.late_faults["resume", "node2"] = lambda: world.set("node2", state=DomainState.OFF)
    with pytest.raises(GuestLost):
        checked(world).exec()
    assert (world.two_primaries, world.tokens, world.guards) == (False, {}, {})
    assert set(world.domains) == {"node1"}


def test_a_guest_that_ran_on_the_target_and_died_there_is_not_sent_back_to_the_older_disk() -> None:
    world = World()

    def die() -> None:
        world.set("node2", state=DomainState.OFF)
        world.lost_a_write()
        world.connected = False

    world.late_faults["resume", "node2"] = die
    with pytest.raises(GuestLost) as caught:
        checked(world).exec()
    assert "It ran on node2 last" in caught.value.hint
    assert "start it there only" in caught.value.hint
    assert "on node1" not in caught.value.hint.partition("start it")[2]
    assert not world.domains["node1"].autostart, "as it boots, the source would start it from the older disk"
    assert "node2" in world.domains
    assert world.tokens, "the record for a cleanup"


@pytest.mark.parametrize(
    ("options", "handed_over", "where"),
    [
        (Options(switch=Switch.FAST), True, "node2"),
        (Options(switch=Switch.FAST), False, "node1"),
        (Options(switch=Switch.STRICT), True, "node1"),
        (Options(switch=Switch.STRICT, policy=convergence.POST_COPY), True, "node2"),
    ],
    ids=["ran there by itself", "never went over", "never ran there", "post-copied"],
)
def test_a_lost_guest_is_to_be_started_where_it_wrote_last(options: Options, where: str, *, handed_over: bool) -> None:
    def ending(world: World) -> CopyEnd:
        end = world.arrive() if handed_over else FAILED
        for node in world.domains:
            world.set(node, state=DomainState.OFF)
        world.openers = dict.fromkeys(NODES, 0)
        world.lost_a_write()
        world.connected = False
        return end

    world, asked = World(ending=ending), threading.Event()
    if options.policy is convergence.POST_COPY:
        asked.set()
        world.late_faults["start_post_copy", "node1"] = lambda: world.listener("node1", "suspended post-copy")
    with pytest.raises(GuestLost) as caught:
        checked(world, world.context(post_copy=asked), options).exec()
    assert ("It ran on node2 last" in caught.value.hint) is (where == "node2")
    assert ("start it on node1 only" in caught.value.hint) is (where == "node1")
    assert world.domains["node1"].autostart is (where == "node1")


def test_a_guest_that_dies_after_the_point_of_no_return_is_led_back_by_a_cleanup() -> None:
    world = World()

    def die() -> None:
        if world.roles["node1"] is Role.SECONDARY:
            world.set("node2", state=DomainState.OFF)
            world.openers["node2"] = 0

    world.late_faults["restore_options", "node2"] = die
    one_after_the_other = in_turn.set(True)  # it is seen alone first
    try:
        with pytest.raises(GuestLost) as caught:
            checked(world).exec()
    finally:
        in_turn.reset(one_after_the_other)
    assert "`lvmigrate cleanup web1` closes what is open" in caught.value.hint
    world.left_s = -10.0
    cleanup = CleanupInstance(world.context(), "web1")
    cleanup.check_prereq()
    with pytest.raises(GuestLost, match="runs neither"):
        cleanup.exec()
    assert set(world.roles.values()) == {Role.SECONDARY}
    assert (world.tokens, world.guards, world.two_primaries) == ({}, {}, False)
    assert {node: domain.autostart for node, domain in world.domains.items()} == {"node1": True}


# A target that starts by itself.


def test_one_that_runs_by_itself_is_not_to_be_ended_for_the_source_s_disk() -> None:
    """What it has written since it arrived is on the target alone."""

    def arrive(world: World) -> CopyEnd:
        world.lost_a_write()
        world.connected = False
        return world.arrive(DomainState.RUNNING)

    with pytest.raises(OutcomeUnknown) as caught:
        checked(World(ending=arrive), options=Options(switch=Switch.FAST)).exec()
    assert "waits" not in caught.value.sentence + caught.value.hint
    for command in ("virsh destroy", "--discard-my-data", "virsh start"):
        assert command not in caught.value.hint
    assert "on node2 only" in caught.value.hint


@pytest.mark.parametrize(
    "options", [Options(switch=Switch.FAST), Options(policy=convergence.POST_COPY)], ids=["fast", "for a post-copy"]
)
def test_where_the_target_starts_by_itself_an_older_copy_is_ended_while_the_call_hangs(options: Options) -> None:
    world = World(looks=20)

    def look(left: int) -> None:
        if left == 15:
            world.domains["node2"] = guest("node2", autostart=False)
            world.set("node1", state=DomainState.PAUSED, reason="migration", job=JobKind.OUTGOING)

    def end(world: World) -> CopyEnd:
        assert world.domains["node1"].state is DomainState.OFF
        world.set("node1", job=JobKind.NONE, reason="migrated")
        world.openers.update(node1=0, node2=1)
        return FAILED

    world.on_look, world.ending = look, end
    checked(world, options=options).exec()
    assert ("discard", "node1") in world.calls
    assert world.running() == ["node2"]


def test_a_post_copy_that_somebody_else_began_is_not_stopped() -> None:
    cancel = threading.Event()
    world = World(looks=20)

    def look(left: int) -> None:
        if left == 15:
            world.listener("node1", "suspended post-copy")
            cancel.set()

    world.on_look = look
    report = checked(world, world.context(cancel=cancel), Options(policy=convergence.POST_COPY)).exec()
    assert report.post_copy
    assert not world.abort_asked


# Without replicated disks.


def test_on_shared_storage_nothing_is_said_of_two_primaries_nor_of_replication() -> None:
    image = Reach(what="NFS filer:/vms web1.img (inode 7)")
    world = World(replicated=False, reached=dict.fromkeys(NODES, image))
    report = checked(world).exec()
    assert report.two_primaries_allowed_s == 0.0
    assert not [moment for moment in report.timeline if "replication" in moment.what]
    world = World(replicated=False, reached=dict.fromkeys(NODES, image))
    world.faults["domain", "node1"] = lambda: unreachable("node1")() if len(world.domains) == 2 else None
    with pytest.raises(OutcomeUnknown) as caught:
        checked(world).exec()
    assert not [word for word in caught.value.known if "two primaries" in word]


def test_on_shared_storage_there_are_no_copies_to_compare() -> None:
    image = Reach(what="NFS filer:/vms web1.img (inode 7)")
    world = World(replicated=False, reached=dict.fromkeys(NODES, image))
    with pytest.raises(Refused) as caught:
        checked(world, options=Options(verify_disks=True))
    (finding,) = caught.value.findings
    assert finding.code is Code.OPTION_UNSUPPORTED
    assert "no copies to compare" in finding.sentence


# Between the checks and the lock.


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.domains.clear(),
        lambda world: world.domains.update(node2=guest("node2")),
        lambda world: world.roles.update(node2=Role.PRIMARY),
        lambda world: world.set("node1", disks=(*world.domains["node1"].disks, LOCAL)),
    ],
    ids=["gone", "on the target too", "Primary on the target too", "with another disk"],
)
def test_what_changed_since_the_checks_ends_the_move_before_it_begins(change: Callable[[World], None]) -> None:
    world = World()
    tasklet = checked(world)
    change(world)
    with pytest.raises(LvmigrateError) as caught:
        tasklet.exec()
    assert caught.value.code is not Code.INTERNAL
    assert "changed between" in str(caught.value)
    assert "allow_two_primaries" not in {method for method, _ in world.calls}


def test_a_definition_on_the_target_from_before_is_no_hindrance() -> None:
    world = World(domains={"node1": guest("node1"), "node2": guest("node2", state=DomainState.OFF)})
    checked(world).exec()
    assert world.running() == ["node2"]
    assert list(world.violations()) == []


# Replication that breaks during the copy.


def test_a_break_is_looked_at_at_once_and_the_copy_stopped_before_libvirt_is_asked_how_far_it_is() -> None:
    order: list[str] = []

    def look(left: int) -> None:
        order.append("abort" if world.abort_asked else "look")
        if left == 3:
            world.broke.append("r0 is Connecting")
            world.told("r0 is Connecting")

    def progress(_left: int) -> None:
        order.append("progress")

    world = World(looks=4, on_look=look, progress=progress)
    with pytest.raises(MoveFailed) as caught:
        checked(world).exec()
    assert caught.value.code is Code.REPLICATION_BROKE
    assert order[:3] == ["look", "abort", "progress"]
    assert world.woken == 1
    assert not list(world.violations())


def test_what_broke_before_there_was_a_copy_is_not_overlooked() -> None:
    world = World()
    world.late_faults["copy_memory", "node1"] = lambda: world.broke.append("r0 is Connecting")
    with pytest.raises(MoveFailed):
        checked(world).exec()
    assert world.woken == 1


def test_a_change_that_breaks_nothing_disturbs_nobody() -> None:
    world = World(looks=4, on_look=lambda _left: world.told("r0/0 is 42 % done"))
    checked(world).exec()
    assert world.woken == 0


@pytest.mark.parametrize(("options", "from_here"), [(Options(), []), (Options(guard=False), ["node1", "node2"])])
def test_without_a_guard_both_nodes_shutdown_is_held_back_from_here(options: Options, from_here: list[str]) -> None:
    """Where there are guards, they do it."""
    world = World()
    seen: list[list[str]] = []
    world.faults["copy_memory", "node1"] = lambda: seen.append(sorted(world.inhibited))
    checked(world, options=options).exec()
    assert seen == [from_here]
    assert world.inhibited == []


def test_right_before_the_copy_both_nodes_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guest is now, and to hold their shutdown back: each waits until the other one was asked too."""
    world = World()
    tasklet = checked(world, options=Options(guard=False))
    both = threading.Barrier(2, timeout=10)
    inhibit, domain = FakeStorage.inhibit, FakeHypervisor.domain
    asked: list[str] = []

    @contextmanager
    def inhibiting(self: FakeStorage, node: str, token: Token) -> Iterator[None]:
        both.wait()
        with inhibit(self, node, token):
            yield

    def looking(self: FakeHypervisor, node: str, name: str) -> Domain | None:
        asked.append(node)
        if len(asked) <= len(NODES):
            both.wait()
        return domain(self, node, name)

    monkeypatch.setattr(FakeStorage, "inhibit", inhibiting)
    monkeypatch.setattr(FakeHypervisor, "domain", looking)
    tasklet.exec()
    assert list(world.violations()) == []
