"""Cleanup: from every kind of wreck back to one running copy and one Primary; what cannot be proved is held."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from lvmigrate.audit import audit
from lvmigrate.cleanup import CleanupInstance, CleanupPlan
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import Code, GuestLost, LeftBehind, LvmigrateError, OutcomeUnknown, Refused
from lvmigrate.replication import ConnectionOptions, Place, Role
from lvmigrate.report import CleanupReport
from lvmigrate.token import Errand, Guarded, Token
from tests.unit.fakes import NODES, UUID, World, guest, unreachable

ERRAND = Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False)


def token(**changes: Any) -> Token:
    values: dict[str, Any] = {
        "uuid": UUID,
        "instance": "web1",
        "id": "the dead one's",
        "holder": "root@gone pid 1",
        "lease_s": 30,
        "errand": ERRAND,
    }
    return Token(**values | changes)


def wreck(**changes: Any) -> World:
    """What a command that was killed in mid-copy has left: opened, guarded, its token run out."""
    orders = (Guarded(resource="r0", peer="node2", options=ConnectionOptions(allow_two_primaries=False, protocol="A")),)
    values: dict[str, Any] = {
        "domains": {"node1": guest("node1")},
        "roles": {"node1": Role.PRIMARY, "node2": Role.PRIMARY},
        "two_primaries": True,
        "protocol": "C",
        "openers": {"node1": 1, "node2": 0},
        "tokens": dict.fromkeys(NODES, token()),
        "guards": dict.fromkeys(NODES, orders),
        "left_s": -10.0,
    }
    return World(**values | changes)


def arrived(state: DomainState = DomainState.PAUSED) -> dict[str, Any]:
    here = guest("node1", state=DomainState.OFF, reason="migrated")
    there = guest("node2", state=state, reason="user", autostart=False)
    return {"domains": {"node1": here, "node2": there}, "openers": {"node1": 0, "node2": 1}}


def test_a_disk_that_is_another_volume_on_the_other_node_is_refused_and_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one replica under two names while nothing tells that it is one: DRBD 8.4 forgets a lost connection."""
    world = wreck(**arrived())
    context = world.context()
    monkeypatch.setattr(
        context.storage,
        "locate",
        lambda node, paths: dict.fromkeys(paths, Place(resource="r0" if node == "node1" else "r9", volume=0)),
    )
    tasklet = CleanupInstance(context, "web1")
    with pytest.raises(Refused) as caught:
        tasklet.check_prereq()
    (finding,) = caught.value.findings
    assert finding.code is Code.REPLICA_DIFFERS
    assert "is r0/0 on node1, but r9/0 on node2" in finding.sentence
    assert "connect them" in finding.hint
    assert world.running() == []


def clean(world: World, *, abort: bool = False) -> CleanupReport:
    tasklet = CleanupInstance(world.context(), "web1", abort=abort)
    tasklet.check_prereq()
    return tasklet.exec()


def planned(world: World) -> CleanupPlan:
    return CleanupInstance(world.context(), "web1").check_prereq()


def test_where_nothing_is_left_nothing_is_done() -> None:
    world = World(openers={"node1": 1, "node2": 0})
    report = clean(world)
    assert (report.node, report.running, report.acts) == ("node1", True, ())
    assert not {"take_token", "demote", "restore_options", "resume"} & {name for name, _ in world.calls}


def test_a_guest_that_stayed_is_closed_around() -> None:
    world = wreck()
    report = clean(world)
    assert (report.node, report.running) == ("node1", True)
    assert list(world.violations()) == []
    assert world.protocol == "A", "what the guard was told to restore is restored"
    assert clean(world).acts == ()


def test_a_guest_that_waits_on_the_target_is_let_run_and_its_definition_moves() -> None:
    world = wreck(**arrived())
    report = clean(world)
    assert (report.node, report.running) == ("node2", True)
    assert list(world.violations()) == []
    assert world.domains["node2"].autostart
    assert list(world.domains) == ["node2"]


@pytest.mark.parametrize("reason", ["crashed", "shutdown", "destroyed", "unknown"])
def test_a_guest_that_waits_is_held_if_the_source_s_may_have_run_on(reason: str) -> None:
    def wrecked(**changes: Any) -> World:
        world = wreck(**arrived(), **changes)
        world.set("node1", reason=reason)
        return world

    world = wrecked()
    with pytest.raises(OutcomeUnknown, match="may have run on at node1") as caught:
        clean(world)
    assert "virsh start web1" in caught.value.hint
    assert "resume" not in {name for name, _ in world.calls}
    # What the move itself has seen counts as well, and so does that it never ran.
    for known in (dataclasses.replace(ERRAND, handed_over=True), dataclasses.replace(ERRAND, ran=False)):
        world = wrecked(tokens=dict.fromkeys(NODES, token(errand=known)))
        assert clean(world).node == "node2"
        assert world.domains["node2"].state is (DomainState.RUNNING if known.ran else DomainState.PAUSED)


def test_a_guest_that_stood_before_stays_as_it_was() -> None:
    stood = token(errand=dataclasses.replace(ERRAND, ran=False))
    world = wreck(**arrived(), tokens=dict.fromkeys(NODES, stood))
    report = clean(world)
    assert (report.node, report.running) == ("node2", False)
    assert world.domains["node2"].state is DomainState.PAUSED
    assert "resume" not in {name for name, _ in world.calls}
    assert not world.two_primaries


def test_a_copy_that_was_left_behind_by_the_source_s_return_is_ended() -> None:
    world = wreck(
        domains={
            "node1": guest("node1"),
            "node2": guest("node2", state=DomainState.PAUSED, reason="user", autostart=False),
        }
    )
    assert clean(world).node == "node1"
    assert list(world.violations()) == []


def test_a_source_that_libvirt_left_standing_is_let_run() -> None:
    world = wreck(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="migration")})
    assert clean(world).running
    assert list(world.violations()) == []


def test_two_running_copies_are_suspended_and_a_person_must_decide() -> None:
    world = wreck(domains={node: guest(node) for node in NODES}, openers=dict.fromkeys(NODES, 1))
    with pytest.raises(OutcomeUnknown):
        clean(world)
    assert [domain.state for domain in world.domains.values()] == [DomainState.PAUSED] * 2
    with pytest.raises(OutcomeUnknown):
        clean(world)
    assert len([d for d in world.domains.values() if d.state.active]) == 2, "neither is ended without a person"


def test_a_job_that_outlived_its_command_is_adopted_and_finished() -> None:
    world = wreck(domains={"node1": guest("node1", job=JobKind.OUTGOING)}, looks=5)
    report = clean(world)
    assert ("adopt", "node1") in world.calls
    assert (report.node, report.running) == ("node2", True)
    assert list(world.violations()) == []


def test_a_job_is_aborted_if_asked() -> None:
    world = wreck(domains={"node1": guest("node1", job=JobKind.OUTGOING)}, looks=5)
    world.on_look = lambda _left: world.set("node1", job=JobKind.NONE) if world.abort_asked else None
    assert clean(world, abort=True).node == "node1"
    assert world.abort_asked
    assert list(world.violations()) == []


def test_a_living_command_is_left_alone() -> None:
    world = wreck(left_s=20.0)
    with pytest.raises(Refused) as caught:
        clean(world_that_renews(world))
    assert caught.value.code is Code.LOCKED
    assert world.two_primaries
    assert {held.id for held in world.tokens.values()} == {"the dead one's"}


def world_that_renews(world: World) -> World:
    """Whoever holds the token is alive: it never gets old."""
    lefts = iter([20.0, 10.0, 25.0])
    world.faults["take_token", "node1"] = lambda: setattr(world, "left_s", next(lefts))
    return world


def test_a_dead_commands_token_is_waited_for() -> None:
    world = wreck(left_s=20.0)
    world.faults["take_token", "node1"] = lambda: setattr(world, "left_s", world.left_s - 8)
    assert clean(world).node == "node1"
    assert list(world.violations()) == []


@pytest.mark.parametrize("held", [("node1", "node2"), ("node2",)])
def test_what_a_command_notes_in_its_last_seconds_is_known(held: tuple[str, ...]) -> None:
    """It saw the guest handed over while a cleanup waited for its token already; libvirt does not say so any more."""
    world = wreck(**arrived(), left_s=20.0, tokens=dict.fromkeys(held, token()))
    world.set("node1", reason="unknown")
    noted = token(errand=dataclasses.replace(ERRAND, handed_over=True))

    def passes() -> None:
        world.left_s -= 8
        if world.left_s > 0:
            world.tokens |= dict.fromkeys(held, noted)

    world.faults["take_token", held[0]] = passes
    seen: list[bool | None] = []
    # Before anything else: whoever finds the next one dead has to know it, too.
    world.faults["watch", "node1"] = lambda: seen.extend(
        None if held.errand is None else held.errand.handed_over for held in world.tokens.values()
    )
    assert clean(world).node == "node2"
    assert seen == [True, True]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("method", ["domain", "traces"])
def test_a_silent_node_is_no_proof(node: str, method: str) -> None:
    world = wreck()
    world.faults[method, node] = unreachable(node)
    with pytest.raises(Refused) as caught:
        clean(world)
    assert caught.value.code is Code.NODE_UNREACHABLE
    assert world.two_primaries


def test_a_guest_that_runs_nowhere_is_said_to_and_what_was_open_is_closed() -> None:
    world = wreck(
        domains={"node1": guest("node1", state=DomainState.OFF)},
        openers=dict.fromkeys(NODES, 0),
    )
    with pytest.raises(GuestLost):
        clean(world)
    assert set(world.roles.values()) == {Role.SECONDARY}
    assert not world.two_primaries
    assert not world.tokens
    assert not world.guards


def test_a_guest_that_runs_nowhere_starts_as_before_where_it_is_defined() -> None:
    off = {"state": DomainState.OFF, "autostart": False}
    for nodes, home in ((NODES, "node1"), (("node2",), "node2")):
        world = wreck(domains={n: guest(n, **off) for n in nodes}, openers=dict.fromkeys(NODES, 0))
        assert ("forget the definition on node2" in planned(world).acts) is (home == "node1")
        with pytest.raises(GuestLost) as caught:
            clean(world)
        assert f"virsh start web1` on {home}" in caught.value.hint
        assert {node: domain.autostart for node, domain in world.domains.items()} == {home: True}


def test_a_guest_that_runs_nowhere_is_said_to_if_its_definitions_cannot_be_put_in_order() -> None:
    world = wreck(
        domains={"node1": guest("node1", state=DomainState.OFF, autostart=False)},
        openers=dict.fromkeys(NODES, 0),
        faults={("set_autostart", "node1"): unreachable("node1")},
    )
    with pytest.raises(LeftBehind, match="runs neither") as caught:
        clean(world)
    assert "again" in caught.value.hint
    assert world.tokens, "the record from which the next one goes on"


def test_a_device_that_is_held_is_taken_from_nobody() -> None:
    world = wreck(openers={"node1": 1, "node2": 1})
    with pytest.raises(LeftBehind) as caught:
        clean(world)
    assert "open there" in str(caught.value.leftovers)
    assert world.roles["node2"] is Role.PRIMARY
    assert world.two_primaries
    assert world.guards, "the guards are to do it as soon as they can"


def test_without_a_token_what_is_seen_decides() -> None:
    world = wreck(tokens={}, guards={})
    assert clean(world).node == "node1"
    assert not world.two_primaries
    assert world.roles == {"node1": Role.PRIMARY, "node2": Role.SECONDARY}


def test_without_a_token_a_guest_that_waits_is_not_judged() -> None:
    domains = {"node1": guest("node1", state=DomainState.PAUSED, reason="user")}
    world = wreck(domains=domains, tokens={}, guards={})
    report = clean(world)
    assert (report.node, report.running) == ("node1", False)
    assert [warning.code for warning in report.warnings] == [Code.INSTANCE_STATE]
    assert not world.two_primaries


def test_a_guest_that_somebody_paused_in_mid_move_is_left_so_and_told_of() -> None:
    world = wreck(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")})
    report = clean(world)
    assert (report.node, report.running) == ("node1", False)
    assert [warning.code for warning in report.warnings] == [Code.INSTANCE_STATE]
    assert "was paused since" in report.warnings[0].sentence


def test_a_guest_that_was_paused_before_its_move_is_as_it_was() -> None:
    world = wreck(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")})
    world.tokens = {
        node: dataclasses.replace(token, errand=dataclasses.replace(token.errand, ran=False))
        for node, token in world.tokens.items()
        if token.errand is not None
    }
    assert clean(world).warnings == ()


def test_a_dry_run_says_the_row_and_changes_nothing() -> None:
    world = wreck(**arrived())
    plan = planned(world)
    assert plan.ruling.why == "one copy, on the target, whole and waiting"
    assert any("let it run" in act for act in plan.acts)
    assert any("forget the definition on node1" in act for act in plan.acts)
    assert {name for name, _ in world.calls} <= {
        "domain", "domains", "traces", "locate", "observe", "two_primaries", "options", "openers", "surroundings",
    }  # fmt: skip


def test_a_definition_that_is_to_be_kept_is_not_forgotten() -> None:
    world = wreck(**arrived())
    world.tokens = {
        node: dataclasses.replace(token, errand=dataclasses.replace(token.errand, keep_definition=True, autostart=True))
        for node, token in world.tokens.items()
        if token.errand is not None
    }
    world.domains["node1"] = dataclasses.replace(world.domains["node1"], autostart=True)
    acts = planned(world).acts
    assert "keep node1 from starting it when it boots" in acts
    assert not any("forget" in act for act in acts)
    clean(world)
    assert world.domains["node1"].persistent
    assert (world.domains["node1"].autostart, world.domains["node2"].autostart) == (False, True)


def test_an_unknown_guest() -> None:
    with pytest.raises(Refused) as caught:
        CleanupInstance(World().context(), "web9").check_prereq()
    assert caught.value.code is Code.INSTANCE_UNKNOWN


def test_every_error_says_what_to_do_next() -> None:
    for world in (
        wreck(left_s=20.0),
        wreck(domains={n: guest(n) for n in NODES}),
        wreck(openers=dict.fromkeys(NODES, 1)),
    ):
        with pytest.raises(LvmigrateError) as caught:
            clean(world_that_renews(world) if world.left_s > 0 else world)
        assert caught.value.hint


def test_the_audit_finds_what_a_killed_command_has_left() -> None:
    world = wreck(domains={n: guest(n) for n in NODES})
    codes = {finding.code for finding in audit(world.context()).findings}
    assert codes == {
        Code.INSTANCE_TWICE,
        Code.DUAL_PRIMARY,
        Code.PRIMARY_UNUSED,
        Code.TWO_PRIMARIES_ON,
        Code.LEFT_BEHIND,
    }


def test_a_guest_that_moves_while_it_is_looked_at_is_not_said_to_be_twice() -> None:
    world = World(openers={"node1": 1, "node2": 0})

    def moved() -> None:
        """node2 is slow to answer: node1 has by then."""
        deadline = time.monotonic() + 30
        while ("openers", "node1") not in world.calls and time.monotonic() < deadline:
            time.sleep(0.01)
        if "node1" in world.domains:
            world.arrive(DomainState.RUNNING)
            del world.domains["node1"]
            world.roles = {"node1": Role.SECONDARY, "node2": Role.PRIMARY}

    world.faults["domains", "node2"] = moved
    assert audit(world.context()).findings == ()
    assert world.running() == ["node2"]


def test_the_audit_leaves_a_living_move_alone() -> None:
    found = audit(wreck(left_s=20.0).context())
    assert found.findings == ()
    assert [held.instance for held in found.under_way] == ["web1"]


def test_the_audit_finds_nothing_where_nothing_is() -> None:
    world = World(openers={"node1": 1, "node2": 0})
    assert audit(world.context()).findings == ()


def test_a_silent_node_is_part_of_the_audit() -> None:
    world = wreck()
    world.faults["domains", "node2"] = unreachable("node2")
    found = audit(world.context())
    assert [error.code for error in found.silent] == [Code.NODE_UNREACHABLE]
    assert found.findings
