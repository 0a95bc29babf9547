"""The main job, end to end: `web1` and `db1` go there and back; nothing is lost, nothing is left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from lvmigrate import Cluster, ExitCode, StepProgress
from tests.lab.support import LVMIGRATE, Outcome, Running, side_by_side
from vagrant.labkit.guests import DB1, WEB1, Guest
from vagrant.labkit.lab import NODES, other

#: How often the guests go there and back: `make test-lab TIMES=5`.
TIMES = int(os.environ.get("TIMES", "2"))


def test_there_and_back_again_and_again(running: Callable[..., Running], lvmigrate: Callable[..., Outcome]) -> None:
    """Two guests that change places: each move meets another one on its nodes."""
    both = side_by_side(partial(running, WEB1, NODES[0]), partial(running, DB1, NODES[1]))
    there = [(it, other(it.home)) for it in both]
    back = [(it, it.home) for it in both]
    for way in (there, back) * TIMES:
        side_by_side(*(partial(moves, lvmigrate, it.guest, target) for it, target in way))
        side_by_side(*(partial(it.whole_on, target) for it, target in way))


def moves(lvmigrate: Callable[..., Outcome], guest: Guest, target: str) -> None:
    """The command brings ``guest`` to ``target``, and reports it."""
    moved = lvmigrate("migrate", guest.name, "--to", target, "--json")
    assert moved.code == ExitCode.OK, moved.out + moved.err
    report = moved.json
    assert (report["source"] != target, report["target"], report["running"]) == (True, target, True)
    assert 0 < report["downtime_s"] < report["seconds"]
    assert 0 < report["dual_primary_s"] <= report["two_primaries_allowed_s"] < report["seconds"]
    assert [step["name"] for step in report["steps"]] == [
        "lock",
        "sync",
        "guard",
        "open",
        "memory",
        "switch",
        "close",
        "verify",
    ]


def test_the_python_interface_moves_and_tells(
    running: Callable[[Guest], Running], cluster_file: os.PathLike[str]
) -> None:
    it = running(WEB1)
    told: list[StepProgress] = []
    with Cluster.open(cluster_file) as cluster:
        assert cluster.check(WEB1.name).target == NODES[1]
        report = cluster.migrate(WEB1.uuid, on_progress=told.append)
    assert (report.instance, report.source, report.target) == (WEB1.name, *NODES)
    assert {step.step for step in told} == {step.name for step in report.steps}
    percents = [step.memory.percent for step in told if step.memory]
    assert percents == sorted(percents)
    assert all(0 <= percent <= 99 for percent in percents)
    it.whole_on(NODES[1])


def test_of_two_commands_at_once_one_moves_and_one_is_refused(
    running: Callable[[Guest], Running], lvmigrate: Callable[..., Outcome]
) -> None:
    it = running(WEB1)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: lvmigrate("migrate", "web1", "--to", NODES[1], "--json"), range(2)))
    assert sorted(outcome.code for outcome in outcomes) == [ExitCode.OK, ExitCode.REFUSED], outcomes
    it.whole_on(NODES[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnderWay:
    """A command whose copy is under way, and what it has said until then."""

    process: subprocess.Popen[str]
    said: str

    def end(self, within_s: float) -> str:
        """All that it said, once it has ended."""
        return self.said + self.process.communicate(timeout=within_s)[1]


def under_way(it: Running, cluster_file: os.PathLike[str], *slow: str) -> UnderWay:
    """`lvmigrate migrate` of the guest, away from the first node."""
    words = [str(LVMIGRATE), "migrate", it.guest.name, "--config", str(cluster_file), *slow]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert command.stderr is not None
    said = ""
    while "/8 memory" not in said:
        line = command.stderr.readline()
        assert line, said
        said += line
    deadline = time.monotonic() + 120
    while "job: yes" not in it.lab.run(
        NODES[0], f"virsh domjobinfo {it.guest.name} | grep -q 'Memory remaining' && echo job: yes; true"
    ):
        assert time.monotonic() < deadline
    return UnderWay(process=command, said=said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopping_the_command_during_the_copy_aborts_it(
    running: Callable[[Guest], Running], cluster_file: os.PathLike[str], number: signal.Signals
) -> None:
    # Dirties more than the one MiB a second that may be sent: the copy cannot end by itself.
    it = running(dataclasses.replace(WEB1, dirty_mib=4, rate=400))
    move = under_way(it, cluster_file, "--bandwidth", "1", "--downtime-limit", "0.001")
    if number is signal.SIGINT:
        os.killpg(move.process.pid, number)  # a terminal sends it to the whole group, libvirt's ssh included
    else:
        os.kill(move.process.pid, number)
    said = move.end(200)
    assert move.process.returncode == ExitCode.ABORTED, said
    assert "ABORTED" in said
    assert "Traceback" not in said
    it.whole_on(NODES[0])


def test_other_hands_that_adjust_the_resource_during_the_copy_change_nothing(
    running: Callable[[Guest], Running], cluster_file: os.PathLike[str]
) -> None:
    """As LINSTOR does whenever anything of a resource changes: the configuration knows of no two primaries."""
    it = running(dataclasses.replace(WEB1, dirty_mib=4, rate=400))
    # It cannot end by itself before the other hands have been at it.
    move = under_way(it, cluster_file, "--bandwidth", "1", "--downtime-limit", "0.001")
    for node in NODES:
        it.lab.run(node, f"drbdadm adjust {it.guest.name} || true")
    it.lab.run(
        NODES[0], f"virsh migrate-setspeed {it.guest.name} 1000; virsh migrate-setmaxdowntime {it.guest.name} 500"
    )
    said = move.end(300)
    assert move.process.returncode == ExitCode.OK, said
    it.whole_on(NODES[1])
