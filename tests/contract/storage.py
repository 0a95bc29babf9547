"""What every `lvmigrate.protocols.Storage` does: the same tests for the simulator and for two nodes with real DRBD.

A test module derives a class from `StorageContract` and gives it a fixture ``stage``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Protocol

import pytest

from lvmigrate.errors import Code, CommandFailed, DeviceHeld, TokenLost
from lvmigrate.lineage import Kin, kin, parted
from lvmigrate.protocols import Storage
from lvmigrate.replication import ConnectionState, DiskState, PeerVolume, ReplicationState, Role, Surroundings
from lvmigrate.token import Errand, Guarded, Token

BOTH = ("node1", "node2")
PEER = {"node1": "node2", "node2": "node1"}
PATIENCE_S = 60.0
#: DRBD begins with a megabyte a second.
VERIFIED_S = 400.0


class Stage(Protocol):
    """Two nodes with one resource, Secondary on both and in step, that nobody uses and whose options nobody has set."""

    storage: Storage
    name: str
    path: str

    def now(self) -> float:
        """Its clock."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""

    def held(self, node: str, *, write: bool) -> AbstractContextManager[None]:
        """While in the context, some process has the resource's first device open there."""

    def old(self, node: str) -> AbstractContextManager[None]:
        """While in the context, the copy there is Outdated, and has no peer; then both are connected and in step again.

        Whatever was done to it meanwhile, nothing was written to the other copy; it may be connected again already.
        """

    def for_good(self) -> AbstractContextManager[None]:
        """While in the context, two primaries are allowed on both nodes, now and by their configuration."""


@pytest.fixture
def token() -> Token:
    """Of a guest that no node knows."""
    return Token(
        uuid=str(uuid.uuid4()),
        instance="contract1",
        id=uuid.uuid4().hex,
        holder="a contract test",
        lease_s=120,
        errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
    )


@pytest.fixture
def ours(stage: Stage, token: Token) -> Iterator[Token]:
    """The token, taken on both nodes; afterwards nothing is left."""
    for node in BOTH:
        assert stage.storage.take_token(node, token) is None
    yield token
    for node in BOTH:
        stage.storage.disarm_guard(node, token)
        stage.storage.drop_token(node, token)
        traces = stage.storage.traces(node)
        assert (traces.token(token.uuid), traces.guard(token.uuid)) == (None, None)


def role(stage: Stage, node: str) -> Role:
    return stage.storage.observe(node, [stage.name])[stage.name].role


def allowed(stage: Stage) -> list[bool]:
    return [stage.storage.options(node, stage.name, PEER[node]).allow_two_primaries for node in BOTH]


def relation(stage: Stage) -> Kin:
    """What the copy on node1 is to that on node2."""
    one, two = (stage.storage.lineages(node, PEER[node], [stage.name])[f"{stage.name}/0"] for node in BOTH)
    return kin(one, two)


def until(stage: Stage, holds: Callable[[], bool], what: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = stage.now() + patience_s
    while not holds():
        assert stage.now() < deadline, what()
        stage.sleep(0.3)


class StorageContract:
    def test_what_is_seen_at_rest(self, stage: Stage) -> None:
        for node in BOTH:
            seen = stage.storage.observe(node, [stage.name, "nosuch"])
            assert set(seen) == {stage.name}
            assert seen[stage.name].in_step_with(PEER[node])
            assert role(stage, node) is Role.SECONDARY
            place = stage.storage.locate(node, [stage.path, "/dev/null"])
            assert {path: (found.resource, found.volume) for path, found in place.items()} == {
                stage.path: (stage.name, 0)
            }
            assert stage.storage.openers(node, [stage.name]) == ()
            assert stage.name not in stage.storage.two_primaries(node)
        one, two = (stage.storage.generations(node, [stage.name]) for node in BOTH)
        assert one == two
        assert f"{stage.name}/0" in one

    def test_what_is_around_at_rest(self, stage: Stage) -> None:
        found = [stage.storage.surroundings(node, [stage.name]) for node in BOTH]
        assert all(seen.version.startswith(("8.", "9.")) for seen in found)
        assert [(seen.two_primaries_for_good, seen.other_hands) for seen in found] == [(frozenset(), ())] * 2
        assert stage.storage.surroundings("node1", []) == Surroundings()

    def test_two_primaries_for_good_are_those_of_the_configuration(self, stage: Stage, ours: Token) -> None:
        storage, name = stage.storage, stage.name

        def for_good() -> list[frozenset[str]]:
            return [storage.surroundings(node, [name]).two_primaries_for_good for node in BOTH]

        before = storage.options("node1", name, "node2")
        storage.allow_two_primaries("node1", name, "node2", ours)
        assert (allowed(stage), for_good()) == ([True, True], [frozenset(), frozenset()])
        storage.restore_options("node1", name, "node2", before, ours)
        with stage.for_good():
            assert for_good() == [frozenset({name})] * 2
            assert all(name in storage.two_primaries(node) for node in BOTH)
        assert (allowed(stage), for_good()) == ([False, False], [frozenset(), frozenset()])

    def test_the_lineages_tell_which_copy_has_all_of_the_other(self, stage: Stage, ours: Token) -> None:
        storage, name = stage.storage, stage.name
        nodes = ("node1", "node2")
        assert storage.lineages("node1", "node2", []) == {}
        assert set(storage.lineages("node1", "node2", [name])) == set(storage.lineages("node2", "node1", [name]))
        assert relation(stage) is Kin.SAME
        with stage.old("node2"):
            assert relation(stage) is Kin.SAME  # no Primary has written alone
            storage.promote_by_force("node2", name, ours)
            assert relation(stage) is Kin.SECOND_NEWER
            assert parted(storage, name, nodes) is None
            storage.demote("node2", name, ours)
            assert relation(stage) is Kin.SECOND_NEWER
        assert relation(stage) is Kin.SAME
        assert parted(storage, name, nodes) is None

    def test_what_was_disconnected_is_connected_again_as_it_was(self, stage: Stage, ours: Token) -> None:
        storage, name = stage.storage, stage.name
        before = {node: storage.options(node, name, PEER[node]) for node in BOTH}
        with stage.old("node2"):

            def disks() -> set[DiskState]:
                return {volume.disk for volume in storage.observe("node2", [name])[name].volumes}

            def connection() -> ConnectionState | None:
                found = storage.observe("node2", [name])[name].towards("node1")
                return None if found is None else found.state

            # 8.4 forgets a connection that is StandAlone.
            assert connection() in {None, ConnectionState.STANDALONE}
            # It takes both ends; the one that looks for its peer is left as it is.
            for node in BOTH:
                storage.reconnect(node, name, PEER[node], before[node], ours)
            until(
                stage,
                lambda: all(storage.observe(node, [name])[name].in_step_with(PEER[node]) for node in BOTH),
                lambda: [storage.observe(node, [name]) for node in BOTH],
            )
            assert (connection(), disks()) == (ConnectionState.CONNECTED, {DiskState.UP_TO_DATE})
            assert [role(stage, node) for node in BOTH] == [Role.SECONDARY, Role.SECONDARY]
            assert {node: storage.options(node, name, PEER[node]) for node in BOTH} == before
            # What is connected is left as it is, whatever options are given.
            for node in BOTH:
                storage.reconnect(node, name, PEER[node], replace(before[node], allow_two_primaries=True), ours)
            assert allowed(stage) == [False, False]

    def test_a_token_excludes_until_it_runs_out_or_is_replaced(self, stage: Stage, token: Token) -> None:
        take, drop = stage.storage.take_token, stage.storage.drop_token
        other = replace(token, id=uuid.uuid4().hex, holder="another")
        assert take("node1", token) is None
        assert take("node1", token) is None
        first = take("node1", other)
        assert first is not None
        assert (first.id, first.holder, first.alive, first.errand) == (token.id, token.holder, True, token.errand)
        assert stage.storage.traces("node2").token(token.uuid) is None
        drop("node1", other)  # not theirs: nothing
        stage.storage.renew_token("node1", token)
        assert take("node1", other, replaces=token.id) is None
        with pytest.raises(TokenLost):
            stage.storage.renew_token("node1", token)
        stage.storage.renew_token("node1", replace(other, lease_s=1))
        unknown = replace(token, id=uuid.uuid4().hex)
        until(stage, lambda: take("node1", unknown, known="") != first, lambda: "nobody has it")
        until(stage, lambda: take("node1", token) is None, lambda: "it does not run out")
        stage.storage.renew_token("node1", replace(token, lease_s=1))

        def ran_out() -> bool:
            held = take("node1", unknown, known=other.id)
            assert held is not None
            return not held.alive

        until(stage, ran_out, lambda: "it does not run out")
        assert take("node1", unknown, known=token.id) is None
        drop("node1", unknown)
        drop("node1", token)
        with pytest.raises(TokenLost):
            stage.storage.renew_token("node1", token)

    def test_a_renewal_carries_what_the_move_has_seen(self, stage: Stage, ours: Token) -> None:
        assert ours.errand is not None
        told = replace(ours, errand=replace(ours.errand, handed_over=True))
        stage.storage.renew_token("node2", told)
        for node, errand in (("node1", ours.errand), ("node2", told.errand)):
            found = stage.storage.traces(node).token(ours.uuid)
            assert found is not None
            assert found.errand == errand

    def test_two_primaries_there_and_back(self, stage: Stage, ours: Token) -> None:
        storage, name = stage.storage, stage.name
        before = {node: storage.options(node, name, PEER[node]) for node in BOTH}
        storage.promote("node1", name, ours)
        storage.promote("node1", name, ours)
        with pytest.raises(CommandFailed):
            storage.promote("node2", name, ours)
        # The option is one for both ends of the connection.
        storage.allow_two_primaries("node1", name, "node2", ours)
        assert allowed(stage) == [True, True]
        assert all(name in storage.two_primaries(node) for node in BOTH)
        storage.allow_two_primaries("node2", name, "node1", ours)
        storage.promote("node2", name, ours, beside="node1")
        assert [role(stage, node) for node in BOTH] == [Role.PRIMARY, Role.PRIMARY]
        with pytest.raises(CommandFailed):
            storage.restore_options("node1", name, "node2", before["node1"], ours)
        assert allowed(stage) == [True, True]
        storage.demote("node1", name, ours)
        storage.demote("node1", name, ours)
        for node in BOTH:
            storage.restore_options(node, name, PEER[node], before[node], ours)
        assert {node: storage.options(node, name, PEER[node]) for node in BOTH} == before
        assert [role(stage, node) for node in BOTH] == [Role.SECONDARY, Role.PRIMARY]
        storage.demote("node2", name, ours)
        # What is connected is not connected again.
        storage.reconnect("node1", name, "node2", before["node1"], ours)
        assert storage.observe("node1", [name])[name].in_step_with("node2")

    def test_an_old_copy_is_promoted_by_force_alone_and_is_another_generation_then(
        self, stage: Stage, ours: Token
    ) -> None:
        storage, name = stage.storage, stage.name
        with pytest.raises(CommandFailed):  # beside its peer never
            storage.promote_by_force("node2", name, ours)
        with stage.old("node2"):
            kept, before = (storage.generations(node, [name]) for node in BOTH)
            with pytest.raises(CommandFailed):
                storage.promote("node2", name, ours)
            with pytest.raises(CommandFailed) as caught:
                storage.promote("node2", name, ours, beside="node1")
            assert caught.value.code is Code.NOT_CONNECTED
            assert role(stage, "node2") is Role.SECONDARY
            storage.promote_by_force("node2", name, ours)
            storage.promote_by_force("node2", name, ours)
            (volume, *_) = storage.observe("node2", [name])[name].volumes
            assert (role(stage, "node2"), volume.disk) == (Role.PRIMARY, DiskState.UP_TO_DATE)
            assert storage.generations("node2", [name]) != before
            assert storage.generations("node1", [name]) == kept
            storage.demote("node2", name, ours)
        for node in BOTH:
            assert storage.observe(node, [name])[name].in_step_with(PEER[node])

    @pytest.mark.parametrize("write", [False, True])
    def test_a_device_that_is_open_in_any_mode_is_not_demoted(self, stage: Stage, ours: Token, write: bool) -> None:  # noqa: FBT001
        stage.storage.promote("node1", stage.name, ours)
        with stage.held("node1", write=write):
            (opener,) = stage.storage.openers("node1", [stage.name])
            assert (opener.resource, opener.volume, opener.process) == (stage.name, 0, True)
            with pytest.raises(DeviceHeld) as caught:
                stage.storage.demote("node1", stage.name, ours)
            assert opener.what in caught.value.hint
            assert role(stage, "node1") is Role.PRIMARY
        assert stage.storage.openers("node1", [stage.name]) == ()
        stage.storage.demote("node1", stage.name, ours)

    def test_without_the_token_nothing_is_done(self, stage: Stage, token: Token) -> None:
        storage, name = stage.storage, stage.name
        options = storage.options("node1", name, "node2")
        link = Guarded(resource=name, peer="node2", options=options)
        for act in (
            partial(storage.promote, "node1", name, token),
            partial(storage.promote_by_force, "node1", name, token),
            partial(storage.demote, "node1", name, token),
            partial(storage.allow_two_primaries, "node1", name, "node2", token),
            partial(storage.restore_options, "node1", name, "node2", options, token),
            partial(storage.reconnect, "node1", name, "node2", options, token),
            partial(storage.arm_guard, "node1", token, [link], resume=False),
            partial(storage.disarm_guard, "node1", token),
        ):
            with pytest.raises(TokenLost):
                act()
        assert role(stage, "node1") is Role.SECONDARY
        assert allowed(stage) == [False, False]
        assert storage.traces("node1").guard(token.uuid) is None

    def test_a_guard_sleeps_while_the_token_lives_and_is_disarmed(self, stage: Stage, ours: Token) -> None:
        options = stage.storage.options("node2", stage.name, "node1")
        link = Guarded(resource=stage.name, peer="node1", options=options)
        stage.storage.arm_guard("node2", ours, [link], resume=True)
        stage.storage.allow_two_primaries("node2", stage.name, "node1", ours)
        stage.storage.promote("node2", stage.name, ours)
        stage.sleep(5)
        stage.storage.renew_token("node2", replace(ours, guarded=True))
        guard = stage.storage.traces("node2").guard(ours.uuid)
        assert guard is not None
        assert (guard.instance, guard.alive, guard.guarded, guard.resume) == (ours.instance, True, (link,), True)
        assert role(stage, "node2") is Role.PRIMARY
        assert allowed(stage) == [True, True]
        stage.storage.disarm_guard("node2", ours)
        stage.storage.disarm_guard("node2", ours)
        assert stage.storage.traces("node2").guard(ours.uuid) is None
        stage.storage.demote("node2", stage.name, ours)
        stage.storage.restore_options("node2", stage.name, "node1", options, ours)

    def test_guards_close_what_a_dead_controller_leaves(self, stage: Stage, token: Token) -> None:
        storage, name = stage.storage, stage.name
        for node in BOTH:
            assert storage.take_token(node, token) is None
            link = Guarded(resource=name, peer=PEER[node], options=storage.options(node, name, PEER[node]))
            storage.arm_guard(node, token, [link], resume=node == "node2")
        for node in BOTH:
            storage.allow_two_primaries(node, name, PEER[node], token)
            storage.promote(node, name, token)
        for node in BOTH:
            storage.renew_token(node, replace(token, lease_s=1))

        def over() -> bool:
            return not any(storage.traces(node).guard(token.uuid) for node in BOTH)

        until(stage, over, lambda: [storage.traces(node).guard(token.uuid) for node in BOTH])
        assert [role(stage, node) for node in BOTH] == [Role.SECONDARY, Role.SECONDARY]
        assert allowed(stage) == [False, False]
        for node in BOTH:
            # The record stays, under another id: a command that is late must not open again what nobody would close.
            record = storage.traces(node).token(token.uuid)
            assert record is not None
            assert (record.alive, record.errand, record.id == token.id) == (False, token.errand, False)
            with pytest.raises(TokenLost):
                storage.promote(node, name, token)
            assert storage.take_token(node, token) is None
            storage.drop_token(node, token)

    def test_the_watch_sees_what_happens(self, stage: Stage, ours: Token) -> None:
        said: list[str] = []
        with stage.storage.watch(BOTH, [stage.name], on_change=said.append) as watch:
            stage.storage.promote("node2", stage.name, ours)

            def seen() -> bool:
                here = watch.resource("node2", stage.name)
                return here is not None and here.role is Role.PRIMARY

            assert watch.wait(seen, PATIENCE_S)
            assert (watch.breaks(), watch.gaps(), watch.dual_primary_s()) == ((), (), 0.0)
            assert said
        stage.storage.demote("node2", stage.name, ours)

    def test_both_copies_are_compared(self, stage: Stage, token: Token) -> None:
        storage, name = stage.storage, stage.name
        assert storage.options("node1", name, "node2").verify_alg
        assert storage.take_token("node1", token) is None
        with pytest.raises(CommandFailed) as caught:
            storage.begin_verify("node1", name, 0, "node2", token.uuid)
        assert caught.value.code is Code.LOCKED
        storage.drop_token("node1", token)
        before = storage.verify_ends("node1", name, "node2")
        storage.begin_verify("node1", name, 0, "node2", token.uuid)

        def seen() -> PeerVolume:
            connection = storage.observe("node1", [name])[name].towards("node2")
            assert connection is not None
            return next(volume for volume in connection.volumes if volume.number == 0)

        def over() -> bool:
            return seen().replication is ReplicationState.ESTABLISHED and (
                storage.verify_ends("node1", name, "node2").get(0) != before.get(0)
            )

        until(stage, over, lambda: (seen(), storage.verify_ends("node1", name, "node2")), VERIFIED_S)
        assert seen().out_of_sync_kib == 0
        assert storage.traces("node1").token(token.uuid) is None
