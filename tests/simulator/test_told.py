"""What is told of a move: the disks as they are and as they change, and every disk that could not be closed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.errors import LeftBehind, MoveFailed
from lvmigrate.journal import Kind as Row
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.simulator import ControllerKilled, Happening, Kind, World
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.timeline import timeline


def test_a_cut_during_the_copy_is_told(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    with World() as world:
        world.add_guest("web1", "node1")
        world.faults.add("transfer#1", Happening.DRBD_CUT_SHORT)
        tasklet = MigrateInstance(dataclasses.replace(world.controller("c1"), journal=journal), "web1")
        tasklet.check_prereq()
        with pytest.raises(MoveFailed):
            tasklet.exec()
    lanes = [lane for lane in timeline(journal.story("last")).lanes if lane.name.endswith("connection")]
    for lane in lanes:
        names = [span.name for span in lane.spans]
        assert names[0] == "Established"
        assert len(names) > 1
    assert len(lanes) == 2


def test_every_disk_that_could_not_be_closed_is_told() -> None:
    with World() as world:
        world.add_guest("web1", "node1", resources=2)
        for number in (1, 2):
            world.faults.add(f"c1.demote@node1#{number}", Kind.REFUSED_BEFORE)
        tasklet = MigrateInstance(world.controller("c1"), "web1")
        tasklet.check_prereq()
        with pytest.raises(LeftBehind) as caught:
            tasklet.exec()
    assert len([left for left in caught.value.leftovers if "Demoting" in left]) == 2


def test_what_a_cleanup_does_is_told(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    with World() as world:
        world.add_guest("web1", "node1")
        world.faults.add("c1.copy_memory@node1#1", Kind.KILLED_BEFORE)
        # No guard closes it before the cleanup does.
        tasklet = MigrateInstance(world.controller("c1"), "web1", options=Options(guard=False))
        tasklet.check_prereq()
        with pytest.raises(ControllerKilled):
            tasklet.exec()
        cleanup = CleanupInstance(dataclasses.replace(world.controller("c2"), journal=journal), "web1")
        cleanup.check_prereq()
        report = cleanup.exec()
    told = [row.name for row in journal.story("last").rows if row.kind is Row.MOMENT]
    assert report.acts
    assert set(report.acts) <= set(told)
