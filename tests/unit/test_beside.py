"""What a guest has in files beside its disks, when its node is dead: it starts without, and that is said before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lvmigrate.errors import Code, Finding
from lvmigrate.premises import Wanted
from lvmigrate.replication import DiskState
from tests.unit import test_kept, test_stale
from tests.unit.fakes import NEEDS, PREMISES, UUID, FakeHypervisor, FakeStorage, World, refusing

STATE, VARIABLES = f"/var/lib/libvirt/swtpm/{UUID}", "/n/web1.fd"
WITH_BOTH = {"tpm": "emulator", "nvram": VARIABLES, "nvram_template": "/usr/share/OVMF/VARS.fd"}


def on_its_node(needs: dict[str, Any]) -> World:
    return test_stale.dead(DiskState.UP_TO_DATE, needs=dataclasses.replace(NEEDS, **needs), premises=dict(PREMISES))


def warned(found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.code in (Code.TPM, Code.NVRAM)]


@pytest.mark.parametrize(
    ("needs", "code", "path", "comes_of_it"),
    [
        ({"tpm": "emulator"}, Code.TPM, STATE, "asks for its recovery key"),
        ({"nvram": VARIABLES}, Code.NVRAM, VARIABLES, "Boot entries"),
    ],
)
def test_what_the_survivor_has_not_is_said_before_and_keeps_no_guest_from_being_started(
    needs: dict[str, Any], code: Code, path: str, comes_of_it: str
) -> None:
    world = on_its_node(needs)
    failover = test_stale.tasklet(world, ignore_consistency=False)
    (warning,) = warned(failover.check_prereq().warnings)
    assert warning.code is code
    assert f"node2 has none in {path}, node1 may" in warning.sentence
    assert comes_of_it in warning.hint
    assert warned(failover.exec().warnings) == [warning]
    assert world.running() == ["node2"]


def test_what_is_there_needs_no_word() -> None:
    world = on_its_node(WITH_BOTH)
    world.premises["node2"] = dataclasses.replace(world.premises["node2"], paths=frozenset({STATE}))
    (warning,) = warned(test_stale.tasklet(world, ignore_consistency=False).check_prereq().warnings)
    assert warning.code is Code.NVRAM


def test_the_survivor_is_asked_for_these_alone_and_only_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Wanted]] = []
    premises = FakeStorage.premises

    def recorded(self: FakeStorage, node: str, wanted: Wanted) -> Any:
        asked.append((node, wanted))
        return premises(self, node, wanted)

    monkeypatch.setattr(FakeStorage, "premises", recorded)
    test_stale.tasklet(on_its_node({"tpm": "external"}), ignore_consistency=False).check_prereq()
    assert asked == []
    test_stale.tasklet(on_its_node(WITH_BOTH), ignore_consistency=False).check_prereq()
    paths = frozenset({STATE, VARIABLES})
    assert asked == [("node2", Wanted(instance="web1", peer="node1", knock=False, autostart=False, paths=paths))]


def test_a_survivor_that_does_not_say_starts_nothing() -> None:
    world = on_its_node(WITH_BOTH)
    world.faults["premises", "node2"] = refusing("node2")
    assert "node2" in test_stale.refusal(world, ignore_consistency=False).sentence


def test_of_a_guest_without_a_definition_there_the_one_that_was_kept_tells(tmp_path: Path) -> None:
    beside = f"<os><nvram>{VARIABLES}</nvram></os><devices><tpm><backend type='emulator'/></tpm>"
    (tmp_path / f"{UUID}.xml").write_text(test_kept.WHOLE.replace("<devices>", beside))
    _, context = test_kept.dead(tmp_path)
    plan = test_kept.fail_over(context, definition="kept").check_prereq()
    assert [finding.code for finding in warned(plan.warnings)] == [Code.TPM, Code.NVRAM]


def test_a_definition_that_is_gone_by_then_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHypervisor, "definition", lambda *_: None)
    assert test_stale.refusal(on_its_node({}), ignore_consistency=False).code is Code.DEFINITION_MISSING
