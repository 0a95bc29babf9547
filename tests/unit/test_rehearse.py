"""A rehearsal: the move as far as its first bytes, and back; what it says, and what it never does."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from lvmigrate import cli, cluster, convergence
from lvmigrate.errors import Code, ExitCode, LeftBehind, LvmigrateError, MoveAborted, MoveFailed, Refused, UsageError
from lvmigrate.plan import Mode, Options, Switch
from lvmigrate.progress import MemoryProgress, StepProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.rehearse import Rehearsal, RehearseInstance, rehearsed
from lvmigrate.sqlite_journal import SqliteJournal
from tests.unit.fakes import NODES, World, refusing
from tests.unit.test_cli import InMemory

ARRIVING = MemoryProgress(
    elapsed_s=0.2,
    total=100 << 20,
    remaining=99 << 20,
    processed=1 << 20,
    rate=1 << 20,
    dirty_rate=0,
    iteration=1,
    expected_downtime_s=0.1,
    percent=1.0,
)


def busy() -> World:
    """A guest with memory in use: its copy goes on until it is told to stop."""
    world = World(openers={"node1": 1, "node2": 0}, looks=1000)
    world.progress = lambda left: ARRIVING if left < 998 else None
    return world


def rehearse(world: World, options: Options | None = None, **changes: object) -> Rehearsal:
    tasklet = RehearseInstance(dataclasses.replace(world.context(), **changes), "web1", options=options)  # type: ignore[arg-type]
    tasklet.check_prereq()
    return tasklet.exec()


def test_the_guest_stays_and_all_is_closed() -> None:
    world = busy()
    told = rehearse(world)
    assert list(world.violations()) == []
    assert world.running() == ["node1"]
    assert (told.source, told.target, told.memory_bytes) == ("node1", "node2", 1 << 20)
    assert [step.name for step in told.steps] == ["lock", "sync", "guard", "open", "memory"]
    assert world.abort_asked
    done = [method for method, _ in world.calls]
    for method in ("take_token", "arm_guard", "allow_two_primaries", "promote", "copy_memory", "restore_options"):
        assert method in done
    # What would be past the point of no return was not even tried.
    assert not {"resume", "discard", "start", "shut_down"} & set(done)
    assert any("two primaries" in clause for clause in told.proven)
    assert any("guard" in clause for clause in told.proven)


def test_what_was_not_done_is_not_said_to_be_proven() -> None:
    told = rehearse(busy(), Options(guard=False))
    assert not any("guard" in clause for clause in told.proven)
    assert not any("encrypted" in clause for clause in told.proven)
    told = rehearse(busy(), Options(tls=True))
    assert any("encrypted" in clause for clause in told.proven)


def test_the_options_keep_it_from_ending_at_the_target() -> None:
    wild = Options(
        mode=Mode.POST_COPY,
        switch=Switch.FAST,
        policy=convergence.NAMED["post-copy"],
        auto_converge=True,
        throttle_initial=90,
        bandwidth_mib_s=9999,
        downtime_limit_s=60.0,
        allow_failover=True,
        always_failover=True,
        tls=True,
        connections=4,
    )
    tame = rehearsed(wild)
    assert (tame.mode, tame.switch, tame.may_post_copy, tame.throttles) == (Mode.LIVE, Switch.STRICT, False, False)
    assert (tame.bandwidth_mib_s, tame.downtime_limit_s) == (1, 0.001)
    assert (tame.allow_failover, tame.always_failover) == (False, False)
    # What is to be proven stays.
    assert (tame.tls, tame.connections, tame.guard) == (True, 4, True)


def test_a_guest_that_is_always_failed_over_is_not_shut_down_for_it() -> None:
    world = busy()
    rehearse(world, Options(always_failover=True, allow_failover=True))
    assert "shut_down" not in {method for method, _ in world.calls}
    assert list(world.violations()) == []


def test_what_keeps_it_from_moving_is_found_and_everything_put_back() -> None:
    world = World(openers={"node1": 1, "node2": 0})
    world.ending = lambda _world: CopyEnd(ok=False, detail="no such machine")
    with pytest.raises(MoveFailed, match="did not move"):
        rehearse(world)
    assert list(world.violations()) == []


def test_the_checks_refuse_as_those_of_a_move() -> None:
    world = busy()
    world.connected = False
    with pytest.raises(Refused):
        rehearse(world)
    assert "take_token" not in {method for method, _ in world.calls}


def test_being_asked_to_stop_is_no_success() -> None:
    world = busy()
    cancel = threading.Event()
    world.progress = lambda _left: cancel.set()  # before any memory has arrived
    with pytest.raises(MoveAborted):
        rehearse(world, cancel=cancel)
    assert list(world.violations()) == []


def test_one_that_arrives_too_soon_is_told_of() -> None:
    """It runs once, where the error says: no silent move."""
    world = World(openers={"node1": 1, "node2": 0}, looks=0)
    with pytest.raises(LeftBehind) as caught:
        rehearse(world)
    assert world.running() == ["node2"]
    assert list(world.violations()) == []
    assert "runs there" in caught.value.sentence
    assert "lvmigrate migrate web1 --to node1" in caught.value.hint


def test_a_break_that_was_seen_beside_is_not_hidden_by_being_stopped() -> None:
    world = busy()
    before = world.progress

    def progress(left: int) -> MemoryProgress | None:
        found = before(left)
        if found is not None:
            world.broke.append("node1: Connecting for a moment")
        return found

    world.progress = progress
    with pytest.raises(MoveFailed, match="Connecting for a moment") as caught:
        rehearse(world)
    assert caught.value.code is Code.REPLICATION_BROKE
    assert list(world.violations()) == []


def test_every_listener_hears_of_it() -> None:
    heard: list[StepProgress] = []
    rehearse(busy(), on_progress=heard.append)
    assert {progress.step for progress in heard if progress.memory is not None} == {"memory"}
    assert {progress.steps for progress in heard} == {5}


def test_it_is_in_the_journal_and_runs_no_hook(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    hooks = tmp_path / "hooks"
    folder = hooks / "instance-migrate-pre.d"
    folder.mkdir(parents=True)
    (folder / "10-no").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (folder / "10-no").chmod(0o755)
    told = rehearse(busy(), journal=journal, hooks=hooks)
    assert not (tmp_path / "ran").exists()
    (entry,) = journal.history()
    assert (entry.tasklet, entry.outcome, entry.id) == ("rehearse", "OK", told.errand)


def test_exec_needs_the_checks() -> None:
    with pytest.raises(UsageError):
        RehearseInstance(busy().context(), "web1").exec()


@pytest.mark.parametrize("method", ["arm_guard", "allow_two_primaries", "promote", "copy_memory", "restore_options"])
@pytest.mark.parametrize("node", NODES)
def test_a_refusal_anywhere_leaves_no_second_copy(method: str, node: str) -> None:
    world = busy()
    world.faults[method, node] = refusing(node)
    try:
        rehearse(world)
    except LvmigrateError:
        assert (method, node) in world.calls
    assert world.running() == ["node1"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = busy()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world))
    return world


def test_the_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rehearse", "web1", "--to", "node2"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out.startswith("web1 can move from node1 to node2; it stayed on node1\n")
    assert "\n  proven        memory arrived at node2\n" in out
    assert "5/5 memory" in err
    assert list(world.violations()) == []


def test_the_command_as_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rehearse", "web1", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["memory_bytes"] == 1 << 20
    assert cli.main(["rehearse", "nosuch"]) == ExitCode.REFUSED
