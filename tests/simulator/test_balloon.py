"""A guest that shrinks for its move: whatever befalls the calls, it ends with its memory, or somebody is told."""

from __future__ import annotations

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import LeftBehind, LvmigrateError
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.simulator import ControllerKilled, Guest, Happening, Kind, World, audit
from lvmigrate.simulator.faults import What

#: What can happen to the call that makes it smaller. A call that acts much later, when nobody waits for it any more,
#: acts: libvirt's calls carry no token.
FAULTS = [
    Kind.REFUSED_BEFORE,
    Kind.REFUSED_AFTER,
    Kind.LOST_BEFORE,
    Kind.LOST_AFTER,
    Kind.HANGS_BEFORE,
    Kind.HANGS_AFTER,
    Kind.KILLED_BEFORE,
    Kind.KILLED_AFTER,
]


def cramped(world: World) -> Guest:
    guest = world.add_guest("web1", "node1")
    world.hosts["node2"].free_memory_kib = guest.memory_kib * 2 // 3 + 64 * 1024 + guest.memory_kib // 512
    world.timeline.advance(1.0)
    return guest


def move(world: World) -> BaseException | None:
    tasklet = MigrateInstance(world.controller("c1"), "web1", options=Options(allow_runtime_changes=True))
    try:
        tasklet.check_prereq()
        tasklet.exec()
    except (LvmigrateError, ControllerKilled) as error:
        return error
    return None


def has_all(world: World, guest: Guest) -> bool:
    world.timeline.advance(5.0)
    return guest.current_kib in (None, guest.memory_kib)


def test_it_shrinks_moves_and_grows() -> None:
    with World() as world:
        guest = cramped(world)
        smallest = []
        world.entered = lambda _job: smallest.append(guest.current_kib)
        assert move(world) is None
        assert smallest[0] == guest.memory_kib * 2 // 3
        assert has_all(world, guest)
        assert audit(world) == ()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("place", ["c1.set_memory@node1#1", "c1.copy_memory@node1#1"])
def test_whatever_befalls_it_before_the_copy(place: str, fault: What) -> None:
    if "copy" in place and fault not in (Kind.REFUSED_BEFORE, Kind.KILLED_BEFORE, Kind.KILLED_AFTER):
        fault = Kind.REFUSED_BEFORE  # if it raises, no copy was started
    with World() as world:
        guest = cramped(world)
        world.faults.add(place, fault)
        end = move(world)
        assert end is not None
        if isinstance(end, (ControllerKilled, LeftBehind)):
            world.timeline.advance(200.0)
            cleanup = CleanupInstance(world.controller("c2"), "web1")
            cleanup.check_prereq()
            cleanup.exec()
        assert has_all(world, guest)
        assert audit(world) == ()


def test_a_copy_that_breaks_gives_it_back() -> None:
    with World() as world:
        guest = cramped(world)
        world.faults.add("transfer#1", Happening.TARGET_QEMU_KILLED)
        assert isinstance(move(world), LvmigrateError)
        assert has_all(world, guest)
        assert audit(world) == ()
