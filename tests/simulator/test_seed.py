"""The seed's defects by their numbers (docs/seed.md): each is shown not to be here."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from hv.statistics import progress_of
from lvmigrate import cli
from lvmigrate.cleanup import CleanupInstance
from lvmigrate.convergence import POST_COPY
from lvmigrate.errors import Code, ExitCode, LvmigrateError, MoveFailed, OutcomeUnknown, Refused
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.report import Report
from lvmigrate.simulator import Breach, Guest, Happening, Kind, Settings, Version, World, audit
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.timeline import timeline
from tests.unit.fakes import World as Small
from tests.unit.test_steering import all_arrived, broken, in_post_copy

ROOT = Path(__file__).resolve().parents[2]


def move(world: World, options: Options | None = None) -> Report:
    tasklet = MigrateInstance(world.controller("c1"), "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


@pytest.mark.parametrize("node", ["node1", "node2"])
@pytest.mark.parametrize("method", ["allow_two_primaries", "promote"])
def test_d1_a_failure_while_the_disks_go_dual_primary_is_reverted(method: str, node: str) -> None:
    if (method, node) == ("promote", "node1"):
        node = "node2"
    with World(settings=Settings(version=Version.V84)) as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(f"c1.{method}@{node}#1", Kind.REFUSED_AFTER)
        with pytest.raises(MoveFailed):
            move(world)
        assert (world.running(guest), world.violations, audit(world)) == (["node1"], [], ())


@pytest.mark.parametrize("version", list(Version))
def test_d2_replication_is_never_off(version: Version, tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    with World(settings=Settings(version=version)) as world:
        world.add_guest("web1", "node1")
        tasklet = MigrateInstance(dataclasses.replace(world.controller("c1"), journal=journal), "web1")
        tasklet.check_prereq()
        tasklet.exec()
    lanes = [lane for lane in timeline(journal.story("last")).lanes if lane.name.endswith("connection")]
    assert [[span.name for span in lane.spans] for lane in lanes] == [["Established"], ["Established"]]


@pytest.mark.parametrize("fault", [Kind.LOST_BEFORE, Kind.HANGS_BEFORE, Kind.REFUSED_BEFORE])
@pytest.mark.parametrize("phase", ["transfer#1", "suspended#1", "finished#1"])
def test_d3_an_abort_that_cannot_end_the_target_does_not_run_both(phase: str, fault: Kind) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.faults.add(phase, Happening.LIBVIRT_CUT_LONG)
        world.faults.add(phase, Happening.ABORTED)
        world.faults.add("c1.discard@node2#1", fault)
        with pytest.raises(LvmigrateError):
            move(world)
        world.timeline.advance(100)
        assert Breach.TWO_RUNNING not in {violation.breach for violation in world.violations}
        assert len(world.running(guest)) <= 1


@pytest.mark.parametrize("mended", [True, False])
def test_d4_an_error_of_a_post_copy_ends_neither_half_of_the_guest(*, mended: bool) -> None:
    """Its status cannot be read, its call fails, somebody asks to stop: what runs on the target is the only guest."""
    world = Small()
    asked, cancel = threading.Event(), threading.Event()
    asked.set()

    def follow() -> None:
        if mended:
            world.ending = all_arrived
        else:
            world.looks = 10_000

    def begin() -> None:
        in_post_copy(world)
        cancel.set()

    world.progress = lambda _left: None  # as the hypervisor says that its status cannot be read
    world.late_faults["start_post_copy", "node1"] = begin
    world.ending = broken(world, target="post-copy failed")
    world.late_faults["adopt", "node1"] = follow
    options = Options(policy=POST_COPY, recovery_timeout_s=60)
    tasklet = MigrateInstance(world.context(post_copy=asked, cancel=cancel), "web1", options=options)
    tasklet.check_prereq()
    if mended:
        assert tasklet.exec().running
        assert list(world.violations()) == []
    else:
        with pytest.raises(OutcomeUnknown):
            tasklet.exec()
        assert world.domains["node2"].state.active
        assert world.domains["node1"].state.active
    begun = world.calls.index(("start_post_copy", "node1"))
    # (The guest that has arrived may be told to run at the target once more; its other half never.)
    ends = {"discard", "abort_job", "power_off", "undefine"} if not mended else {"discard", "abort_job", "power_off"}
    assert ends.isdisjoint(name for name, _ in world.calls[begun:])
    assert ("resume", "node1") not in world.calls
    assert not world.abort_asked


def test_d5_the_copy_has_a_limit() -> None:
    with World(settings=Settings(copy_s=10_000.0)) as world:
        guest = world.add_guest("web1", "node1")
        with pytest.raises(MoveFailed) as caught:
            move(world, Options(copy_timeout_s=30.0))
        assert caught.value.code is Code.COPY_TIMEOUT
        assert (world.running(guest), world.violations, audit(world)) == (["node1"], [], ())


def test_d5_the_wait_for_the_disks_has_a_limit() -> None:
    world = Small()
    tasklet = MigrateInstance(world.context(), "web1", options=Options(sync_timeout_s=30.0))
    tasklet.check_prereq()
    world.connected = False
    with pytest.raises(MoveFailed) as caught:
        tasklet.exec()
    assert caught.value.code is Code.SYNC_TIMEOUT
    assert world.running() == ["node1"]


def test_d6_progress_is_what_remains_and_never_passes_100() -> None:
    seen = progress_of({"memory_total": 1000, "memory_processed": 6000, "memory_remaining": 400}, before=None)
    assert seen is not None
    assert 0 < seen.percent < 100
    assert seen.remaining == 400


def test_d7_an_option_that_is_not_obeyed_is_not_accepted() -> None:
    assert cli.main(["failover", "web1", "--cleanup"]) == ExitCode.USAGE


def cramped(world: World) -> Guest:
    """A guest that fits on node2 only if it gives a third of its memory back."""
    guest = world.add_guest("web1", "node1")
    world.hosts["node2"].free_memory_kib = guest.memory_kib * 2 // 3 + 64 * 1024 + guest.memory_kib // 512
    world.timeline.advance(1.0)
    return guest


def test_d8_the_balloon_is_awaited_and_given_back() -> None:
    with World() as world:
        guest = cramped(world)
        during: list[int | None] = []
        world.entered = lambda _job: during.append(guest.current_kib)
        move(world, Options(allow_runtime_changes=True))
        assert during[0] == guest.memory_kib * 2 // 3  # as the copy began
        world.timeline.advance(5.0)
        assert guest.current_kib in (None, guest.memory_kib)
        assert (world.running(guest), world.violations, audit(world)) == (["node2"], [], ())


def test_d8_the_balloons_value_is_read_anew_and_not_the_configurations() -> None:
    with World() as world:
        guest = cramped(world)
        guest.current_kib = guest.memory_kib // 2  # somebody has made it smaller meanwhile: it fits as it is
        move(world)
        assert (world.running(guest), guest.current_kib) == (["node2"], guest.memory_kib // 2)


def test_d8_a_move_that_fails_gives_it_back() -> None:
    with World() as world:
        guest = cramped(world)
        world.faults.add("c1.copy_memory@node1#1", Kind.REFUSED_BEFORE)
        with pytest.raises(MoveFailed):
            move(world, Options(allow_runtime_changes=True))
        world.timeline.advance(5.0)
        assert guest.current_kib in (None, guest.memory_kib)
        assert (world.running(guest), world.violations, audit(world)) == (["node1"], [], ())


@pytest.mark.parametrize("running", [True, False])
def test_d9_a_guest_that_arrived_paused_is_as_it_was(*, running: bool) -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1", running=running)
        assert move(world).running is running
        assert world.running(guest) == (["node2"] if running else [])
        assert (world.violations, audit(world)) == ([], ())


def test_d10_a_source_without_its_disk_does_not_pass() -> None:
    from lvmigrate.replication import DiskState  # noqa: PLC0415

    world = Small()
    world.disks["node1"] = DiskState.DISKLESS
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1").check_prereq()
    assert Code.NOT_UPTODATE in {finding.code for finding in caught.value.findings}


def test_d11_no_policy_for_a_split_brain_is_set() -> None:
    """Memory in clear is another part of it, which is not dealt with here."""
    for path in (ROOT / "storage").iterdir():
        if path.is_file():
            assert "--after-sb" not in path.read_text()


@pytest.mark.parametrize("fault", [Kind.REFUSED_BEFORE, Kind.LOST_AFTER])
def test_d12_every_act_of_a_move_may_fail(fault: Kind) -> None:
    """The campaign does this with every call, every fault and every variant; here is the sample that always runs."""
    with World() as world:
        world.add_guest("web1", "node1")
        move(world)
        places = [call.place for call in world.calls if call.acts and not call.background]
    assert len(places) > 10
    for place in places:
        with World() as world:
            guest = world.add_guest("web1", "node1")
            world.faults.add(place, fault)
            try:
                move(world)
            except LvmigrateError:
                world.timeline.advance(200)
                tasklet = CleanupInstance(world.controller("c2"), "web1")
                tasklet.check_prereq()
                tasklet.exec()
            assert (str(place), len(world.running(guest)), world.violations, audit(world)) == (str(place), 1, [], ())
