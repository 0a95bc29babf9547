"""The last definition of a guest that was moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmigrate import kept
from lvmigrate.errors import Code, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from tests.unit.fakes import UUID, FakeHypervisor, World, refusing, unreachable

TEXT = "<domain><name>web1</name></domain>"


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    def definition(self: FakeHypervisor, node: str, uuid: str) -> str:
        with self.world.call("definition", node):
            return TEXT

    monkeypatch.setattr(FakeHypervisor, "definition", definition)


@pytest.mark.parametrize("tasklet", [MigrateInstance, FailoverInstance])
def test_it_is_kept_after_each_move(tmp_path: Path, tasklet: type[MigrateInstance | FailoverInstance]) -> None:
    context = World().context(definitions=tmp_path / "new")
    move = tasklet(context, "web1")
    move.check_prereq()
    assert not (tmp_path / "new").exists()
    move.exec()
    (path,) = (tmp_path / "new").iterdir()
    assert (path.name, path.read_text(), path.stat().st_mode & 0o077) == (f"{UUID}.xml", TEXT, 0)
    assert kept.last(context, "web1") == kept.last(context, UUID) == path
    assert kept.last(context, "web2") is None


def test_one_that_cannot_be_kept_costs_no_move(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for world, directory in ((World(), tmp_path / "file"), (World(), tmp_path / "good")):
        world.faults["definition", "node2"] = refusing("node2")
        move = MigrateInstance(world.context(definitions=directory), "web1")
        move.check_prereq()
        assert move.exec().running
    assert kept.last(World().context(definitions=tmp_path / "file"), "web1") is None
    assert kept.last(World().context(), "web1") is None


def test_a_failover_from_a_dead_node_names_it(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.xml").write_text(TEXT)
    world = World(connected=False)
    for method in ("domain", "domains", "traces"):
        world.faults[method, "node1"] = unreachable("node1")
    with pytest.raises(Refused) as caught:
        options = FailoverOptions(is_off="node1")
        FailoverInstance(world.context(definitions=tmp_path), "web1", options=options).check_prereq()
    assert caught.value.code is Code.DEFINITION_MISSING
    assert f"{tmp_path}/{UUID}.xml on this machine is as it was after its last move" in caught.value.hint
