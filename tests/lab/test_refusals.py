"""Bad input and bad states on the real nodes: one clear sentence, a code, the next thing to do, and nothing changed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvmigrate import ExitCode
from tests.lab.support import Outcome, Running
from vagrant.labkit import guests
from vagrant.labkit.guests import DB1, LOCAL1, WEB1, Guest
from vagrant.labkit.lab import NODES, Lab

Command = Callable[..., Outcome]
Start = Callable[[Guest], Running]


def refused(outcome: Outcome, *codes: str) -> None:
    """The command refused with these codes among its findings, and said for each what to do."""
    assert outcome.code == ExitCode.REFUSED, outcome.out + outcome.err
    findings = outcome.json["error"]["findings"]
    assert set(codes) <= {finding["code"] for finding in findings}, findings
    for finding in findings:
        assert finding["sentence"].endswith(".")
        assert finding["hint"]


def test_an_unknown_instance(lvmigrate: Command) -> None:
    refused(lvmigrate("migrate", "web9", "--json"), "INSTANCE_UNKNOWN")
    assert lvmigrate("status", "web9", "--json").json["error"]["code"] == "INSTANCE_UNKNOWN"


def test_an_unknown_node_the_same_node_and_another_move(running: Start, lvmigrate: Command) -> None:
    it = running(WEB1)
    refused(lvmigrate("migrate", "web1", "--to", "node9", "--json"), "NODE_UNKNOWN")
    refused(lvmigrate("migrate", "web1", "--to", NODES[0], "--json"), "TARGET_IS_SOURCE")
    token = f"/run/lvmigrate/{WEB1.uuid}.token"
    it.lab.run(NODES[1], f"mkdir -p /run/lvmigrate; printf 'x\\n9999999.00\\nroot@elsewhere pid 1\\n3000\\n' >{token}")
    outcome = lvmigrate("migrate", "web1", "--json")
    it.lab.run(NODES[1], f"rm {token}")
    refused(outcome, "LOCKED")
    assert "root@elsewhere pid 1" in outcome.out
    it.whole_on(NODES[0])


def test_a_stopped_guest(lab: Lab, lvmigrate: Command) -> None:
    guests.remove(lab, WEB1)
    guests.define(lab, WEB1, NODES[0])
    refused(lvmigrate("migrate", "web1", "--json"), "INSTANCE_STOPPED")
    guests.remove(lab, WEB1)


def test_a_disk_that_is_not_replicated(lab: Lab, lvmigrate: Command) -> None:
    guests.make(lab, LOCAL1, NODES[0])
    outcome = lvmigrate("check", "local1", "--json")
    guests.remove(lab, LOCAL1)
    refused(outcome, "DISK_NOT_REPLICATED")
    assert "vda" in outcome.out


def test_a_resource_that_another_guest_uses_too(running: Start, lab: Lab, lvmigrate: Command) -> None:
    it = running(DB1)
    thief = Guest(name="thief", uuid=LOCAL1.uuid, disks=DB1.disks[1:], backing=(), resource=None, port=LOCAL1.port)
    guests.define(lab, thief, NODES[1])
    outcome = lvmigrate("check", "db1", "--json")
    guests.remove(lab, thief)
    refused(outcome, "RESOURCE_SHARED")
    assert "thief" in outcome.out
    it.whole_on(NODES[0])


def test_two_primaries_left_on_and_a_device_held_on_the_target(running: Start, lvmigrate: Command) -> None:
    it = running(WEB1)
    it.lab.both("drbdadm net-options --protocol=C --allow-two-primaries=yes web1")
    it.lab.run(
        NODES[1], "drbdadm primary web1; (exec 3</dev/drbd0; exec sleep 600) >/dev/null 2>&1 & echo $! >/run/held"
    )
    outcome = lvmigrate("migrate", "web1", "--json")
    it.lab.run(NODES[1], "kill $(cat /run/held); rm /run/held; sleep 1; drbdadm secondary web1")
    it.lab.both("drbdadm adjust web1")
    refused(outcome, "DUAL_PRIMARY", "TWO_PRIMARIES_ON", "DEVICE_HELD")
    it.whole_on(NODES[0])


def in_step(lab: Lab, resource: str) -> None:
    """Wait until both nodes say that the resource is connected and both copies are UpToDate."""
    lab.both(
        f"for i in $(seq 200); do drbdadm cstate {resource} | grep -qx Connected &&"
        f" ! drbdadm dstate {resource} | grep -qv UpToDate/UpToDate && exit; sleep 0.3; done; exit 1"
    )


@contextmanager
def disconnected(lab: Lab, resource: str) -> Iterator[None]:
    lab.run(NODES[1], f"drbdadm disconnect {resource}")
    try:
        yield
    finally:
        lab.both(f"drbdadm adjust {resource}")
        in_step(lab, resource)


def test_drbd_not_connected(running: Start, lab: Lab, lvmigrate: Command) -> None:
    it = running(WEB1)
    with disconnected(lab, "web1"):
        refused(lvmigrate("migrate", "web1", "--json"), "NOT_CONNECTED")
    it.whole_on(NODES[0])


@pytest.mark.parametrize("node", NODES)
def test_a_disk_that_is_not_up_to_date(running: Start, lab: Lab, lvmigrate: Command, node: str) -> None:
    it = running(WEB1)
    lab.run(node, "drbdadm detach web1")
    outcome = lvmigrate("migrate", "web1", "--json")
    lab.run(node, "drbdadm attach web1")
    in_step(lab, "web1")
    refused(outcome, "NOT_UPTODATE")
    assert "Diskless" in outcome.out
    it.whole_on(NODES[0])


def test_a_node_that_does_not_answer(running: Start, lvmigrate: Command, tmp_path: Path, cluster_file: Path) -> None:
    it = running(WEB1)
    config = tmp_path / "cluster.toml"
    config.write_text(cluster_file.read_text().replace("root@node2", "root@node2.invalid"))
    outcome = lvmigrate("migrate", "web1", "--json", config=config)
    refused(outcome, "NODE_UNREACHABLE")
    assert "node2 does not answer" in outcome.out
    status = lvmigrate("status", config=config)
    assert status.code == ExitCode.UNREACHABLE
    assert "web1" in status.out
    it.whole_on(NODES[0])


@contextmanager
def cut_off(address: str) -> Iterator[None]:
    """Nothing of this side's ssh reaches ``address``, and nobody says so: as when a host has lost its power."""
    rule = ["OUTPUT", "-d", address, "-p", "tcp", "--dport", "22", "-j", "DROP"]
    subprocess.run(["iptables", "-w", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-w", "-D", *rule], check=True)


def test_a_node_that_is_silent(running: Start, lvmigrate: Command, tmp_path: Path, cluster_file: Path) -> None:
    it = running(WEB1)
    text = cluster_file.read_text()
    address = re.findall(r'migration_address = "(.+)"', text)[1]
    config = tmp_path / "cluster.toml"
    config.write_text(text.replace("connect_s = 60", "connect_s = 5"))
    with cut_off(address):
        outcome = lvmigrate("migrate", "web1", "--json", config=config)
    refused(outcome, "NODE_UNREACHABLE")
    assert "node2 does not answer" in outcome.out
    it.whole_on(NODES[0])


def test_a_broken_configuration_file(lvmigrate: Command, tmp_path: Path, cluster_file: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(cluster_file.read_text() + "\n[nodes.node3\n")
    outcome = lvmigrate("status", config=config)
    line = len(cluster_file.read_text().splitlines()) + 2
    assert outcome.code == ExitCode.CONFIGURATION
    assert f"{config}, line {line}: " in outcome.err
    assert "next: " in outcome.err
