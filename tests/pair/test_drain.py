"""A drain on the pair: twenty guests there and back, and a controller that dies in the middle."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lvmigrate.cluster import Cluster
from lvmigrate.drain_report import Moved, Nobody
from lvmigrate.errors import ExitCode
from lvmigrate.manner import Manner
from lvmigrate.node_states import State
from lvmigrate.progress import StepProgress
from lvmigrate.traffic import Departure, Limits
from storage import SharedStorage
from tests.pair.cluster import DISKS, Description, PairShell
from tests.pair.guest import Guest, Load
from tests.pair.host import wait_until
from tests.pair.pair import Pair

LIGHT = Load(mib=1, rate=20, record_ms=200)


class Eye(Nobody):
    """Counts who takes a place: one whose memory is on its target, and who is let run there, takes none."""

    def __init__(self) -> None:
        self.under_way: set[str] = set()
        self.most = 0
        self.heard: set[str] = set()

    def begun(self, departure: Departure) -> None:
        self.under_way.add(departure.name)
        self.most = max(self.most, len(self.under_way))

    def progress(self, progress: StepProgress) -> None:
        self.heard.add(progress.instance)
        if progress.step in ("switch", "close", "verify"):
            self.under_way.discard(progress.instance)

    def moved(self, moved: Moved) -> None:
        self.under_way.discard(moved.name)


def description(pair: Pair) -> Description:
    # Long leases: several moves at once on a busy machine are slow, not dead.
    return dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0)


@pytest.fixture
def cluster(pair: Pair, tmp_path: Path) -> Iterator[Cluster]:
    """A controller with a place of its own for the states of nodes."""
    described = description(pair)
    plain, hypervisor = described.cluster()
    configuration = dataclasses.replace(plain.config, journal=tmp_path / "journal.sqlite")
    storage = SharedStorage(described.nodes, [DISKS], shell=PairShell(described.inside))
    with Cluster(configuration, hypervisor, storage) as cluster:
        yield cluster


def all_whole(pair: Pair, guests: list[Guest], cluster: Cluster, *, on: str) -> None:
    host = next(host for host in pair.hosts if host.name == on)
    with ThreadPoolExecutor(max_workers=len(guests)) as pool:
        list(pool.map(partial(pair.whole, on=host), guests))  # each waits for two passes over its memory
    audit = cluster.audit()
    assert (audit.findings, audit.silent, audit.under_way) == ((), (), ())


@pytest.mark.long
def test_twenty_guests_leave_and_come_back(pair: Pair, cluster: Cluster) -> None:
    guests = [pair.guest(f"web{number}", on=pair.one, load=LIGHT) for number in range(20)]
    eye = Eye()
    limits = Limits(per_source=4, per_target=4, per_link=4)
    report = cluster.drain(["node1"], manner=Manner(limits=limits, onlooker=eye, options=cluster.options_of))
    assert (report.exit_code, report.stayed, len(report.moved)) == (ExitCode.OK, (), 20)
    assert (eye.most, len(eye.heard)) == (4, 20)
    print(f"there: {report.seconds:.1f} s, told before: {report.forecast_s:.1f} s")
    all_whole(pair, guests, cluster, on="node2")
    assert cluster.nodes["node1"].drained is not None
    report = cluster.bring_back("node1", manner=Manner(limits=limits, options=cluster.options_of))
    assert (report.exit_code, len(report.moved)) == (ExitCode.OK, 20)
    print(f"back: {report.seconds:.1f} s")
    all_whole(pair, guests, cluster, on="node1")
    assert cluster.node_states() == {}


_DIES = """
import os, signal, sys
from lvmigrate.manner import Manner
from tests.pair.cluster import Description
from tests.pair.test_drain import Eye

class Dies(Eye):
    def moved(self, moved):
        super().moved(moved)
        self.gone = True
    def progress(self, progress):
        if getattr(self, "gone", False) and progress.memory is not None:
            os.kill(os.getpid(), signal.SIGKILL)

cluster, _ = Description.read(sys.argv[1]).cluster()
cluster._directory = None
cluster._states = type(cluster._states)(None)
cluster.drain(["node1"], manner=Manner(onlooker=Dies(), options=cluster.options_of))
"""


def test_the_controller_is_killed_and_another_one_goes_on(pair: Pair, cluster: Cluster) -> None:
    guests = [pair.guest(f"web{number}", on=pair.one, load=Load(mib=8, rate=200)) for number in range(4)]
    short = dataclasses.replace(description(pair), lease_s=12.0)
    done = subprocess.run(
        [sys.executable, "-c", _DIES, short.written()], check=False, cwd=Path(__file__).parents[2], timeout=240
    )
    assert done.returncode == -9
    assert pair.running(guests[0])  # somewhere
    report = cluster.drain(["node1"], manner=Manner(options=cluster.options_of))
    assert (report.exit_code, report.stayed) == (ExitCode.OK, ())
    wait_until(lambda: not pair.one.virsh("list", "--name").split(), "nobody is left")
    all_whole(pair, guests, cluster, on="node2")
    assert cluster.node_states()["node1"].state is State.DRAINED
