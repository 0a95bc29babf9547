"""Whether two copies have parted: by their generations, as the module compares them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import Code, LeftBehind, Refused
from lvmigrate.lineage import JUST_CREATED, Kin, kin, parting
from lvmigrate.migrate import MigrateInstance
from lvmigrate.own_names import on_each, own_name
from lvmigrate.replication import ConnectionState, Lineage, Resource
from tests.unit.fakes import NODES, FakeStorage, World, unreachable


def line(*generations: str, kib: int | None = None, lost: datetime | None = None) -> Lineage:
    return Lineage(current=generations[0], earlier=generations[1:], changed_kib=kib, lost_at=lost)


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        (line("A"), line("A"), Kin.SAME),
        (line("A", "0"), line("A", "9"), Kin.SAME),
        # One was written to without the other: the other has what its bitmap counts from.
        (line("B", "A"), line("A"), Kin.FIRST_NEWER),
        (line("A"), line("B", "A"), Kin.SECOND_NEWER),
        (line("C", "B", "A"), line("A"), Kin.FIRST_NEWER),
        (line("A", "0"), line("C", "B", "A"), Kin.SECOND_NEWER),
        # Both were.
        (line("B", "A"), line("C", "A"), Kin.PARTED),
        (line("B", "A", "0"), line("D", "C", "A"), Kin.PARTED),
        (line("B"), line("C"), Kin.STRANGERS),
        (line("B", "A"), line(JUST_CREATED), Kin.FIRST_NEWER),
        (line(JUST_CREATED), line("B", "A"), Kin.SECOND_NEWER),
    ],
)
def test_what_two_copies_are_to_each_other(first: Lineage, second: Lineage, relation: Kin) -> None:
    assert kin(first, second) is relation


@given(st.lists(st.sampled_from(["one", "other", "sync"]), max_size=12))
def test_whatever_was_written_where(acts: list[str]) -> None:
    """Only what both wrote to since they were in step has parted; and it is the same seen from either side."""
    generation = iter(range(10**6))
    copies = {"one": line("first"), "other": line("first")}
    alone: set[str] = set()
    for act in acts:
        if act == "sync":
            if len(alone) < 2:
                newer = copies[next(iter(alone))] if alone else copies["one"]
                copies = dict.fromkeys(copies, newer)
                alone = set()
        elif act not in alone:
            alone.add(act)
            old = copies[act]
            copies[act] = Lineage(current=f"g{next(generation)}", earlier=(old.current, *old.earlier))
    expected = {
        frozenset(): Kin.SAME,
        frozenset({"one"}): Kin.FIRST_NEWER,
        frozenset({"other"}): Kin.SECOND_NEWER,
        frozenset({"one", "other"}): Kin.PARTED,
    }
    assert kin(copies["one"], copies["other"]) is expected[frozenset(alone)]
    assert (kin(copies["other"], copies["one"]) is Kin.PARTED) is (len(alone) == 2)


WHEN = datetime(2026, 11, 22, 22, 12, 41, tzinfo=UTC)
PARTED = {"node1": line("B", "A", kib=256, lost=WHEN), "node2": line("C", "A", kib=128)}


def test_what_has_parted_is_said_with_when_and_how_to_choose() -> None:
    apart = parting("r0", ("node1", {"r0/0": PARTED["node1"]}), ("node2", {"r0/0": PARTED["node2"], "r9/0": line("X")}))
    assert apart is not None
    finding = apart.finding(keep="node1")
    assert finding.code is Code.SPLIT_BRAIN
    assert finding.sentence == (
        "Split-brain: the copies of r0/0 on node1 and node2 have both changed since 2026-11-22T22:12:41+00:00"
        " (by node1); node1 has 256 KiB of its own, node2 has 128 KiB of its own."
    )
    assert "on node2 `drbdadm connect --discard-my-data r0`, on node1 `drbdadm connect r0`" in finding.hint
    assert "on node1 `drbdadm connect --discard-my-data r0`" in apart.finding(keep="node2").hint


def test_of_several_volumes_those_that_have_parted() -> None:
    ours = {"r0/0": line("A"), "r0/1": line("B", "A")}
    theirs = {"r0/0": line("A"), "r0/1": line("C", "A")}
    apart = parting("r0", ("node1", ours), ("node2", theirs))
    assert apart is not None
    assert (apart.volumes, apart.since, apart.changed_kib) == ((1,), None, {"node1": None, "node2": None})
    assert "an unknown amount" in apart.finding(keep="node1").sentence
    assert parting("r0", ("node1", ours), ("node2", {"r0/0": line("A")})) is None
    strangers = parting("r0", ("node1", {"r0/0": line("A")}), ("node2", {"r0/0": line("B")}))
    assert strangers is not None
    assert "never were copies of each other" in strangers.finding(keep="node1").sentence


def apart(**changes: object) -> World:
    made = World(connected=False, standalone=True, lineages=dict(PARTED))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_a_move_is_refused_with_it() -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(apart().context(), "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [Code.SPLIT_BRAIN, Code.NOT_CONNECTED]


@pytest.mark.parametrize("alone", NODES)
def test_of_two_that_have_parted_one_may_still_look_for_the_other(alone: str) -> None:
    """8.4 and 9 drop the connection at one end only, if the other has lost it before it is told."""

    class Half(FakeStorage):
        def seen(self, node: str) -> Resource:
            made = super().seen(node)
            state = ConnectionState.STANDALONE if node == alone else ConnectionState.CONNECTING
            return dataclasses.replace(
                made, connections=tuple(dataclasses.replace(link, state=state) for link in made.connections)
            )

    world = apart(standalone=False)
    context = dataclasses.replace(world.context(), storage=Half(world))
    with pytest.raises(Refused) as caught:
        MigrateInstance(context, "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [Code.SPLIT_BRAIN, Code.NOT_CONNECTED]
    assert "first `drbdadm disconnect r0` and `drbdadm secondary r0` there" in caught.value.findings[0].hint


def test_the_commands_have_each_nodes_own_name() -> None:
    both = "node1:r1=node2:r9"
    split = parting(both, ("node1", {f"{both}/0": PARTED["node1"]}), ("node2", {f"{both}/0": PARTED["node2"]}))
    assert split is not None
    hint = split.finding(keep="node1").hint
    assert "on node2 `drbdadm connect --discard-my-data r9`, on node1 `drbdadm connect r1`" in hint
    assert "=" not in hint


def test_own_names() -> None:
    both = "node1:r1=node2:r9"
    assert [own_name(both, node) for node in ("node1", "node2", "node3")] == ["r1", "r9", both]
    assert [own_name(name, "node1") for name in ("r0", "node1:r0", "a=b")] == ["r0", "node1:r0", "a=b"]
    assert on_each("drbdadm up {}", "r0", NODES) == "`drbdadm up r0` on both nodes"
    assert on_each("drbdadm up {}", both, NODES) == "`drbdadm up r1` on node1 and `drbdadm up r9` on node2"


def test_one_that_was_only_cut_off_is_not_called_so() -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(apart(lineages={"node1": line("B", "A"), "node2": line("A")}).context(), "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [Code.NOT_CONNECTED]


def test_a_cleanup_never_connects_what_has_parted() -> None:
    world = apart(openers={"node1": 1, "node2": 0})
    cleanup = CleanupInstance(world.context(), "web1")
    cleanup.check_prereq()
    with pytest.raises(LeftBehind) as caught:
        cleanup.exec()
    assert "Split-brain" in caught.value.leftovers[0]
    assert "--discard-my-data" in caught.value.hint
    assert "reconnect" not in {name for name, _ in world.calls}


def test_a_cleanup_connects_what_has_not() -> None:
    world = apart(openers={"node1": 1, "node2": 0}, lineages={"node1": line("B", "A"), "node2": line("A")})
    cleanup = CleanupInstance(world.context(), "web1")
    cleanup.check_prereq()
    cleanup.exec()
    assert world.connected


@pytest.mark.parametrize("lost", [1, 1000])
def test_without_an_answer_nothing_is_connected(lost: int) -> None:
    """The module refuses copies that have parted only where the operator's after-sb policies do not choose one."""
    world = apart(openers={"node1": 1, "node2": 0})

    def silent() -> None:
        if world.calls.count(("lineages", "node2")) <= lost:
            unreachable("node2")()

    world.faults["lineages", "node2"] = silent
    cleanup = CleanupInstance(world.context(), "web1")
    cleanup.check_prereq()
    with pytest.raises(LeftBehind) as caught:
        cleanup.exec()
    assert caught.value.leftovers[0].startswith("Split-brain") is (lost == 1)
    assert not world.connected
    assert "reconnect" not in {name for name, _ in world.calls}


def test_an_answer_that_was_lost_once_is_asked_for_again() -> None:
    world = apart(openers={"node1": 1, "node2": 0}, lineages={"node1": line("B", "A"), "node2": line("A")})

    def silent() -> None:
        if world.calls.count(("lineages", "node2")) == 1:
            unreachable("node2")()

    world.faults["lineages", "node2"] = silent
    cleanup = CleanupInstance(world.context(), "web1")
    cleanup.check_prereq()
    cleanup.exec()
    assert world.connected
