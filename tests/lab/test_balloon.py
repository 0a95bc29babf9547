"""A guest with a balloon, and a target whose memory another program holds: it shrinks to what is really free there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate import Cluster, ExitCode, Options, StepProgress
from lvmigrate.errors import Code
from tests.lab.support import Outcome, Running
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import NODES, Lab

HOME, AWAY = NODES
#: Most of it is never touched, and takes no memory at home.
GUEST = dataclasses.replace(WEB1, memory_mib=320, balloon=True)
#: In the middle of what the test stands: 224 at least (half of the guest, and its QEMU), below 384 (all of it).
#: What else runs on the node takes some tens more or less by the time that is looked at.
ROOM_MIB = 304
UNIT = "lab-hog"


@pytest.fixture
def cramped(lab: Lab) -> Iterator[Lab]:
    """node2 has about `ROOM_MIB` of memory to give: a program holds the rest."""
    free = int(lab.run(AWAY, "awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo"))
    hog = f"(head -c {free - ROOM_MIB}m /dev/zero; sleep 3600) | tail"  # tail keeps the line that does not end
    lab.run(AWAY, f"systemd-run -q --unit {UNIT} --property StandardOutput=null sh -c '{hog}'")
    try:
        until(lambda: held_mib(lab) >= free - ROOM_MIB, "the program does not hold its memory")
        yield lab
    finally:
        let_go(lab)


def held_mib(lab: Lab) -> int:
    return int(lab.run(AWAY, f"cat /sys/fs/cgroup/system.slice/{UNIT}.service/memory.current")) >> 20


def let_go(lab: Lab) -> None:
    lab.run(AWAY, f"systemctl stop {UNIT}; systemctl reset-failed {UNIT} 2>/dev/null; true")


def has_mib(lab: Lab, node: str) -> int:
    line = next(li for li in lab.run(node, f"virsh dominfo {GUEST.name}").splitlines() if li.startswith("Used memory"))
    return int(line.split()[2]) >> 10


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def test_it_shrinks_to_what_is_free_and_grows_again(
    cramped: Lab, running: Callable[..., Running], lvmigrate: Callable[..., Outcome], cluster_file: Path
) -> None:
    it = running(GUEST)
    refused = lvmigrate("check", GUEST.name, "--to", AWAY, "--json")
    assert refused.code == ExitCode.REFUSED
    assert {finding["code"] for finding in refused.json["error"]["findings"]} == {"MEMORY_SHORT"}
    seen: list[int] = []

    def look(progress: StepProgress) -> None:
        if progress.memory is not None and not seen:
            seen.append(has_mib(cramped, HOME))
            let_go(cramped)  # so that it may have all of it again where it arrives

    with Cluster.open(cluster_file) as cluster:
        report = cluster.migrate(
            GUEST.name, target=AWAY, options=Options(allow_runtime_changes=True, bandwidth_mib_s=2), on_progress=look
        )
    assert Code.MEMORY_SHRINKS in [warning.code for warning in report.warnings]
    assert seen
    assert GUEST.memory_mib // 2 <= seen[0] < GUEST.memory_mib
    until(lambda: has_mib(cramped, AWAY) == GUEST.memory_mib, f"it was not given back: {has_mib(cramped, AWAY)} MiB")
    it.whole_on(AWAY)
