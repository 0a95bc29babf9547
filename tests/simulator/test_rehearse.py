"""Rehearsals on simulated nodes: whatever fails, one running copy at the end, and nothing that a cleanup leaves."""

from __future__ import annotations

import contextlib
from typing import Final

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import LvmigrateError, MoveAborted
from lvmigrate.rehearse import RehearseInstance
from lvmigrate.simulator import ControllerKilled, Guest, Happening, Kind, Settings, Version, World, audit

VARIANTS = {
    "9": Settings(),
    "9, auto-promote": Settings(auto_promote=True),
    "8.4": Settings(version=Version.V84),
}


def rehearse(world: World) -> None:
    tasklet = RehearseInstance(world.controller("c1"), "web1")
    tasklet.check_prereq()
    tasklet.exec()


def mended(world: World, guest: Guest) -> None:
    """Whatever happened: after a cleanup by another controller the guest runs once, and nothing is left."""
    other = world.controller("c2")
    other.clock.sleep(400)
    tasklet = CleanupInstance(other, "web1")
    tasklet.check_prereq()
    tasklet.exec()
    other.clock.sleep(60)
    assert len(world.running(guest)) == 1
    assert (world.violations, [str(found) for found in audit(world)]) == ([], [])


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_guest_stays_where_it_is(settings: Settings) -> None:
    with World(settings=settings) as world:
        guest = world.add_guest("web1", "node1", resources=2)
        rehearse(world)
        assert world.running(guest) == ["node1"]
        assert (world.violations, audit(world)) == ([], ())
        # Another one, and then the move itself, are as welcome as the first.
        world.controllers["c1"].cancel.clear()
        rehearse(world)
        assert (world.running(guest), world.violations, audit(world)) == (["node1"], [], ())


def places() -> list[tuple[str, bool]]:
    """Every call of a straight rehearsal, and whether it can change anything."""
    with World() as world:
        world.add_guest("web1", "node1")
        rehearse(world)
        return [(str(call.place), call.acts) for call in world.calls if not call.background]


PLACES = places()


def test_there_are_faults_to_be_tried() -> None:
    methods = {place.split("@")[0].removeprefix("c1.") for place, _ in PLACES}
    assert {"copy_memory", "abort", "promote", "demote", "restore_options", "disarm_guard", "undefine"} <= methods
    assert not {"resume", "discard"} & methods


@pytest.mark.parametrize("place", [place for place, acts in PLACES if acts])
@pytest.mark.parametrize("kind", [Kind.LOST_BEFORE, Kind.LOST_AFTER, Kind.KILLED_BEFORE, Kind.KILLED_AFTER, Kind.LATE])
def test_a_fault_at_any_act(place: str, kind: Kind) -> None:
    if ".copy_memory" in place and kind in (Kind.LOST_AFTER, Kind.LATE, Kind.LOST_BEFORE):
        kind = Kind.STOPPED_AFTER  # if the start of a copy raises, none was started
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(place, kind)
        try:
            rehearse(world)
        except (LvmigrateError, ControllerKilled):
            pass
        else:
            assert world.running(guest) == ["node1"]
        assert len(world.running(guest)) <= 1
        mended(world, guest)


@pytest.mark.parametrize("place", ["c1.copy_memory@node1#1", "c1.wait@node1#2", "c1.progress@node1#1"])
def test_a_cleanup_turns_back_as_well(place: str) -> None:
    """The copy outlives its command; that of a rehearsal is ended at once, where a move's would be finished."""
    with World(settings=Settings(copy_s=3600.0)) as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(place, Kind.KILLED_BEFORE if "copy" not in place else Kind.KILLED_AFTER)
        with pytest.raises(ControllerKilled):
            rehearse(world)
        other = world.controller("c2")
        other.clock.sleep(60)
        tasklet = CleanupInstance(other, "web1")
        assert any("end the copy" in act or "abort" in act for act in tasklet.check_prereq().acts)
        began = world.now
        tasklet.exec()
        assert world.running(guest) == ["node1"]
        assert world.now - began < 300
        assert (world.violations, audit(world)) == ([], ())


#: What ends or stops the guest itself: whether it runs afterwards is not the rehearsal's to say.
OF_THE_GUEST: Final = {
    *(Happening.SOURCE_QEMU_KILLED, Happening.SOURCE_POWER_CUT, Happening.TARGET_POWER_CUT, Happening.SUSPENDED),
}


@pytest.mark.parametrize("moment", ["transfer#1", "prepare#1", "c1.promote@node2#1", "c1.copy_memory@node1#1"])
@pytest.mark.parametrize("happening", [happening for happening in Happening if happening not in OF_THE_GUEST])
def test_what_happens_meanwhile(moment: str, happening: Happening) -> None:
    """A cut that the kernels notice only later may leave the rehearsal a success; the guest runs once in any case."""
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(moment, happening)
        with contextlib.suppress(LvmigrateError, ControllerKilled):
            rehearse(world)
        world.heal()  # a resource that was brought down stays down until somebody brings it up
        mended(world, guest)


def test_being_asked_to_stop_before_memory_arrives_is_no_success() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("prepare#1", Happening.ABORTED)
        with pytest.raises(MoveAborted):
            rehearse(world)
        assert (world.running(guest), world.violations, audit(world)) == (["node1"], [], ())


@pytest.mark.parametrize("happening", [happening for happening in Happening if happening in OF_THE_GUEST])
def test_what_happens_to_the_guest_itself(happening: Happening) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add("transfer#1", happening)
        with contextlib.suppress(LvmigrateError):
            rehearse(world)
        assert "node2" not in world.running(guest)
        assert world.violations == []
