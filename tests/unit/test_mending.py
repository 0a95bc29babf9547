"""A cleanup, act by act: what each thing that may be left is enough for, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import Code, GuestLost, LeftBehind, MoveAborted, OutcomeUnknown, Refused, TokenLost, UsageError
from lvmigrate.protocols import CopyEnd
from lvmigrate.replication import ConnectionOptions, DiskState, Lineage, Reach, ReplicationState, Role
from lvmigrate.report import CleanupReport
from lvmigrate.tasklet import Context
from lvmigrate.token import Errand, Guarded, Token
from tests.unit.fakes import NODES, UUID, Renewing, World, guest, refusing

ERRAND = Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False)
DEAD = Token(uuid=UUID, instance="web1", id="the dead one's", holder="they", lease_s=30, errand=ERRAND)
BEFORE = ConnectionOptions(allow_two_primaries=False, protocol=None)
ORDERS = {node: (Guarded(resource="r0", peer="node2", options=BEFORE),) for node in NODES}
#: Nothing here is asked that often: what is, does not end.
ENDLESS = 1000


def still(**changes: Any) -> World:
    """A guest at rest on node1; its tokens, where there are any, ran out."""
    values: dict[str, Any] = {"openers": {"node1": 1, "node2": 0}, "left_s": -10.0}
    return World(**values | changes)


def opened(**changes: Any) -> World:
    """What a command that was killed in mid-copy has left."""
    values: dict[str, Any] = {
        "roles": dict.fromkeys(NODES, Role.PRIMARY),
        "two_primaries": True,
        "protocol": "C",
        "tokens": dict.fromkeys(NODES, DEAD),
        "guards": dict(ORDERS),
    }
    return still(**values | changes)


def arrived(state: DomainState = DomainState.PAUSED, **changes: Any) -> World:
    domains = {
        "node1": guest("node1", state=DomainState.OFF, reason="migrated"),
        "node2": guest("node2", state=state, reason="user", autostart=False),
    }
    return opened(**{"domains": domains, "openers": {"node1": 0, "node2": 1}} | changes)


def leaving(**changes: Any) -> World:
    """A copy that outlived its command."""
    return opened(**{"domains": {"node1": guest("node1", job=JobKind.OUTGOING)}, "looks": 5} | changes)


def clean(world: World, context: Context | None = None, *, abort: bool = False) -> CleanupReport:
    tasklet = CleanupInstance(context or world.context(), "web1", abort=abort)
    tasklet.check_prereq()
    return tasklet.exec()


def methods(world: World) -> set[str]:
    return {method for method, _ in world.calls}


def waits_for(world: World, method: str, happens: Callable[[], None]) -> None:
    def look() -> None:
        assert world.calls.count((method, "node1")) < ENDLESS
        happens()

    world.faults[method, "node1"] = look


def test_exec_needs_the_checks() -> None:
    with pytest.raises(UsageError):
        CleanupInstance(still().context(), "web1").exec()


@pytest.mark.parametrize(
    "left",
    [
        {"two_primaries": True},
        {"guards": dict(ORDERS)},
        {"tokens": dict.fromkeys(NODES, DEAD)},
        {"roles": dict.fromkeys(NODES, Role.PRIMARY), "two_primaries": True},
        {
            "domains": {
                "node1": guest("node1", state=DomainState.OFF),
                "node2": guest("node2", left_on="node1"),
            },
            "roles": {"node1": Role.SECONDARY, "node2": Role.PRIMARY},
            "openers": {"node1": 0, "node2": 1},
        },
    ],
    ids=["two primaries", "guards", "tokens", "a Primary", "a definition"],
)
def test_one_thing_that_is_left_is_enough(left: dict[str, Any]) -> None:
    world = still(**left)
    report = clean(world)
    assert list(world.violations()) == []
    assert clean(world).acts == ()
    assert bool(report.acts) is not ("guards" in left or "tokens" in left)


def test_so_is_a_copy_alone() -> None:
    domains = {"node1": guest("node1"), "node2": guest("node2", state=DomainState.PAUSED, reason="user")}
    world = still(domains=domains)
    clean(world)
    assert world.domains["node2"].state is DomainState.OFF
    assert world.running() == ["node1"]


@pytest.mark.parametrize(
    ("world", "abort", "words"),
    [
        (leaving(), True, "end the copy that is under way"),
        (leaving(), False, "watch"),
        (arrived(), True, "let it run"),
    ],
    ids=["a copy to be ended", "a copy", "no copy"],
)
def test_the_plan_says_what_becomes_of_the_copy(world: World, abort: bool, words: str) -> None:  # noqa: FBT001
    plan = CleanupInstance(world.context(), "web1", abort=abort).check_prereq()
    assert words in plan.acts[0]
    assert plan.acts[0] == (words if words.startswith("end") else plan.ruling.action.value)
    for what in ("r0: ", "disarm the guard on node1", "remove the token on node2"):
        assert any(act.startswith(what) for act in plan.acts) or (what == "r0: " and not plan.closing)


def test_a_rehearsals_copy_is_ended_unasked() -> None:
    rehearsed = dataclasses.replace(DEAD, errand=dataclasses.replace(ERRAND, rehearsal=True))
    world = leaving(tokens=dict.fromkeys(NODES, rehearsed))
    tasklet = CleanupInstance(world.context(), "web1")
    assert tasklet.check_prereq().acts[0] == "end the copy that is under way"
    world.on_look = lambda _left: world.set("node1", job=JobKind.NONE) if world.abort_asked else None
    assert tasklet.exec().node == "node1"
    assert world.abort_asked


# The token.


def held_on_node2(lasts: Callable[[float], float]) -> World:
    """Somebody's token on node2 alone; ``lasts``: how long, by the time that has passed."""
    world = opened(tokens={"node2": DEAD}, left_s=20.0)
    begin = world.time

    def look() -> None:
        assert world.calls.count(("take_token", "node2")) < ENDLESS
        world.left_s = lasts(world.time - begin)

    world.faults["take_token", "node2"] = look
    return world


def test_a_token_that_runs_out_is_waited_for() -> None:
    world = held_on_node2(lambda passed: 20.0 - passed)
    assert clean(world).node == "node1"
    assert list(world.violations()) == []


def test_a_token_that_never_runs_out_is_not_waited_for_for_ever() -> None:
    """Its deadline cannot be read: no guard acts on it either."""
    world = still(tokens={"node2": DEAD}, left_s=math.inf)
    waits_for(world, "take_token", lambda: None)
    with pytest.raises(Refused) as caught:
        clean(world)
    (finding,) = caught.value.findings
    assert finding.code is Code.LOCKED
    assert f"/run/lvmigrate/{UUID}.token` on node2" in finding.hint
    assert world.tokens == {"node2": DEAD}


def test_one_that_is_renewed_is_left_alone_and_ours_is_removed() -> None:
    world = held_on_node2(lambda passed: 20.0 - passed if passed < 5 else 30.0)
    with pytest.raises(Refused) as caught:
        clean(world)
    assert caught.value.code is Code.LOCKED
    assert world.tokens == {"node2": DEAD}


def test_asked_to_stop_while_it_waits_it_leaves_no_token() -> None:
    world, cancel = held_on_node2(lambda passed: 20.0), threading.Event()
    cancel.set()
    with pytest.raises(MoveAborted):
        clean(world, world.context(cancel=cancel))
    assert world.tokens == {"node2": DEAD}


def test_whoever_lost_the_token_closes_nothing_more_and_says_so() -> None:
    world = opened()

    def taken() -> None:
        world.tokens = dict.fromkeys(NODES, dataclasses.replace(DEAD, id="theirs"))

    world.faults["demote", "node2"] = taken
    with pytest.raises(TokenLost):
        clean(world)
    assert "restore_options" not in methods(world)


def test_whoever_lost_the_token_forgets_no_definition_of_a_lost_guest() -> None:
    off = {node: guest(node, state=DomainState.OFF, autostart=False) for node in NODES}
    world = opened(domains=off, openers=dict.fromkeys(NODES, 0))
    waits_for(world, "disarm_guard", lambda: None)
    taken = dataclasses.replace(DEAD, id="theirs", holder="somebody")
    world.late_faults["restore_options", "node2"] = lambda: world.tokens.update(dict.fromkeys(NODES, taken))
    with pytest.raises(TokenLost):
        clean(world)
    assert not {"undefine", "set_autostart"} & methods(world)


def test_of_a_lost_guest_without_an_errand_nothing_is_put_back() -> None:
    off = {node: guest(node, state=DomainState.OFF, autostart=False) for node in NODES}
    without = dataclasses.replace(DEAD, errand=None)
    world = opened(domains=off, openers=dict.fromkeys(NODES, 0), tokens=dict.fromkeys(NODES, without))
    with pytest.raises(GuestLost):
        clean(world)
    assert not {"undefine", "set_autostart"} & methods(world)
    assert world.tokens == {}


def test_whoever_lost_the_token_forgets_no_definition() -> None:
    world = arrived(DomainState.RUNNING)

    def taken() -> None:
        if ("restore_options", "node1") in world.calls and ("restore_options", "node2") in world.calls:
            world.tokens = dict.fromkeys(NODES, dataclasses.replace(DEAD, id="theirs"))

    world.late_faults["two_primaries", "node2"] = taken
    with pytest.raises(TokenLost):
        clean(world)
    assert set(world.domains) == set(NODES)


def test_the_token_is_renewed_until_right_before_it_is_removed() -> None:
    world = opened()
    renewing = Renewing()
    stories: list[list[str]] = []
    for method in ("demote", "disarm_guard", "drop_token"):
        world.faults[method, "node2"] = lambda: stories.append(list(renewing.story))
    clean(world, renewing.of(world.context()))
    assert stories == [["began"], ["began"], ["began", "ended"]]


def test_what_is_held_for_a_person_is_left_to_run_out() -> None:
    world = opened(domains={node: guest(node) for node in NODES})
    renewing = Renewing()
    with pytest.raises(OutcomeUnknown):
        clean(world, renewing.of(world.context()))
    assert renewing.story == ["began", "ended"]


# A copy that goes on.


def test_a_copy_is_guarded_again_by_guards_that_live() -> None:
    for killed in (set(), {"node2"}, set(NODES)):
        world = leaving(killed_guards=set(killed))
        clean(world)
        assert {node for method, node in world.calls if method == "arm_guard"} == killed
        assert world.orders == {node: node == "node2" for node in killed}
        assert list(world.violations()) == []


def test_guards_that_died_while_the_token_was_waited_for_are_none() -> None:
    world = leaving()
    world.faults["take_token", "node1"] = world.guards.clear
    clean(world)
    assert {node for method, node in world.calls if method == "arm_guard"} == set(NODES)


def test_renewals_wait_for_the_guards_only_where_both_nodes_have_one() -> None:
    for trouble, guarded in ((None, True), ("there is no systemd", False)):
        world = leaving(guards={}, guard_trouble=trouble)
        renewing = Renewing()
        seen: list[bool] = []

        def look(_left: int, world: World = world, renewing: Renewing = renewing, seen: list[bool] = seen) -> None:
            renewing.call()
            seen.append(world.tokens["node1"].guarded)

        world.on_look = look
        clean(world, renewing.of(world.context()))
        assert set(seen) == {guarded}
        assert bool(world.orders) is guarded


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": dict.fromkeys(NODES, dataclasses.replace(DEAD, errand=dataclasses.replace(ERRAND, ran=False)))},
        {"for_good": True},
    ],
    ids=["it stood", "two primaries for good"],
)
def test_a_guard_may_not_let_run_what_stood_or_what_nobody_forbids(changes: dict[str, Any]) -> None:
    world = leaving(guards={}, **changes)
    clean(world)
    assert world.orders == dict.fromkeys(NODES, False)


def test_while_the_guards_are_disarmed_the_token_does_not_wait_for_them() -> None:
    world = leaving()
    renewing = Renewing()
    guarded: list[bool] = []

    def renew() -> None:
        renewing.call()
        guarded.append(world.tokens["node2"].guarded)

    world.faults["disarm_guard", "node2"] = renew
    clean(world, renewing.of(world.context()))
    assert guarded == [False]


def test_on_shared_storage_there_is_nothing_to_guard() -> None:
    image = Reach(what="NFS filer:/vms web1.img (inode 7)")
    world = leaving(guards={}, replicated=False, reached=dict.fromkeys(NODES, image))
    clean(world)
    assert "arm_guard" not in methods(world)


def test_a_copy_is_ended_once_it_is_not_whole_and_that_is_said_once() -> None:
    world = leaving(looks=10, stubborn=True)

    def look(left: int) -> None:
        if left == 7:
            world.broke.append("r0 is not connected")
        if world.abort_asked:
            world.set("node1", job=JobKind.NONE)

    world.on_look = look
    report = clean(world)
    assert world.abort_asked
    assert sum("ended that copy: replication is not whole" in act for act in report.acts) == 1


def test_a_post_copy_is_not_ended_even_if_that_is_asked_for() -> None:
    world = leaving(looks=10)
    world.set("node1", state=DomainState.PAUSED, reason="post-copy")
    world.domains["node2"] = guest("node2", reason="post-copy", job=JobKind.INCOMING, autostart=False)

    def end(world: World) -> CopyEnd:
        world.set("node1", state=DomainState.OFF, reason="migrated", job=JobKind.NONE)
        world.set("node2", reason="migrated", job=JobKind.NONE)
        world.openers.update(node1=0, node2=1)
        return CopyEnd(ok=True)

    world.ending = end
    assert clean(world, abort=True).node == "node2"
    assert not world.abort_asked


# A guest that has arrived.


def test_a_second_copy_beside_the_one_that_was_let_run_is_suspended() -> None:
    world = arrived()
    world.late_faults["resume", "node2"] = lambda: world.set("node1", state=DomainState.RUNNING)
    with pytest.raises(OutcomeUnknown, match="suspended on both"):
        clean(world)
    assert world.running() == []


def dying_at(call: str, node: str) -> World:
    """A guest that has arrived and runs, whose process ends with that call."""
    world = arrived(DomainState.RUNNING)

    def die() -> None:
        world.set("node2", state=DomainState.OFF)
        world.openers["node2"] = 0

    world.late_faults[call, node] = die
    return world


def test_a_guest_that_dies_while_it_is_closed_around_leaves_nothing_open() -> None:
    world = dying_at("restore_options", "node2")
    with pytest.raises(GuestLost):
        clean(world)
    assert set(world.roles.values()) == {Role.SECONDARY}
    assert (world.two_primaries, world.tokens, world.guards) == (False, {}, {})


def test_a_guest_that_dies_while_its_definition_is_moved_leaves_no_primary() -> None:
    world = dying_at("undefine", "node1")
    with pytest.raises(GuestLost):
        clean(world)
    assert set(world.roles.values()) == {Role.SECONDARY}


def test_a_guest_that_waits_behind_a_connection_that_is_given_up_runs_once_it_is_back() -> None:
    for source in (Role.PRIMARY, Role.SECONDARY):
        world = arrived(
            roles={"node1": source, "node2": Role.PRIMARY},
            connected=False,
            standalone=True,
            broke=["r0 is StandAlone"],
        )
        assert clean(world).node == "node2"
        assert world.calls.index(("reconnect", "node2")) < world.calls.index(("resume", "node2"))
        assert list(world.violations()) == []


def test_a_guest_that_waits_for_its_connection_is_let_run_when_it_is_back_and_not_before() -> None:
    for back_after_s in (50.0, float("inf")):
        world = arrived(connected=False, broke=["r0 is Connecting"])
        begin = world.time

        def look(world: World = world, begin: float = begin, back_after_s: float = back_after_s) -> None:
            world.connected = world.time >= begin + back_after_s

        waits_for(world, "observe", look)
        if back_after_s < 60:
            clean(world)
            assert list(world.violations()) == []
        else:
            with pytest.raises(OutcomeUnknown, match="replication was not seen whole"):
                clean(world)
            assert world.running() == []


def test_a_guest_that_waits_is_not_let_run_if_its_connection_does_not_last() -> None:
    world = arrived(connected=False, standalone=True)

    def part() -> None:
        world.connected = False

    waits_for(world, "observe", part)
    with pytest.raises(OutcomeUnknown, match="replication was not seen whole"):
        clean(world)
    assert world.calls.count(("reconnect", "node1")) == 2
    assert world.running() == []


def test_a_guest_that_waits_is_not_connected_to_a_copy_that_has_changed_as_well() -> None:
    """What DRBD does when they meet is the operator's to configure, and may be to discard."""
    apart = {node: Lineage(current=node, earlier=("A",)) for node in NODES}
    world = arrived(connected=False, standalone=True, lineages=apart)
    with pytest.raises(OutcomeUnknown, match="replication was not seen whole"):
        clean(world)
    assert "reconnect" not in methods(world)
    assert world.running() == []


def test_a_guest_that_waits_is_not_connected_where_nobody_tells_whether_the_other_copy_has_changed() -> None:
    world = arrived(connected=False, standalone=True)

    def silent() -> None:
        assert world.calls.count(("lineages", "node1")) < ENDLESS
        refusing("node1")()

    world.faults["lineages", "node1"] = silent
    with pytest.raises(OutcomeUnknown, match="replication was not seen whole"):
        clean(world)
    assert "reconnect" not in methods(world)
    assert world.running() == []


def test_a_guest_that_dies_at_the_very_end_is_not_said_to_run() -> None:
    world = arrived(DomainState.RUNNING)
    world.late_faults["drop_token", "node2"] = lambda: world.set("node2", state=DomainState.OFF)
    with pytest.raises(GuestLost):
        clean(world)


# Disks.


def test_a_connection_is_waited_for_but_not_for_ever() -> None:
    for back_after_s in (20.0, float("inf")):
        world = still(two_primaries=True, connected=False)
        begin = world.time

        def look(world: World = world, begin: float = begin, back_after_s: float = back_after_s) -> None:
            world.connected = world.time >= begin + back_after_s

        waits_for(world, "observe", look)
        if back_after_s < 60:
            clean(world)
            assert not world.two_primaries
        else:
            with pytest.raises(LeftBehind) as caught:
                clean(world)
            assert "not connected" in str(caught.value.leftovers)
            assert world.two_primaries


def test_what_does_not_stay_connected_is_not_connected_for_ever() -> None:
    world = still(two_primaries=True, connected=False, standalone=True)

    def part() -> None:
        world.connected = False

    waits_for(world, "observe", part)
    begin = world.time
    with pytest.raises(LeftBehind) as caught:
        clean(world)
    assert "StandAlone" in str(caught.value.leftovers)
    assert world.time - begin < 30, "nothing is waited for that does not come by itself"
    assert world.calls.count(("reconnect", "node1")) == 2


def test_what_cannot_be_closed_keeps_the_token_as_the_record() -> None:
    world = opened()
    world.faults["demote", "node2"] = refusing("node2")
    with pytest.raises(LeftBehind):
        clean(world)
    assert set(world.tokens) == set(NODES)


# Definitions.


@pytest.mark.parametrize(("back", "here"), [(True, False), (False, True), (False, False)])
def test_a_guest_whose_dead_node_came_back_starts_after_a_reboot_as_before(back: bool, here: bool) -> None:  # noqa: FBT001
    world = still(
        domains={
            "node1": guest("node1", state=DomainState.OFF, autostart=back),
            "node2": guest("node2", left_on="node1", autostart=here),
        },
        roles={"node1": Role.SECONDARY, "node2": Role.PRIMARY},
        openers={"node1": 0, "node2": 1},
    )
    clean(world)
    assert set(world.domains) == {"node2"}
    assert world.domains["node2"].autostart is (back or here)


def test_a_guest_without_a_definition_needs_none() -> None:
    world = arrived(DomainState.RUNNING)
    del world.domains["node1"]
    world.set("node2", persistent=False)
    assert clean(world).node == "node2"


# Memory.


def test_a_guest_that_gave_memory_back_for_its_move_gets_it_again_wherever_it_is() -> None:
    small = dataclasses.replace(DEAD, errand=dataclasses.replace(ERRAND, memory_kib=1024))
    for home, world in (
        ("node1", opened(tokens=dict.fromkeys(NODES, small))),
        ("node2", arrived(tokens=dict.fromkeys(NODES, small))),
    ):
        world.set(home, current_kib=512)
        clean(world)
        assert world.domains[home].current_kib == 1024
    # One that gave none back is not touched.
    world = opened()
    clean(world)
    assert "set_memory" not in methods(world)


# A guest that was shut down for a failover.


def shut_down(**changes: Any) -> World:
    token = dataclasses.replace(DEAD, errand=dataclasses.replace(ERRAND, failover=True))
    values: dict[str, Any] = {
        "domains": {"node1": guest("node1", state=DomainState.OFF)},
        "roles": dict.fromkeys(NODES, Role.SECONDARY),
        "openers": dict.fromkeys(NODES, 0),
        "tokens": dict.fromkeys(NODES, token),
    }
    return still(**values | changes)


def test_a_guest_that_was_shut_down_for_a_failover_is_said_to_be_started_again() -> None:
    world = shut_down()
    plan = CleanupInstance(world.context(), "web1").check_prereq()
    assert plan.acts[0].startswith("start it on node1 again")
    assert clean(world).running
    assert world.running() == ["node1"]


def test_one_that_does_not_start_is_lost_and_its_token_stays_as_the_record() -> None:
    world = shut_down()
    world.faults["start", "node1"] = refusing("node1")
    with pytest.raises(GuestLost) as caught:
        clean(world)
    assert "`lvmigrate cleanup web1` goes on from there" in caught.value.hint
    assert set(world.tokens) == set(NODES)


@pytest.mark.parametrize(
    "changes",
    [
        {"connected": False},
        {
            "replication": ReplicationState.SYNC_SOURCE,
            "disks": {"node1": DiskState.UP_TO_DATE, "node2": DiskState.INCONSISTENT},
        },
        {"disks": {"node1": DiskState.OUTDATED, "node2": DiskState.UP_TO_DATE}},
    ],
    ids=["not connected", "behind there", "behind here"],
)
def test_one_whose_disks_are_not_in_step_is_not_started(changes: dict[str, Any]) -> None:
    world = shut_down(**changes)
    with pytest.raises(LeftBehind):
        clean(world)
    assert "start" not in methods(world)
    assert set(world.tokens) == set(NODES)
