"""Rehearsals on simulated nodes: whatever fails, one running copy at the end, and nothing that a cleanup leaves."""

from __future__ import annotations

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import LvmigrateError
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


@pytest.mark.parametrize("moment", ["transfer#1", "prepare#1"])
@pytest.mark.parametrize("happening", [Happening.DRBD_CUT_SHORT, Happening.DRBD_CUT_LONG, Happening.ABORTED])
def test_what_happens_meanwhile(moment: str, happening: Happening) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(moment, happening)
        with pytest.raises(LvmigrateError):
            rehearse(world)
        assert world.running(guest) == ["node1"]
        mended(world, guest)
