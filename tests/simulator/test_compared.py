"""DRBD's online verify after a move, in the simulator: what it comes to is in the report, and spoils nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import display
from lvmigrate.errors import Code, ExitCode, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options, Plan
from lvmigrate.progress import StepProgress
from lvmigrate.report import Report
from lvmigrate.simulator import Guest, Happening, Kind, Settings, Version, World, audit
from lvmigrate.simulator.host import TokenFile
from lvmigrate.simulator.records import Record
from lvmigrate.sqlite_journal import SqliteJournal

VERIFY = Options(verify_disks=True)
BOTH = pytest.mark.parametrize("version", list(Version), ids=lambda version: version.value)


def moved(world: World, options: Options = VERIFY, **changes: Any) -> Report:
    tasklet = MigrateInstance(dataclasses.replace(world.controller("c1"), **changes), "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def planned(world: World, options: Options = VERIFY) -> Plan:
    return MigrateInstance(world.controller("c1"), "web1", options=options).check_prereq()


def whole(world: World, guest: Guest, node: str = "node2") -> None:
    assert world.running(guest) == [node]
    assert not world.violations
    assert [str(finding) for finding in audit(world)] == []


def codes(report: Report) -> set[Code]:
    return {warning.code for warning in report.warnings} & {Code.DISKS_DIFFER, Code.VERIFY_UNFINISHED}


def stray(guest: Guest, node: str, volume: int) -> None:
    """A disk that does not keep what it was given, and does not say so."""
    end = guest.resources[0].ends[node]
    end.heads[volume] = Record("a bad disk", end.heads[volume])


@BOTH
def test_two_copies_that_are_the_same(version: Version, tmp_path: Path) -> None:
    with World(settings=Settings(version=version)) as world:
        journal = SqliteJournal(tmp_path / "journal.db")
        guest = world.add_guest("web1", "node1", volumes=2)
        world.timeline.advance(1.0)
        told: list[StepProgress] = []
        report = moved(world, journal=journal, on_progress=told.append)
        found = [
            (one.resource, one.volume, one.out_of_sync_kib, one.skipped_kib, one.because) for one in report.verified
        ]
        assert found == [("web1", 0, 0, 0, ""), ("web1", 1, 0, 0, "")]
        assert all(one.seconds > 5 for one in report.verified)
        assert not codes(report)
        whole(world, guest)
        steps = [(one.number, one.steps, one.step) for one in told if one.step == "compare"]
        assert set(steps) == {(9, 9, "compare")}
        assert any(one.verify is not None and one.verify.volumes == ("web1/0", "web1/1") for one in told)
        assert [one.elapsed_s for one in told] == sorted(one.elapsed_s for one in told)
        lines = "\n".join(display.report_lines(report))
        assert "compared      web1/0 is the same on both nodes" in lines
        story = journal.story("last")
        assert story.entry.outcome == "OK"
        assert story.result is not None
        assert [one["out_of_sync_kib"] for one in story.result["verified"]] == [0, 0]
        assert {row.name for row in story.rows} >= {"compare", "begin_verify"}
        assert any("web1/0 is the same on both nodes" in row.name for row in story.rows)


@BOTH
def test_two_copies_that_differ(version: Version) -> None:
    with World(settings=Settings(version=version)) as world:
        guest = world.add_guest("web1", "node1", volumes=2)
        world.timeline.advance(1.0)

        def arrives(progress: StepProgress) -> None:
            if progress.step == "compare":
                stray(guest, "node1", 1)

        report = moved(world, on_progress=arrives)
        assert [one.out_of_sync_kib for one in report.verified] == [0, 4]
        (finding,) = (warning for warning in report.warnings if warning.code is Code.DISKS_DIFFER)
        assert "4 KiB of web1/1 differ between node2 and node1" in finding.sentence
        nine = version is Version.V9
        assert ("invalidate-remote web1 NODE_ID 1 --reset-bitmap=no` on node2" in finding.hint) is nine
        assert ("`drbdadm connect web1` on node1" in finding.hint) is not nine
        assert "compared      web1/1 differs in 4 KiB" in "\n".join(display.report_lines(report))


@BOTH
def test_a_cut_breaks_it_off_and_the_report_says_so(version: Version) -> None:
    with World(settings=Settings(version=version)) as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        world.faults.add("c1.begin_verify@node2#1", Happening.DRBD_CUT_SHORT)
        report = moved(world)
        (one,) = report.verified
        assert one.out_of_sync_kib is None
        assert "does not say that it came to its end" in one.because
        assert codes(report) == {Code.VERIFY_UNFINISHED}
        assert world.running(guest) == ["node2"]
        world.timeline.advance(60.0)
        whole(world, guest)


def test_whoever_asks_to_stop_is_not_kept_waiting_and_the_move_stands() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        context = world.controller("c1")

        def stop(progress: StepProgress) -> None:
            if progress.step == "compare":
                context.cancel.set()

        report = moved(world, on_progress=stop)
        (one,) = report.verified
        assert "as asked; DRBD goes on with it" in one.because
        assert codes(report) == {Code.VERIFY_UNFINISHED}
        # A move that comes meanwhile waits for its end, as for a resynchronisation's.
        context.cancel.clear()
        again = moved(world, Options())
        assert again.target == "node1"
        assert next(step.seconds for step in again.steps if step.name == "sync") > 2
        assert again.verified == ()
        whole(world, guest, "node1")


def test_a_node_does_not_begin_it_while_another_move_is_under_way() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        tokens = world.hosts["node2"].tokens
        kept: list[TokenFile] = []

        def other(progress: StepProgress) -> None:
            if progress.step == "guard" and not kept:
                kept.append(next(iter(tokens.values())))
            if progress.step == "compare":
                tokens[guest.uuid] = kept[0]

        report = moved(world, on_progress=other)
        (one,) = report.verified
        assert "(92)" in one.because
        assert codes(report) == {Code.VERIFY_UNFINISHED}
        assert guest.resources[0].verifying == {}


#: A call of the comparison, and whether the copies are compared all the same.
FAILING = [
    ("begin_verify@node2#1", Kind.REFUSED_BEFORE, False),
    ("begin_verify@node2#1", Kind.LOST_BEFORE, False),
    ("begin_verify@node2#1", Kind.LOST_AFTER, False),
    ("begin_verify@node2#1", Kind.LATE, False),
    ("watch@node2#2", Kind.LOST_BEFORE, False),
    ("verify_ends@node2#1", Kind.LOST_BEFORE, False),
    ("verify_ends@node2#2", Kind.LOST_BEFORE, True),
    ("verify_ends@node2#2", Kind.HANGS_BEFORE, True),
]


@pytest.mark.parametrize(("call", "kind", "all_the_same"), FAILING, ids=str)
def test_what_fails_then_does_not_spoil_the_move(call: str, kind: Kind, all_the_same: bool) -> None:  # noqa: FBT001
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        world.faults.add(f"c1.{call}", kind)
        report = moved(world)
        (one,) = report.verified
        assert (one.out_of_sync_kib, one.because == "") == ((0, True) if all_the_same else (None, False))
        assert codes(report) == (set() if all_the_same else {Code.VERIFY_UNFINISHED})
        world.timeline.advance(200.0)
        whole(world, guest)


def test_a_silent_node_is_not_waited_for_for_ever() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)

        def cut(progress: StepProgress) -> None:
            if progress.verify is not None:
                world.controllers["c1"].cut_way("node2", 300.0)

        report = moved(world, on_progress=cut)
        (one,) = report.verified
        assert 120 < one.seconds < 200
        assert "node2" in one.because
        world.timeline.advance(300.0)
        whole(world, guest)


def test_what_cannot_be_compared_is_refused_before_anything() -> None:
    with World() as world:
        guest = world.add_guest("web1", "node1")
        assert planned(world).steps[-1][0] == "compare"
        assert planned(world, Options()).steps[-1][0] == "verify"
        guest.resources[0].verify_alg = None
        assert planned(world, Options()).steps[-1][0] == "verify"
        failover = FailoverInstance(world.controller("c1"), "web1", options=FailoverOptions(verify_disks=True))
        checks: list[Callable[[], Plan]] = [partial(planned, world), failover.check_prereq]
        for check in checks:
            with pytest.raises(Refused) as caught:
                check()
            assert {finding.code for finding in caught.value.findings} == {Code.OPTION_UNSUPPORTED}
            assert {finding.sentence for finding in caught.value.findings} == {
                f"web1 has no verify-alg on {node}: DRBD cannot compare its copies." for node in ("node1", "node2")
            }
            assert "`verify-alg crc32c;`" in caught.value.findings[0].hint


@BOTH
def test_after_a_failover_too(version: Version) -> None:
    with World(settings=Settings(version=version)) as world:
        guest = world.add_guest("web1", "node1")
        world.timeline.advance(1.0)
        tasklet = FailoverInstance(world.controller("c1"), "web1", options=FailoverOptions(verify_disks=True))
        assert tasklet.check_prereq().steps[-1][0] == "compare"
        (one,) = tasklet.exec().verified
        assert (one.out_of_sync_kib, one.because) == (0, "")
        whole(world, guest)


def test_a_dead_node_has_no_copy_to_compare_with() -> None:
    with World() as world:
        world.add_guest("web1", "node1", defined_on_peer=True)
        world.timeline.advance(1.0)
        world.power_cut("node1")
        world.timeline.advance(100.0)
        options = FailoverOptions(is_off="node1", verify_disks=True)
        with pytest.raises(Refused) as caught:
            FailoverInstance(world.controller("c1"), "web1", options=options).check_prereq()
        (finding,) = caught.value.findings
        assert (finding.code, caught.value.exit_code) == (Code.OPTION_UNSUPPORTED, ExitCode.REFUSED)
        assert "Leave --verify-disks out" in finding.hint
        FailoverInstance(world.controller("c1"), "web1", options=FailoverOptions(is_off="node1")).check_prereq()
