"""The token of a move: renewed as long as it is kept, given up to whoever took it over, removed wherever it may be."""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate.clock import Clock
from lvmigrate.errors import CommandFailed, NodeUnreachable, TokenLost
from lvmigrate.lease import Lease
from lvmigrate.token import Errand, Token
from tests.unit.fakes import NODES, UUID, FakeStorage, Renewing, World, unreachable

ERRAND = Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False)
TOKEN = Token(uuid=UUID, instance="web1", id="ours", holder="we", lease_s=30, errand=ERRAND)
THEIRS = dataclasses.replace(TOKEN, id="theirs", holder="they")


def lease(world: World, token: Token = TOKEN) -> tuple[Lease, Renewing]:
    renewing = Renewing()
    clock = renewing.of(world.context()).clock
    return Lease(FakeStorage(world), NODES, token, clock=clock), renewing


def taken(world: World) -> tuple[Lease, Renewing]:
    made, renewing = lease(world)
    assert [made.take(node) for node in NODES] == [None, None]
    made.keep()
    return made, renewing


def test_it_is_renewed_on_every_node_long_before_it_runs_out_until_it_is_ended() -> None:
    world = World()
    made, renewing = taken(world)
    assert renewing.story == ["began"]
    assert renewing.seconds * 2 < TOKEN.lease_s * 2 / 3
    renewing.call()
    made.renew()
    assert [node for method, node in world.calls if method == "renew_token"].count("node2") == 2
    made.end()
    made.end()
    assert renewing.story == ["began", "ended"]


def test_a_node_that_hangs_does_not_keep_the_other_from_being_renewed() -> None:
    world = World()
    storage = FakeStorage(world)
    made = Lease(storage, NODES, dataclasses.replace(TOKEN, lease_s=0.2), clock=Clock())
    for node in NODES:
        made.take(node)
    hangs, renewed = threading.Event(), threading.Semaphore(0)

    def renew(node: str, _token: Token) -> None:
        if node == "node1":
            hangs.wait()
        else:
            renewed.release()

    storage.renew_token = renew  # type: ignore[method-assign, assignment]
    made.keep()
    try:
        assert all(renewed.acquire(timeout=60) for _ in range(3))
    finally:
        hangs.set()
        made.end()


def test_it_lapses_when_a_node_has_not_acknowledged_it_for_too_long() -> None:
    world = World()
    made, renewing = taken(world)
    world.faults["renew_token", "node2"] = unreachable("node2")
    world.time += 15
    renewing.call()
    assert made.lapsed() is None
    world.time += 10
    renewing.call()
    assert "node2 has not acknowledged" in str(made.lapsed())
    world.faults.clear()
    renewing.call()
    assert made.lapsed() is None


def test_an_answer_that_came_late_counts_from_when_it_was_asked_for() -> None:
    world = World()
    made, renewing = taken(world)
    world.late_faults["renew_token", "node2"] = lambda: setattr(world, "time", world.time + 25)
    renewing.call()
    assert "has not acknowledged" in str(made.lapsed())


def test_somebody_else_s_is_told_at_once_and_for_as_long_as_it_is_so() -> None:
    world = World()
    made, renewing = taken(world)
    world.tokens["node2"] = THEIRS
    renewing.call()
    assert "is not ours" in str(made.lapsed())
    with pytest.raises(TokenLost):
        made.confirm()
    with pytest.raises(TokenLost):
        made.renew()
    world.tokens["node2"] = TOKEN
    renewing.call()
    assert made.lapsed() is None
    made.confirm()


def test_no_answer_does_not_say_that_somebody_took_it() -> None:
    world = World()
    made, _ = taken(world)
    world.faults["renew_token", "node1"] = unreachable("node1")
    made.confirm()
    with pytest.raises(NodeUnreachable):
        made.renew()


def test_with_a_guard_its_word_counts_too_unless_it_is_only_confirmed() -> None:
    world = World()
    made, _ = taken(world)
    made.guarded()
    with pytest.raises(CommandFailed):
        made.renew()
    made.confirm()
    made.unguarded()
    made.renew()


@pytest.mark.parametrize("change", [Lease.guarded, Lease.unguarded])
def test_what_an_event_tells_meanwhile_is_not_forgotten(
    change: Callable[[Lease], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = lease(World())
    event = threading.Thread(target=made.learn, kwargs={"handed_over": True})

    def between(token: Token, **changes: Any) -> Token:
        monkeypatch.undo()
        event.start()
        event.join(0.2)
        return dataclasses.replace(token, **changes)

    monkeypatch.setattr("lvmigrate.lease.replace", between)
    change(made)
    event.join()
    assert made.token.errand is not None
    assert made.token.errand.handed_over


def test_that_it_was_handed_over_is_part_of_it() -> None:
    made, _ = lease(World())
    made.learn(handed_over=True)
    assert made.token.errand == dataclasses.replace(ERRAND, handed_over=True)
    without, _ = lease(World(), dataclasses.replace(TOKEN, errand=None))
    without.learn(handed_over=True)
    assert without.token.errand is None


def test_fenced_it_has_another_id_on_every_node() -> None:
    world = World()
    made, _ = taken(world)
    made.fence("new")
    assert {token.id for token in world.tokens.values()} == {"new"}
    made.drop()
    assert world.tokens == {}


def test_where_it_could_not_be_fenced_it_is_removed_under_both_ids() -> None:
    world = World()
    made, _ = taken(world)
    world.faults["take_token", "node2"] = unreachable("node2")
    made.fence("new")
    assert {node: token.id for node, token in world.tokens.items()} == {"node1": "new", "node2": "ours"}
    world.faults.clear()
    made.drop()
    assert world.tokens == {}
    dropped = [node for method, node in world.calls if method == "drop_token"]
    assert sorted(dropped) == ["node1", "node2", "node2"]


def test_one_lost_reply_leaves_no_node_with_the_old_id() -> None:
    world = World()
    made, _ = taken(world)

    def lost() -> None:
        if world.calls.count(("take_token", "node2")) == 2:
            unreachable("node2")()

    world.faults["take_token", "node2"] = lost
    made.fence("new")
    assert {token.id for token in world.tokens.values()} == {"new"}
    made.confirm()
    made.renew()


def test_somebody_else_s_is_neither_fenced_nor_removed() -> None:
    world = World()
    made, _ = taken(world)
    world.tokens["node2"] = THEIRS
    with pytest.raises(TokenLost, match="taken over on node2 by they"):
        made.fence("new")
    made.drop()
    assert world.tokens == {"node2": THEIRS}


def test_only_where_it_may_be_it_is_removed() -> None:
    world = World(tokens={"node2": THEIRS})
    made, _ = lease(world)
    assert made.take("node1") is None
    held = made.take("node2")
    assert held is not None
    assert held.holder == "they"
    made.drop()
    assert world.tokens == {"node2": THEIRS}


# What is known of the move.


def known(world: World) -> list[bool]:
    """By the tokens on the nodes: whether the source's copy was handed over."""
    errands = [world.tokens[node].errand for node in NODES]
    return [errand is not None and errand.handed_over for errand in errands]


def test_what_was_there_before_ours_is_known_and_told() -> None:
    world = World()
    made, _ = taken(world)
    made.inherit(dataclasses.replace(ERRAND, handed_over=True))
    made.tell()
    assert known(world) == [True, True]
    told = world.calls.count(("renew_token", "node1"))
    made.tell()  # there is nothing new
    assert world.calls.count(("renew_token", "node1")) == told


def test_what_one_node_knows_of_a_move_the_others_older_word_does_not_undo() -> None:
    world = World()
    made, _ = taken(world)
    made.inherit(dataclasses.replace(ERRAND, handed_over=True))
    made.inherit(ERRAND)
    made.tell()
    assert known(world) == [True, True]


def test_what_was_known_of_another_move_is_forgotten() -> None:
    world = World()
    made, _ = taken(world)
    made.inherit(dataclasses.replace(ERRAND, handed_over=True))
    made.inherit(dataclasses.replace(ERRAND, source="node2", target="node1"))
    made.tell()
    assert known(world) == [False, False]


def test_where_nothing_was_known_it_is_known_then() -> None:
    world = World()
    made, _ = lease(world, dataclasses.replace(TOKEN, errand=None))
    assert [made.take(node) for node in NODES] == [None, None]
    made.inherit(ERRAND)
    made.tell()
    assert [world.tokens[node].errand for node in NODES] == [ERRAND, ERRAND]


class OutOfFiles(FakeStorage):
    """Raises what is none of ours for node1, some times; then says that it was renewed."""

    def __init__(self, world: World, times: int) -> None:
        super().__init__(world)
        self.left = times
        self.others_meanwhile: list[str] = []
        self.renewed = threading.Event()

    def renew_token(self, node: str, token: Token) -> None:
        if self.left and node == "node1":
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        if self.left:
            self.others_meanwhile.append(node)
        elif node == "node1":
            self.renewed.set()
        super().renew_token(node, token)


def test_a_moment_without_files_is_not_the_end_of_the_renewals() -> None:
    storage = OutOfFiles(World(), times=3)
    made = Lease(storage, NODES, dataclasses.replace(TOKEN, lease_s=0.04), clock=Clock())
    assert [made.take(node) for node in NODES] == [None, None]
    made.keep()
    try:
        assert storage.renewed.wait(30)
    finally:
        made.end()
    assert "node2" in storage.others_meanwhile


def test_what_is_done_every_so_often_goes_on_whatever_one_call_raises() -> None:
    calls: list[int] = []
    third = threading.Event()

    def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            third.set()
        raise RuntimeError("can't start new thread")

    with Clock().every(0.001, call, "beside"):
        assert third.wait(30)
