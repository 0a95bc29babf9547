"""The pair itself: it leaves nothing on the machine, even when it is killed, and says what it lacks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pair import pair as pairs
from tests.pair.host import wait_until
from tests.pair.pair import Pair

ROOT = Path(__file__).parents[2]


def traces(folder: Path) -> list[str]:
    """What the machine has of a pair: processes and loop devices that name its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if str(folder) in command and process.name != str(os.getpid()):
            found.append(f"{process.name} {command[:60]}")
    devices = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout
    return found + [line for line in devices.splitlines() if str(folder) in line]


def test_it_leaves_nothing(cache: Path) -> None:
    with Pair(cache=cache) as pair:
        pair.guest("web1", on=pair.one)
        daemons = [pid for host in pair.hosts for pid in host.daemons()]
        assert len(daemons) == 2
        assert len(traces(pair.folder)) > 3  # the search finds what is there
        folder = pair.folder
    assert traces(folder) == []
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in daemons)


def test_killed_it_leaves_no_process_and_no_device() -> None:
    code = (
        "import time\nfrom tests.pair.pair import Pair\n"
        "with Pair() as pair:\n pair.guest('web1', on=pair.one)\n print(pair.folder, flush=True)\n time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.exists()
        try:
            assert len(traces(folder)) > 3
        finally:
            process.send_signal(signal.SIGKILL)
    wait_until(lambda: not traces(folder), lambda: str(traces(folder)))
    shutil.rmtree(folder)


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pairs.missing() == ()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match=r"there is no libvirtd; there is no virsh.*vagrant/lab setup"), Pair():
        pass


def test_the_hosts_reach_each_other_and_nobody_else(pair: Pair) -> None:
    for host in pair.hosts:
        listed = host.run("ip -o -4 address show | awk '{print $2, $4}'").splitlines()
        assert sorted(word.split()[0] for word in listed) == ["eth0", "eth1", "lo"]
        assert "default" not in host.run("ip route")
        assert host.run("hostname").strip() == host.name
        there = pair.other(host).node.peer_uri
        assert pair.other(host).name in host.run(f"virsh -q -c {there} hostname")
