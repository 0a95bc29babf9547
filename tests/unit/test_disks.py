"""What is known of a guest's disks: whether replication stayed whole, and who is asked while it does not yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import pytest

from lvmigrate.disks import ASK_S, Disks
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import ReplicationState, Resource, Unbroken
from tests.unit.fakes import NODES, FakeStorage, FakeWatch, World, unreachable


@dataclass
class Watched(FakeWatch):
    """A watch whose gaps and breaks the test makes."""

    missed: list[str] = field(default_factory=list)

    def gaps(self) -> tuple[str, ...]:
        return tuple(self.missed)

    def forgive(self) -> None:
        super().forgive()
        self.missed.clear()


@dataclass
class Old(FakeStorage):
    """DRBD 8.4: it knows no names of peers."""

    def seen(self, node: str) -> Resource:
        made = super().seen(node)
        return replace(made, connections=tuple(replace(link, name="peer") for link in made.connections))


def disks(world: World, kind: Callable[[World], FakeStorage] = FakeStorage) -> tuple[Disks, Watched]:
    storage = kind(world)
    watch = Watched(world, storage)
    checked: tuple[Storage, Watch] = storage, watch
    return Disks(storage=checked[0], watch=checked[1], names=("r0",), nodes=("node1", "node2")), watch


def test_without_a_gap_the_events_tell() -> None:
    world = World()
    seen, watch = disks(world)
    watch.missed.append("from before")
    seen.remember(17.0)
    assert (seen.standing().verdict, seen.standing().since_s) == (Unbroken.YES, 17.0)
    world.broke.append("after 3 s: r0 is not connected")
    assert seen.standing().verdict is Unbroken.NO
    assert str(seen.standing()) == "replication left Established (after 3 s: r0 is not connected)"


def test_what_broke_before_it_was_remembered_is_no_break() -> None:
    world = World(broke=["r0 was Connecting, and is in step again"])
    seen, _ = disks(world)
    seen.remember()
    assert seen.standing().verdict is Unbroken.YES
    assert seen.doubts_now() == []


def test_over_a_gap_only_the_generations_of_both_nodes_prove_it() -> None:
    world = World()
    seen, watch = disks(world)
    seen.remember()
    watch.missed.append("after 3 s: node2 is not watched")
    assert seen.standing().verdict is Unbroken.YES
    assert "by the generations" in str(seen.standing())
    world.generation += 1
    assert seen.standing().verdict is Unbroken.NO
    assert "another generation" in str(seen.standing())


@pytest.mark.parametrize("node", NODES)
def test_a_kernel_that_gives_no_answer_proves_nothing(node: str) -> None:
    world = World()
    seen, watch = disks(world)
    seen.remember()
    watch.missed.append("after 3 s: node2 is not watched")
    world.faults["generations", node] = unreachable(node)
    assert seen.standing().verdict is Unbroken.UNKNOWN
    # Nor does one that gave none when it began.
    seen.remember()
    watch.missed.append("after 3 s: node2 is not watched")
    world.faults.clear()
    assert seen.standing().verdict is Unbroken.UNKNOWN


def asked(world: World) -> Mapping[str, int]:
    return {node: world.calls.count(("observe", node)) for node in NODES}


def test_a_module_that_tells_of_progress_is_not_asked() -> None:
    world = World(replication=ReplicationState.SYNC_SOURCE)
    seen, _ = disks(world)
    assert seen.sync(1.0).volumes
    assert asked(world) == {"node1": 0, "node2": 0}


def test_one_that_does_not_is_asked_at_a_stated_interval_at_both_ends() -> None:
    world = World(replication=ReplicationState.SYNC_SOURCE)
    seen, _ = disks(world, Old)
    for step in range(50):
        (volume,) = seen.sync(step * ASK_S / 10).volumes
        assert [node for node, _ in volume.states] == ["node1", "node2"]
    assert asked(world) == {"node1": 5, "node2": 5}
    # Of an end that gives no answer nothing is known; the other one still tells.
    world.faults["observe", "node2"] = unreachable("node2")
    (volume,) = seen.sync(100.0).volumes
    assert [node for node, _ in volume.states] == ["node1"]


def test_an_end_that_is_not_watched_is_not_in_step_and_has_no_role() -> None:
    world = World()
    seen, _ = disks(world)
    assert seen.in_step()
    assert seen.single_primary("node1")
    assert not seen.single_primary("node2")
    world.unwatched = True
    assert not seen.in_step()
    assert not seen.single_primary("node1")
    world.unwatched, world.replication = False, ReplicationState.SYNC_SOURCE
    assert not seen.in_step()


def test_the_kernels_own_word_decides_whether_both_copies_are_the_same() -> None:
    world = World()
    seen, _ = disks(world)
    seen.remember()
    assert seen.doubts_now() == []
    for change, doubt in (
        ({"connected": False}, "is not connected"),
        ({"resource": "another"}, "node1 has no r0"),
        ({"faults": {("observe", "node2"): unreachable("node2")}}, "made for the test"),
    ):
        for name, value in change.items():
            setattr(world, name, value)
        assert doubt in " ".join(seen.doubts_now())
        world.connected, world.resource, world.faults = True, "r0", {}


def test_a_break_is_a_doubt_unless_the_generations_are_still_the_same() -> None:
    world = World()
    seen, _ = disks(world)
    seen.remember()
    before = len(world.calls)
    assert seen.doubts_now() == []
    # A guest that has arrived waits for this: nobody is asked where nothing broke.
    assert "generations" not in {method for method, _ in world.calls[before:]}
    world.broke.append("node1: Connecting for a moment")
    assert seen.doubts_now() == []
    world.connected = False
    assert seen.doubts_now()[0] == "node1: Connecting for a moment"
    world.connected = True
    world.generation += 1
    assert seen.doubts_now() == ["node1: Connecting for a moment"]


def test_one_lost_answer_is_no_doubt() -> None:
    world = World()
    seen, _ = disks(world)
    seen.remember()

    def lost() -> None:
        if world.calls.count(("observe", "node2")) == 1:
            unreachable("node2")()

    world.faults["observe", "node2"] = lost
    assert seen.doubts_now() == []


class Silent(FakeStorage):
    """Kernels that answer, and tell of no generation: a disk is not there."""

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        super().generations(node, names)
        return {}


def test_no_generation_is_no_proof() -> None:
    seen, watch = disks(World(), Silent)
    seen.remember()
    watch.missed.append("after 3 s: node2 is not watched")
    assert seen.standing().verdict is Unbroken.UNKNOWN


def test_what_nobody_watched_before_the_generations_were_read_is_not_proved_by_them() -> None:
    """Replication may have broken and come back in that gap: the generations are those of afterwards."""
    world = World()
    seen, watch = disks(world)
    world.late_faults["generations", "node2"] = lambda: watch.missed.append("after 3 s: node2 is not watched")
    seen.remember()
    assert seen.standing().verdict is Unbroken.UNKNOWN
