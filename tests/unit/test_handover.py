"""A failover between two nodes that answer, step by step: whom it obeys, what it waits for, what it undoes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate import survey
from lvmigrate.domain import DomainState
from lvmigrate.errors import (
    Code,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.replication import DiskState, ReplicationState, Role
from lvmigrate.report import Report
from lvmigrate.tasklet import Context
from lvmigrate.token import Token
from tests.unit.fakes import NEEDS, NODES, PREMISES, UUID, FakeHypervisor, World, guest, refusing, unreachable
from tests.unit.test_move import LOCAL, with_renewing

THEIRS = Token(uuid=UUID, instance="web1", id="theirs", holder="they", lease_s=30, errand=None)
LOOKS = {"domain", "domains", "observe", "options", "generations", "traces", "renew_token", "watch", "definition"}


def checked(world: World, context: Context | None = None, **options: Any) -> FailoverInstance:
    tasklet = FailoverInstance(context or world.context(), "web1", options=FailoverOptions(**options))
    tasklet.check_prereq()
    return tasklet


def fail_over(world: World, context: Context | None = None, **options: Any) -> Report:
    return checked(world, context, **options).exec()


def acts(world: World) -> list[str]:
    return [method for method, _ in world.calls if method not in LOOKS]


def at(world: World, method: str, node: str, happens: Callable[[], object]) -> None:
    """Let something happen right after that call, once."""
    done: list[object] = []

    def once() -> None:
        if not done:
            done.append(happens() or True)

    world.late_faults[method, node] = once


def take_over(world: World) -> None:
    world.tokens = dict.fromkeys(NODES, THEIRS)


def test_it_runs_on_the_other_node_and_nowhere_else() -> None:
    world = World()
    report = fail_over(world)
    assert (report.target, world.running()) == ("node2", ["node2"])
    assert world.roles == {"node1": Role.SECONDARY, "node2": Role.PRIMARY}
    assert (list(world.domains), world.tokens) == (["node2"], {})


@pytest.mark.parametrize(
    ("needs", "code", "path"),
    [
        ({"tpm": "emulator"}, Code.TPM, f"/var/lib/libvirt/swtpm/{UUID}"),
        ({"nvram": "/n/web1.fd", "nvram_template": "/n/VARS.fd"}, Code.NVRAM, "/n/web1.fd"),
    ],
)
def test_what_a_guest_has_in_files_beside_its_disks_is_not_left_behind(
    needs: dict[str, Any], code: Code, path: str
) -> None:
    """On its way the memory takes it along; a guest that starts anew would have an empty TPM, or no way to boot."""
    there = dataclasses.replace(
        PREMISES["node2"], programs=frozenset({"swtpm"}), paths=frozenset({needs.get("nvram_template", "/x")})
    )
    world = World(needs=dataclasses.replace(NEEDS, **needs), premises=PREMISES | {"node2": there})
    MigrateInstance(world.context(), "web1").check_prereq()
    with pytest.raises(Refused) as caught:
        checked(world)
    (found,) = caught.value.findings
    assert (found.code, path in found.sentence) == (code, True)
    assert "lvmigrate migrate" in found.hint
    world.premises["node2"] = dataclasses.replace(there, paths=there.paths | {path})
    assert checked(world).exec().target == "node2"


def test_a_node_is_asked_for_the_state_of_a_tpm() -> None:
    wanted = survey._wanted_there(guest("node1"), dataclasses.replace(NEEDS, tpm="emulator"), frozenset())
    assert f"/var/lib/libvirt/swtpm/{UUID}" in wanted.paths
    assert survey._wanted_there(guest("node1"), NEEDS, frozenset()).paths == frozenset()


# Whom it obeys.


def test_a_guest_that_somebody_works_on_by_now_is_left_to_them() -> None:
    world = World()
    tasklet = checked(world)
    world.tokens["node2"] = THEIRS
    before = len(world.calls)
    with pytest.raises(Refused) as caught:
        tasklet.exec()
    assert caught.value.code is Code.LOCKED
    assert {method for method, _ in world.calls[before:]} <= {"take_token", "drop_token", "domain", "renew_token"}
    assert world.tokens == {"node2": THEIRS}


@pytest.mark.parametrize(("method", "node"), [("define", "node2"), ("set_autostart", "node1"), ("demote", "node1")])
def test_whoever_lost_the_token_undoes_nothing(method: str, node: str) -> None:
    world = World()
    at(world, method, node, lambda: take_over(world))
    with pytest.raises(TokenLost):
        fail_over(world)
    after = acts(world)[acts(world).index(method) + 1 :]
    assert not {"start", "undefine", "drop_token", "power_off"} & set(after)
    assert world.tokens == dict.fromkeys(NODES, THEIRS)


def test_whoever_lost_the_token_while_it_fails_undoes_nothing() -> None:
    world = World()

    def fail() -> None:
        take_over(world)
        refusing("node2")()

    world.faults["define", "node2"] = fail
    with pytest.raises(TokenLost):
        fail_over(world)
    assert acts(world)[-1] == "define"


def test_before_anything_is_undone_the_token_has_another_id() -> None:
    world = World()
    ids: list[str] = []
    at(world, "set_autostart", "node1", lambda: ids.append(world.tokens["node1"].id))
    world.faults["promote", "node2"] = refusing("node2")
    world.faults["start", "node1"] = lambda: ids.append(world.tokens["node1"].id)
    with pytest.raises(MoveFailed):
        fail_over(world)
    assert len(ids) == len(set(ids)) == 2
    assert world.running() == ["node1"]


def test_the_token_is_renewed_until_right_before_it_is_removed() -> None:
    world = World()
    context, renewing = with_renewing(world)
    stories: list[list[str]] = []
    for method in ("start", "drop_token"):
        world.faults[method, "node2"] = lambda: stories.append(list(renewing.story))
    fail_over(world, context)
    assert stories == [["began"], ["began", "ended"]]
    world = World()
    tasklet = checked(world)
    tasklet.exec()
    # All of the time is ahead when the guest is asked to go down, which may take minutes.
    calls = world.calls
    assert {("renew_token", node) for node in NODES} <= set(calls[: calls.index(("shut_down", "node1"))])


def test_a_guest_is_not_started_again_while_the_other_node_says_nothing() -> None:
    world = World()

    def silent() -> None:
        if ("promote", "node2") in world.calls:
            unreachable("node2")()

    world.faults["promote", "node2"] = refusing("node2")
    world.faults["domain", "node2"] = silent
    with pytest.raises(LvmigrateError) as caught:
        fail_over(world)
    assert ("start", "node1") not in world.calls
    assert "web1 is off" in str(caught.value) + caught.value.detail + "".join(
        map(str, getattr(caught.value, "leftovers", ()))
    )
    assert world.tokens


# What it waits for.


def stubborn(world: World) -> None:
    """The guest does not listen, and is there until it is switched off."""
    world.late_faults["shut_down", "node1"] = lambda: world.set("node1", state=DomainState.RUNNING)


def test_disks_that_do_not_come_in_step_are_not_waited_for_for_ever() -> None:
    world = World()
    tasklet = checked(world, sync_timeout_s=20)
    world.replication = ReplicationState.SYNC_SOURCE
    with pytest.raises(MoveFailed) as caught:
        tasklet.exec()
    assert caught.value.code is Code.SYNC_TIMEOUT
    assert not {"define", "shut_down"} & set(acts(world))
    assert world.tokens == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.set("node1", state=DomainState.OFF),
        lambda world: world.domains.update(node2=guest("node2")),
        lambda world: world.roles.update(node2=Role.PRIMARY),
    ],
    ids=["it is off", "it runs there too", "two primaries"],
)
def test_what_is_another_by_now_is_not_shut_down(change: Callable[[World], object]) -> None:
    world = World()
    tasklet = checked(world)
    change(world)
    with pytest.raises(LvmigrateError, match="changed between the checks and the failover"):
        tasklet.exec()
    assert not {"define", "shut_down"} & set(acts(world))


def test_a_disk_that_nobody_has_checked_is_not_started_from() -> None:
    """It was attached to the definition alone: on the target, its path may lead to somebody else's disk."""
    world = World(disks_to_come=(LOCAL,))
    with pytest.raises(MoveFailed) as caught:
        fail_over(world)
    assert caught.value.code is Code.DISK_NOT_REPLICATED
    assert "/dev/sdb" in caught.value.sentence
    assert "shut_down" not in acts(world)
    assert list(world.violations()) == []


def test_a_guest_without_a_definition_by_now_is_not_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    tasklet = checked(world)
    monkeypatch.setattr(FakeHypervisor, "definition", lambda *_: None)
    with pytest.raises(MoveFailed) as caught:
        tasklet.exec()
    assert caught.value.code is Code.DEFINITION_MISSING
    assert "shut_down" not in acts(world)


@pytest.mark.parametrize(
    ("method", "node", "defined"),
    [
        ("take_token", "node2", False),
        ("watch", "node1", False),
        ("generations", "node1", False),
        ("define", "node2", True),
    ],
)
def test_asked_to_stop_it_shuts_nothing_down(method: str, node: str, *, defined: bool) -> None:
    world, cancel = World(), threading.Event()
    tasklet = checked(world, world.context(cancel=cancel))
    at(world, method, node, cancel.set)
    with pytest.raises(MoveAborted):
        tasklet.exec()
    assert ("shut_down" in acts(world), "define" in acts(world)) == (False, defined)
    assert (world.running(), list(world.domains), world.tokens) == (["node1"], ["node1"], {})
    assert world.domains["node1"].autostart


def test_whoever_waits_for_disks_is_heard() -> None:
    world, cancel = World(), threading.Event()
    tasklet = checked(world, world.context(cancel=cancel), sync_timeout_s=1e9)
    world.replication = ReplicationState.SYNC_SOURCE
    cancel.set()
    with pytest.raises(MoveAborted):
        tasklet.exec()


# What it does to the guest.


def test_a_guest_is_switched_off_only_by_whoever_has_its_token() -> None:
    world = World()
    stubborn(world)
    tasklet = checked(world, hard=True, shutdown_timeout_s=5)

    def look() -> None:
        if "shut_down" in acts(world):
            take_over(world)

    world.faults["domain", "node1"] = look
    with pytest.raises(TokenLost):
        tasklet.exec()
    assert "power_off" not in acts(world)


def test_a_guest_that_does_not_listen_is_not_switched_off_once_somebody_asked_to_stop() -> None:
    world = World()
    stubborn(world)
    cancel = threading.Event()
    tasklet = checked(world, world.context(cancel=cancel), hard=True, shutdown_timeout_s=5)

    def look() -> None:
        if "shut_down" in acts(world):
            cancel.set()

    world.faults["domain", "node1"] = look
    with pytest.raises(MoveAborted) as caught:
        tasklet.exec()
    assert "before web1 was switched off; web1 goes on at node1" in caught.value.sentence
    assert "It may still shut down" in caught.value.hint
    assert "power_off" not in acts(world)
    assert (world.running(), world.tokens) == (["node1"], {})


def test_a_guest_that_cannot_be_switched_off_is_started_nowhere() -> None:
    world = World()
    stubborn(world)
    world.late_faults["power_off", "node1"] = lambda: world.set("node1", state=DomainState.RUNNING)
    with pytest.raises(MoveFailed) as caught:
        fail_over(world, hard=True, shutdown_timeout_s=5)
    assert caught.value.code is Code.SHUTDOWN_TIMEOUT
    assert "could not be switched off" in caught.value.sentence
    assert not {"demote", "promote", "start"} & set(acts(world))
    assert world.running() == ["node1"]


def test_a_target_that_may_lack_the_last_writes_is_not_started_from() -> None:
    world = World()
    at(world, "demote", "node1", lambda: world.disks.update(node2=DiskState.OUTDATED))
    with pytest.raises(MoveFailed) as caught:
        fail_over(world)
    assert caught.value.code is Code.REPLICATION_BROKE
    assert ("start", "node2") not in world.calls


def test_a_break_before_the_disks_were_in_step_counts_for_nothing() -> None:
    """From then on replication has to stay whole, by the generations of the data where events are missing."""
    world = World()
    tasklet = checked(world)
    at(world, "watch", "node1", lambda: setattr(world, "generation", world.generation + 1))
    assert tasklet.exec().target == "node2"
    assert ("generations", "node1") in world.calls


def test_downtime_begins_with_the_event_and_not_with_the_next_look() -> None:
    """The other node's events, and others of the source's, are not the guest's end."""
    world = World()

    def goes_down() -> None:
        world.listener("node2", "stopped failed")
        world.listener("node1", "shutdown finished")
        world.time += 5
        world.listener("node1", "stopped shutdown")
        world.time += 2

    world.late_faults["shut_down", "node1"] = goes_down
    assert 2 <= fail_over(world).downtime_s < 5


def test_what_libvirt_says_meanwhile_is_in_the_report() -> None:
    world = World()
    at(world, "shut_down", "node1", lambda: world.listener("node1", "stopped shutdown"))
    said = [moment.what for moment in fail_over(world).timeline]
    assert "web1 on node1: stopped shutdown" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda world: world.disks.update(node1=DiskState.OUTDATED), "Outdated"),
        (lambda world: world.roles.update(node1=Role.PRIMARY), "r0 is Primary on node1"),
    ],
    ids=["behind", "Primary there too"],
)
def test_what_is_not_in_order_after_the_start_is_said_and_no_definition_is_forgotten(
    change: Callable[[World], object], words: str
) -> None:
    world = World()
    at(world, "start", "node2", lambda: change(world))
    with pytest.raises(LeftBehind) as caught:
        fail_over(world)
    assert words in str(caught.value) + caught.value.detail + "".join(map(str, caught.value.leftovers))
    assert world.running() == ["node2"]
    assert "node1" in world.domains
    assert not world.domains["node1"].autostart, "nothing is undone once it runs there"
    assert world.tokens


def test_whoever_lost_the_token_after_the_start_forgets_no_definition() -> None:
    world = World()
    at(world, "start", "node2", lambda: take_over(world))
    with pytest.raises(TokenLost):
        fail_over(world)
    assert "undefine" not in acts(world)
    assert set(world.domains) == set(NODES)


def test_an_outcome_that_nobody_knows_is_held() -> None:
    world = World()

    def silent() -> None:
        if ("start", "node2") in world.calls:
            unreachable("node2")()

    world.faults["start", "node2"] = unreachable("node2")
    world.faults["domain", "node2"] = silent
    with pytest.raises(OutcomeUnknown):
        fail_over(world)
    assert ("start", "node1") not in world.calls
    assert world.tokens


def test_both_nodes_shutdown_is_held_back_meanwhile() -> None:
    world = World()
    seen: list[list[str]] = []
    world.faults["shut_down", "node1"] = lambda: seen.append(sorted(world.inhibited))
    checked(world).exec()
    assert seen == [["node1", "node2"]]
    assert world.inhibited == []
