"""Failover on the real nodes: there and back, from a node that is off, from an old copy, and in a live move's place."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import ExitCode
from tests.lab.support import Outcome, Running, acquaint
from vagrant.guest import records
from vagrant.labkit import guests
from vagrant.labkit.guests import WEB1, Guest
from vagrant.labkit.lab import HERE, NODES, Lab

Command = Callable[..., Outcome]
Start = Callable[..., Running]
HOME, AWAY = NODES
#: So many records of one run that the next one does not reach the last of them before it was looked at.
MANY = 500


@pytest.fixture
def powered(lab: Lab) -> Iterator[Lab]:
    """Both nodes are on again after the test, whatever became of it, and their disks are in step."""
    yield lab
    if lab.run(HOME, "echo up", check=False).strip() != "up":
        # A node may be off, or cut off and alive: then switching it on would do nothing.
        with contextlib.suppress(subprocess.CalledProcessError):
            lab.cut_power(HOME)
    lab.switch_on(HOME)
    # What a test that failed half-way may have parted: the copy of the node that was off is given up.
    standalone = f"drbdadm cstate {WEB1.resource} | grep -q StandAlone"
    if "yes" in "".join(lab.both(f"{standalone} && echo yes; true").values()):
        lab.both(f"virsh -q destroy {WEB1.name}; true", check=False)
        give_up(lab, HOME)
    in_step(lab)
    acquaint(lab)


def in_step(lab: Lab) -> None:
    """Wait until both nodes say that the guest's resource is connected, and both copies are UpToDate."""
    lab.both(
        f"for i in $(seq 300); do drbdadm cstate {WEB1.resource} | grep -qx Connected &&"
        f" drbdadm dstate {WEB1.resource} | grep -qx UpToDate/UpToDate && exit; sleep 0.3; done; exit 1"
    )


def give_up(lab: Lab, node: str) -> None:
    """What the hint of a split-brain says: the copy on ``node`` is given up."""
    lab.both(f"drbdadm disconnect {WEB1.resource}; true", check=False)
    lab.run(node, f"drbdadm secondary {WEB1.resource}; drbdadm connect --discard-my-data {WEB1.resource}")
    lab.run(AWAY if node == HOME else HOME, f"drbdadm connect {WEB1.resource}")
    in_step(lab)


def written(it: Running, n: int, timeout_s: float = 300) -> records.Heard:
    """Wait until the guest has announced so many records of its run; the newest."""
    return it.witness.listener.wait_for(lambda heard: heard.n >= n, time.monotonic() + timeout_s)


def on_disk(lab: Lab, guest: Guest, node: str, n: int) -> records.Record | None:
    """The record in the n-th sector of the guest's first disk, as ``node``'s backing device has it."""
    return records.parse(lab.read(node, f"dd if={guest.backing[0]} bs=512 skip={n} count=1 iflag=direct status=none"))


def kept(it: Running, before: records.Heard, *nodes: str) -> None:
    """The new run has begun, and the last record of the one before is on the disks that it was started from."""
    now = it.witness.listener.wait_for(lambda heard: heard.run > before.run, time.monotonic() + 300)
    assert now.n < before.n, "the new run has written over what was to be looked at"
    for node in nodes:
        found = on_disk(it.lab, it.guest, node, before.n)
        assert found is not None, node
        assert (found.run, found.n) == (before.run, before.n), node


def done(outcome: Outcome) -> Any:
    assert outcome.code == ExitCode.OK, outcome.out + outcome.err
    return outcome.json


def codes(report: Any) -> list[str]:
    return [warning["code"] for warning in report["warnings"]]


def test_there_and_back(running: Start, lvmigrate: Command) -> None:
    it = running(WEB1)
    for source, target in ((HOME, AWAY), (AWAY, HOME)):
        run = written(it, MANY).run
        report = done(lvmigrate("failover", "web1", "--json"))
        assert (report["source"], report["target"], report["mode"]) == (source, target, "failover")
        assert (report["dual_primary_s"], report["two_primaries_allowed_s"]) == (0, 0)
        assert 0 < report["downtime_s"] < report["seconds"]
        # It was shut down by the power button, and what it had announced by then is where the new run was started.
        assert any(line.text.startswith(f"S {run} ") for line in it.witness.listener.said)
        last = [heard for heard in it.witness.listener.since(0) if heard.run == run][-1]
        kept(it, last, *NODES)
        it.whole_on(target)


def test_a_guest_that_is_not_given_the_time_stays(running: Start, lvmigrate: Command) -> None:
    """It may go down all the same, being asked: then it is started at home again."""
    it = running(WEB1)
    outcome = lvmigrate("failover", "web1", "--shutdown-timeout", "0.001", "--json")
    assert outcome.code in {ExitCode.OK, ExitCode.FAILED}, outcome.out
    if outcome.code == ExitCode.FAILED:
        assert outcome.json["error"]["code"] == "SHUTDOWN_TIMEOUT"
        deadline = time.monotonic() + 60
        while "running" in (now := guests.where(it.lab, WEB1)[HOME]) and time.monotonic() < deadline:
            time.sleep(1)
        if now != "running":  # it was asked before it was given up on
            guests.start(it.lab, WEB1, HOME)
    it.whole_on(AWAY if outcome.code == ExitCode.OK else HOME)


# ---- in the place of a live move


def test_a_move_that_is_refused_falls_back_if_that_is_allowed(
    running: Start, lvmigrate: Command, cluster_file: Path, tmp_path: Path
) -> None:
    """node1's libvirt does not reach node2's: no memory can be sent, and a failover sends none."""
    it = running(WEB1)
    text, count = re.subn(
        rf'(?<=^peer_uri = )"[^"]*{AWAY}[^"]*"$',
        '"qemu+ssh://root@nosuch.invalid/system"',
        cluster_file.read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    config = tmp_path / "cluster.toml"
    config.write_text(text)
    refused = lvmigrate("migrate", "web1", "--to", AWAY, "--json", config=config)
    assert refused.code == ExitCode.REFUSED
    assert "PEER_UNREACHABLE" in {finding["code"] for finding in refused.json["error"]["findings"]}
    planned = done(lvmigrate("check", "web1", "--to", AWAY, "--allow-failover", "--json", config=config))
    assert (planned["mode"], codes(planned)[0]) == ("failover", "FAILOVER_INSTEAD")
    assert "PEER_UNREACHABLE" in planned["warnings"][0]["sentence"]
    it.whole_on(HOME)
    report = done(lvmigrate("migrate", "web1", "--to", AWAY, "--allow-failover", "--json", config=config))
    assert (report["mode"], codes(report)[0]) == ("failover", "FAILOVER_INSTEAD")
    it.whole_on(AWAY)


# ---- where to


def test_hails_refusal_is_shown_and_without_it_the_best_is_taken(
    running: Start, lvmigrate: Command, cluster_file: Path, tmp_path: Path
) -> None:
    """Of two nodes there is no choice: a third one is configured, and out of use.

    hail takes no node with less than some 5 GiB free (measured), and the lab's have 1. Where it says yes:
    tests/unit/test_target.py.
    """
    it = running(WEB1)
    config = tmp_path / "cluster.toml"
    config.write_text(f'{cluster_file.read_text()}\n[nodes.node3]\nssh = "root@node3"\noffline = "not bought yet"\n')
    refused = lvmigrate("migrate", "web1", "--iallocator", "hail", "--json", config=config)
    assert refused.code == ExitCode.REFUSED, refused.out
    assert refused.json["error"]["code"] == "ALLOCATOR_FAILED"
    assert f"Node {AWAY} failed: FailMem" in refused.json["error"]["sentence"]
    report = done(lvmigrate("migrate", "web1", "--json", config=config))
    assert report["target"] == AWAY
    assert "no other node can take it" in report["target_because"]
    assert "node3" in report["target_because"]
    it.whole_on(AWAY)


# ---- from a node that is off


@pytest.fixture
def fenced(cluster_file: Path, tmp_path: Path) -> Path:
    """The lab's configuration, with a command that cuts node1's power, and says that it is off."""
    fence = tmp_path / "fence"
    fence.write_text(
        "#!/bin/sh\n"
        f'said=$({HERE}/lab cut-power "$LVMIGRATE_NODE" 2>&1) && exit\n'
        'echo "$said" >&2\n'
        'case $said in *"domain is not running"*) ;; *) exit 1 ;; esac\n'
    )
    fence.chmod(0o755)
    text, count = re.subn(
        rf"(?<=^\[nodes\.{HOME}\]\n)", f'fence_command = "{fence}"\n', cluster_file.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    config = tmp_path / "fenced.toml"
    config.write_text(text)
    return config


def cut_off(it: Running) -> records.Heard:
    """Cut node1's power in mid-writing; what the guest had announced by then."""
    it.lab.cut_power(HOME)
    time.sleep(2)  # what was announced is on its way
    last = it.witness.listener.last
    assert last is not None
    dead(it.lab)
    return last


def dead(lab: Lab) -> None:
    """Wait until node2's kernel has noticed."""
    lab.run(
        AWAY,
        f"for i in $(seq 200); do drbdadm cstate {WEB1.resource} | grep -qx Connected || exit 0; sleep 0.2; done;"
        " exit 1",
    )


def back(it: Running, lvmigrate: Command, *, parted: bool) -> None:
    """node1 is switched on: the audit finds it, a cleanup forgets what it has, and all is as after any move."""
    it.lab.switch_on(HOME)
    if not parted:
        in_step(it.lab)
    audited = lvmigrate("audit", "--json")
    assert audited.code == ExitCode.LEFT_BEHIND, audited.out + audited.err
    assert any(f"{HOME} is back and knows web1" in finding["sentence"] for finding in audited.json["findings"])
    assert guests.where(it.lab, WEB1) == {HOME: "shut off", AWAY: "running"}
    if parted:
        held = lvmigrate("cleanup", "web1", "--json")
        assert held.code == ExitCode.LEFT_BEHIND, held.out + held.err
        assert f"on {HOME} `drbdadm connect --discard-my-data web1`" in held.json["error"]["hint"]
        give_up(it.lab, HOME)
    assert done(lvmigrate("cleanup", "web1", "--json"))["node"] == AWAY
    assert done(lvmigrate("audit", "--json"))["findings"] == []
    it.whole_on(AWAY)


def test_a_node_whose_power_is_cut_and_which_comes_back(
    running: Start, powered: Lab, lvmigrate: Command, fenced: Path
) -> None:
    it = running(WEB1)
    guests.define(powered, WEB1, AWAY)
    powered.run(HOME, "virsh -q autostart web1")
    written(it, MANY)
    alive = lvmigrate("failover", "web1", "--to", AWAY, "--is-off", HOME, "--json")
    assert (alive.code, alive.json["error"]["code"]) == (ExitCode.REFUSED, "NODE_ALIVE")
    last = cut_off(it)
    unfenced = lvmigrate("failover", "web1", "--json")
    assert (unfenced.code, unfenced.json["error"]["code"]) == (ExitCode.REFUSED, "NOT_FENCED")
    report = done(lvmigrate("failover", "web1", "--json", config=fenced))
    assert (report["source"], report["target"], report["running"]) == (HOME, AWAY, True)
    assert codes(report) == ["COPY_CUT_OFF"]
    assert re.search(rf"since \d{{4}}-\d\d-\d\dT.*, when {AWAY} lost {HOME}", report["warnings"][0]["sentence"])
    kept(it, last, AWAY)
    back(it, lvmigrate, parted=False)
    assert re.search(r"Autostart:\s+enable", powered.run(AWAY, "virsh dominfo web1"))


@pytest.mark.long
def test_a_node_that_is_only_cut_off_is_switched_off_first(
    running: Start, powered: Lab, lvmigrate: Command, fenced: Path, tmp_path: Path
) -> None:
    """It lives on and writes alone, where nobody sees it; and node2 has no definition but the one that is given."""
    it = running(WEB1)
    written(it, MANY)
    last = it.witness.alive()
    cut = "for c in INPUT OUTPUT; do iptables -w -I $c -j DROP; done"
    powered.run(HOME, f"(sleep 1; {cut}) >/dev/null 2>&1 </dev/null &")
    time.sleep(2)
    powered.forget(HOME)
    dead(powered)
    undefined = lvmigrate("failover", "web1", "--json", config=fenced)
    assert (undefined.code, undefined.json["error"]["code"]) == (ExitCode.REFUSED, "DEFINITION_MISSING")
    file = tmp_path / "web1.xml"
    file.write_text(WEB1.xml(powered.address))
    planned = done(lvmigrate("failover", "web1", "--definition", str(file), "--dry-run", "--json", config=fenced))
    assert codes(planned) == ["COPY_CUT_OFF", "DEFINITION_KEPT"]
    report = done(lvmigrate("failover", "web1", "--definition", str(file), "--json", config=fenced))
    assert (report["target"], codes(report)) == (AWAY, codes(planned))
    kept(it, last, AWAY)
    back(it, lvmigrate, parted=True)


@pytest.mark.long
def test_an_old_copy_is_taken_only_if_asked(running: Start, powered: Lab, lvmigrate: Command) -> None:
    it = running(WEB1)
    guests.define(powered, WEB1, AWAY)
    old = written(it, MANY)
    # 9 outdates the peer that is disconnected; 8.4 does not.
    powered.run(AWAY, f"drbdadm disconnect {WEB1.resource}; drbdsetup outdate $(drbdadm sh-minor {WEB1.resource})")
    written(it, 2 * MANY)
    last = cut_off(it)
    words = ("failover", "web1", "--is-off", HOME, "--json")
    refused = lvmigrate(*words)
    assert (refused.code, refused.json["error"]["code"]) == (ExitCode.REFUSED, "NOT_UPTODATE")
    assert lvmigrate(*words, "--ignore-consistency").code == ExitCode.USAGE
    report = done(lvmigrate(*words, "--ignore-consistency", "--to", AWAY))
    assert (report["target"], codes(report)) == (AWAY, ["COPY_OLD"])
    assert re.search(rf"since \d{{4}}-\d\d-\d\dT.*, when {AWAY} lost {HOME}", json.dumps(report["warnings"]))
    kept(it, old, AWAY)
    given_up = on_disk(powered, WEB1, AWAY, last.n)
    assert given_up is None or given_up.run != last.run
    back(it, lvmigrate, parted=True)
