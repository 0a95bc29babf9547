"""Node states by command, and the one drain of a node that may be under way on a machine."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.errors import Code, ConfigurationError, Refused, UsageError
from lvmigrate.node_states import FILE, Gone, NodeStates, State, Wish, under_way, wish
from tests.unit.fakes import NODES, node_of

NODE1, NODE2 = NODES


def nodes_of(states: NodeStates) -> dict[str, str | None]:
    return {name: node.closed for name, node in states.over({name: node_of(name) for name in NODES}).items()}


def test_what_was_set_is_so_until_it_is_set_otherwise(tmp_path: Path) -> None:
    states = NodeStates(tmp_path / "new")
    assert nodes_of(states) == {NODE1: None, NODE2: None}
    states.set(NODE1, State.DRAINED, "new disks")
    states.set(NODE2, State.OFFLINE)
    again = NodeStates(tmp_path / "new")  # another process
    assert nodes_of(again) == {NODE1: "is drained (new disks)", NODE2: "is offline (by command)"}
    again.set(NODE1, State.ONLINE)
    again.set(NODE2, State.DRAINED)
    assert nodes_of(states) == {NODE1: None, NODE2: "is drained (by command)"}


def test_the_configuration_has_the_first_word(tmp_path: Path) -> None:
    states = NodeStates(tmp_path)
    configured = {NODE1: replace(node_of(NODE1), drained="for good")}
    states.set(NODE1, State.DRAINED, "by me")
    assert states.over(configured)[NODE1].drained == "for good"
    states.set(NODE1, State.ONLINE)
    assert states.over(configured)[NODE1].drained == "for good"


def test_who_was_sent_away_is_remembered_beside_the_state(tmp_path: Path) -> None:
    states = NodeStates(tmp_path)
    for number in (1, 2):
        states.sent_away(NODE1, Gone(uuid=f"u{number}", name=f"web{number}", target=NODE2))
    states.set(NODE1, State.DRAINED)
    states.back(NODE1, {"u1"})
    assert {gone.name for gone in states.of(NODE1).gone.values()} == {"web2"}
    assert states.of(NODE1).state is State.DRAINED
    states.back(NODE1, {"u1", "u2"})
    assert states.of(NODE1).gone == {}


def test_without_a_place_nothing_is_kept() -> None:
    states = NodeStates(None)
    states.sent_away(NODE1, Gone(uuid="u1", name="web1", target=NODE2))
    states.back(NODE1, {"u1"})
    states.back(NODE1, {"u1", "u2"})
    assert states.all() == {}
    with pytest.raises(UsageError) as caught:
        states.set(NODE1, State.DRAINED)
    assert "[nodes.node1]" in caught.value.hint


@pytest.mark.parametrize("text", ["{", '{"node1": {}}', '{"node1": 3}', "[1]", '{"node1": {"state": "x"}}'])
def test_a_file_that_was_not_written_by_us(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        NodeStates(tmp_path).all()
    assert str(tmp_path / FILE) in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        NodeStates(tmp_path / "file").set(NODE1, State.DRAINED)
    assert "cannot be" in str(caught.value)


def _drain_four(directory: Path, number: int) -> None:
    for each in range(4):
        NodeStates(directory).sent_away(NODE1, Gone(uuid=f"u{number}-{each}", name="web", target=NODE2))


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_drain_four, args=(tmp_path, number)) for number in range(5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert len(NodeStates(tmp_path).of(NODE1).gone) == 20


# ---- the drain under way


def test_one_drain_of_a_node_at_a_time(tmp_path: Path) -> None:
    with under_way(tmp_path, (NODE1,)):
        with pytest.raises(Refused) as caught, under_way(tmp_path, (NODE2, NODE1)):
            raise AssertionError
        assert caught.value.code is Code.LOCKED
        with under_way(tmp_path, (NODE2,)):  # the refused one has let it go
            pass
    with under_way(tmp_path, (NODE1,)):
        pass


def test_a_node_that_is_named_twice_is_one(tmp_path: Path) -> None:
    with under_way(tmp_path, (NODE1, NODE1)) as wished:
        wish(tmp_path, NODE1, Wish.PAUSE)
        assert wished() is Wish.PAUSE


def test_what_is_wished_of_it(tmp_path: Path) -> None:
    with under_way(tmp_path, (NODE1, NODE2)) as wished:
        assert wished() is Wish.GO_ON
        wish(tmp_path, NODE2, Wish.PAUSE)
        assert wished() is Wish.PAUSE
        wish(tmp_path, NODE2, Wish.GO_ON)
        assert wished() is Wish.GO_ON
        wish(tmp_path, NODE1, Wish.STOP)
        assert wished() is Wish.STOP
    with under_way(tmp_path, (NODE1,)) as wished:  # that was wished of the other one
        assert wished() is Wish.GO_ON


@pytest.mark.parametrize("after", [False, True])
def test_nothing_is_wished_of_none(tmp_path: Path, after: bool) -> None:  # noqa: FBT001 -- a case
    if after:
        with under_way(tmp_path, (NODE1,)):
            pass
    with pytest.raises(UsageError) as caught:
        wish(tmp_path, NODE1, Wish.PAUSE)
    assert NODE1 in str(caught.value)


def test_one_that_cannot_be_asked_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / f"drain-{NODE1}").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be asked") as caught:
        wish(tmp_path, NODE1, Wish.PAUSE)
    assert "root" in caught.value.hint


def test_where_nothing_is_kept_nothing_is_locked() -> None:
    with under_way(None, (NODE1,)) as wished, under_way(None, (NODE1,)):
        assert wished() is Wish.GO_ON
    with pytest.raises(UsageError):
        wish(None, NODE1, Wish.PAUSE)
