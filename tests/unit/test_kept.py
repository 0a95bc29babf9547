"""The last definition of a guest that was moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import kept
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.replication import Role
from lvmigrate.tasklet import Context
from tests.unit.fakes import NODES, PATH, UUID, FakeHypervisor, World, guest, refusing, unreachable

TEXT = f"<domain><name>web1</name><uuid>{UUID}</uuid><memory>1024</memory></domain>"


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    def definition(self: FakeHypervisor, node: str, uuid: str) -> str | None:
        with self.world.call("definition", node):
            return TEXT if node in self.world.domains else None

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
    assert [found and found.path for found in (kept.last(context, "web1"), kept.last(context, UUID))] == [path] * 2
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


WHOLE = f"""<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><memory unit='KiB'>1024</memory><vcpu>1</vcpu>
<devices><disk type='block' device='disk'><source dev='{PATH}'/><target dev='vda'/></disk></devices></domain>"""


def dead(tmp_path: Path, **given: Any) -> tuple[World, Context]:
    """node1 is off, and node2 has no definition of its guest."""
    world = World(connected=False, roles=dict.fromkeys(NODES, Role.SECONDARY), **given)
    world.domains = {"node1": guest("node1", state=DomainState.OFF)}
    for method in ("domain", "domains", "traces"):
        world.faults[method, "node1"] = unreachable("node1")
    return world, world.context(definitions=tmp_path)


def fail_over(context: Context, **options: Any) -> FailoverInstance:
    return FailoverInstance(context, "web1", options=FailoverOptions(is_off="node1", **options))


def refusal(context: Context, **options: Any) -> Finding:
    with pytest.raises(Refused) as caught:
        fail_over(context, **options).check_prereq()
    (finding,) = caught.value.findings
    return finding


def test_a_failover_from_a_dead_node_says_what_was_kept_and_when(tmp_path: Path) -> None:
    path = tmp_path / f"{UUID}.xml"
    path.write_text(WHOLE)
    os.utime(path, (0, 1795000000))
    found = refusal(dead(tmp_path)[1])
    assert found.code is Code.DEFINITION_MISSING
    assert found.hint.startswith("--definition kept: as it was after its last move")
    assert f"({path}, of 2026-11-18T11:06+00:00, on this machine)" in found.hint


def test_of_two_guests_of_one_name_the_newest_is_said(tmp_path: Path) -> None:
    for number, uuid in enumerate(("a", "b", "c")):
        (tmp_path / f"{uuid}.xml").write_text(TEXT)
        os.utime(tmp_path / f"{uuid}.xml", (0, 1000 + number % 2))
    found = kept.last(dead(tmp_path)[1], "web1")
    assert found is not None
    assert found.path.name == "b.xml"


def test_one_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text(TEXT)
    for number in range(20):
        (tmp_path / f"a{number}.xml").write_bytes(b"\xff\xfe")
        (tmp_path / f"c{number}.xml").mkdir()
    found = kept.last(dead(tmp_path)[1], "web1")
    assert found is not None
    assert found.path.name == "b.xml"


@pytest.mark.parametrize("word", ["kept", "a file"])
def test_it_is_started_from_what_was_kept(tmp_path: Path, word: str) -> None:
    path = tmp_path / (f"{UUID}.xml" if word == "kept" else "web1.txt")
    path.write_text(WHOLE)
    world, context = dead(tmp_path)
    failover = fail_over(context, definition="kept" if word == "kept" else str(path))
    plan = failover.check_prereq()
    assert ("define", "node2") not in world.calls
    cut_off, warning = plan.warnings
    assert cut_off.code is Code.COPY_CUT_OFF
    assert (warning.code, str(path) in warning.sentence) == (Code.DEFINITION_KEPT, True)
    assert (plan.target_had_definition, plan.domain.uuid) == (False, UUID)
    assert failover.exec().running
    assert world.domains["node2"].left_on == "node1"
    assert world.running() == ["node2"]
    assert world.calls.index(("define", "node2")) < world.calls.index(("promote", "node2"))


def test_where_somebody_has_defined_it_by_then_that_is_left(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.xml").write_text(WHOLE)
    world, context = dead(tmp_path)
    failover = fail_over(context, definition="kept")
    failover.check_prereq()
    world.domains["node2"] = guest("node2", state=DomainState.OFF)
    with pytest.raises(LvmigrateError) as caught:
        failover.exec()
    assert (caught.value.code, "a definition of its own by now" in str(caught.value)) == (Code.DEFINITION_MISSING, True)
    assert ("define", "node2") not in world.calls
    assert "node2" in world.domains


def test_where_the_failover_fails_the_definition_is_gone_again(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.xml").write_text(WHOLE)
    world, context = dead(tmp_path)
    world.faults["promote", "node2"] = refusing("node2")
    failover = fail_over(context, definition="kept")
    failover.check_prereq()
    with pytest.raises(LvmigrateError):
        failover.exec()
    assert "node2" not in world.domains
    assert world.tokens == {}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (None, Code.DEFINITION_MISSING, "No definition of web1 was kept"),
        (WHOLE.replace("<name>web1<", "<name>web2<"), Code.DEFINITION_WRONG, f"defines web2 ({UUID}), not web1"),
        (WHOLE.replace(UUID, UUID[::-1]), Code.DEFINITION_WRONG, f"defines web1 ({UUID[::-1]}), not web1"),
        ("<name>web1</name>", Code.DEFINITION_WRONG, "Reading the guest's definition"),
        ("<name>web1</name><", Code.DEFINITION_WRONG, "Reading the guest's definition"),
        (f"<!DOCTYPE domain>{WHOLE}", Code.DEFINITION_WRONG, "Reading the guest's definition"),
        (WHOLE.replace("KiB", "acre"), Code.DEFINITION_WRONG, "Reading the guest's definition"),
        (WHOLE.replace(">1024<", "><"), Code.DEFINITION_WRONG, "Reading the guest's definition"),
        (WHOLE.replace(PATH, "/srv/web1.img"), Code.DISK_NOT_REPLICATED, "/srv/web1.img"),
    ],
)
def test_what_is_no_definition_of_this_guest_is_refused(
    tmp_path: Path, text: str | None, code: Code, words: str
) -> None:
    if text is not None:
        (tmp_path / f"{UUID}.xml").write_text(text)
        if "web2" in text:  # asked for by its UUID it would be found, and by its name it is not
            found = refusal(dead(tmp_path)[1], definition=str(tmp_path / f"{UUID}.xml"))
            assert (found.code, words in found.sentence) == (code, True)
            return
    found = refusal(dead(tmp_path)[1], definition="kept")
    assert (found.code, words in found.sentence) == (code, True)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = refusal(dead(tmp_path)[1], definition=str(tmp_path / "nosuch.xml"))
    assert (found.code, "No such file" in found.sentence) == (Code.DEFINITION_MISSING, True)


def test_it_takes_no_disk_of_another_guest_nor_its_name(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.xml").write_text(WHOLE)
    for another, code in (
        (guest("node2", uuid="other", name="web2"), Code.RESOURCE_SHARED),
        (guest("node2", uuid="other", disks=()), Code.INSTANCE_ON_TARGET),
    ):
        world, context = dead(tmp_path)
        world.shared_with = another
        assert refusal(context, definition="kept").code is code


def test_where_there_is_a_definition_none_is_taken_from_here(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.xml").write_text(WHOLE)
    world, context = dead(tmp_path)
    world.domains["node2"] = guest("node2", state=DomainState.OFF)
    assert refusal(context, definition="kept").code is Code.OPTIONS_CONFLICT
    with pytest.raises(Refused) as caught:
        options = FailoverOptions(definition="kept")
        FailoverInstance(World().context(definitions=tmp_path), "web1", options=options).check_prereq()
    assert caught.value.code is Code.OPTIONS_CONFLICT
