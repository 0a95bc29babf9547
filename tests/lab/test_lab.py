"""The lab itself: both ways of its one Vagrantfile, and its two nodes."""

from __future__ import annotations

import subprocess

from vagrant.labkit.lab import HERE, NODES, Lab


def test_vagrant_finds_both_ways_valid() -> None:
    done = subprocess.run([HERE / "lab", "validate"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("validated successfully") == 2


def test_both_nodes_are_up(lab: Lab) -> None:
    done = subprocess.run([HERE / "lab", "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for node in NODES:
        assert f"{node} up: kernel" in done.stdout
        assert lab.drbd_version() in done.stdout


def test_an_unknown_host_key_is_refused(lab: Lab) -> None:
    """ssh between the nodes and from here checks host keys."""
    config = (lab.state / "ssh_config").read_text()
    assert config.count("StrictHostKeyChecking yes") == len(NODES)
    options = [
        word for o in ("UserKnownHostsFile=/dev/null", "BatchMode=yes", "ControlPath=none") for word in ("-o", o)
    ]
    command = ["ssh", *options, "-F", str(lab.state / "ssh_config"), NODES[0], "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
