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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopping_the_command_during_the_copy_aborts_it(
    running: Callable[[Guest], Running], cluster_file: os.PathLike[str], number: signal.Signals
) -> None:
    # Dirties more than the one MiB a second that may be sent: the copy cannot end by itself.
    it = running(dataclasses.replace(WEB1, dirty_mib=4, rate=400))
    slow = ("--bandwidth", "1", "--downtime-limit", "0.001")
    words = [str(LVMIGRATE), "migrate", WEB1.name, "--config", str(cluster_file), *slow]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert command.stderr is not None
    said = ""
    while "/8 memory" not in said:
        line = command.stderr.readline()
        assert line, said
        said += line
    deadline = time.monotonic() + 120
    while "job: yes" not in it.lab.run(
        NODES[0], f"virsh domjobinfo {WEB1.name} | grep -q 'Memory remaining' && echo job: yes; true"
    ):
        assert time.monotonic() < deadline
    if number is signal.SIGINT:
        os.killpg(command.pid, number)  # a terminal sends it to the whole group, libvirt's ssh included
    else:
        os.kill(command.pid, number)
    rest = command.communicate(timeout=200)[1]
    assert command.returncode == ExitCode.ABORTED, said + rest
    assert "ABORTED" in rest
    assert "Traceback" not in rest
    it.whole_on(NODES[0])
