"""A resource that node2 calls by another name: the guest goes there and back, and nothing of it is left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from lvmigrate import ExitCode
from tests.lab.support import Outcome
from vagrant.labkit import guests
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import NODES, Lab
from vagrant.labkit.witness import Witness

HOME, AWAY = NODES
#: By the one path that is the same on both.
GUEST = dataclasses.replace(WEB1, disks=("/dev/drbd0",))
CALLED = {HOME: "web1", AWAY: "web9"}


@pytest.fixture
def renamed(lab: Lab) -> Iterator[Lab]:
    """node2 has its end of `web1` under the name `web9`."""
    guests.remove(lab, GUEST)
    called(lab, "web1", "web9")
    try:
        yield lab
    finally:
        lab.both(f"virsh -q 'destroy {GUEST.name}; undefine {GUEST.name}'; rm -f /run/lvmigrate/*; true", check=False)
        lab.run(AWAY, "for i in $(seq 50); do drbdsetup secondary web9 && exit; sleep 0.2; done", check=False)
        called(lab, "web9", "web1")


def called(lab: Lab, before: str, after: str) -> None:
    """What node2 calls ``before`` it calls ``after`` from now on; both copies are in step again."""
    lab.run(
        AWAY,
        f"drbdadm down {before} && sed 's/^resource {before} /resource {after} /' /etc/drbd.d/{before}.res"
        f" >/etc/drbd.d/{after}.res && rm /etc/drbd.d/{before}.res && drbdadm up {after} && udevadm settle",
    )
    lab.run(HOME, "drbdadm adjust web1")
    for node in NODES:
        name = after if node == AWAY else "web1"
        lab.run(
            node,
            f"for i in $(seq 300); do drbdadm dstate {name} | grep -qx UpToDate/UpToDate && exit; sleep 0.2; done;"
            " exit 1",
        )


def shown(lab: Lab) -> dict[str, str]:
    return {node: lab.run(node, f"drbdsetup show {CALLED[node]}") for node in NODES}


def roles(lab: Lab) -> dict[str, str]:
    return {node: lab.run(node, f"drbdadm role {CALLED[node]}").split("/")[0].strip() for node in NODES}


def test_there_and_back(renamed: Lab, lvmigrate: Callable[..., Outcome]) -> None:
    with Witness(renamed, GUEST) as witness:
        guests.define(renamed, GUEST, HOME)
        guests.start(renamed, GUEST, HOME)
        witness.alive()
        before = shown(renamed)
        for source, target in ((HOME, AWAY), (AWAY, HOME)):
            moved = lvmigrate("migrate", GUEST.name, "--to", target, "--json")
            assert moved.code == ExitCode.OK, moved.out + moved.err
            report = moved.json
            assert (report["source"], report["target"]) == (source, target)
            assert 0 < report["dual_primary_s"] < report["seconds"]
            assert roles(renamed) == {source: "Secondary", target: "Primary"}
            assert shown(renamed) == before
            audited = lvmigrate("audit", "--json")
            assert (audited.code, audited.json["findings"]) == (ExitCode.OK, []), audited.out
            assert not witness.memory_verified().bad
            assert witness.faults() == []


def test_a_cleanup_reports_the_one_name_and_finds_nothing_to_do(
    renamed: Lab, lvmigrate: Callable[..., Outcome]
) -> None:
    with Witness(renamed, GUEST) as witness:
        guests.define(renamed, GUEST, HOME)
        guests.start(renamed, GUEST, HOME)
        witness.alive()
        cleaned = lvmigrate("cleanup", GUEST.name, "--json")
        assert cleaned.code == ExitCode.OK, cleaned.out + cleaned.err
        assert (cleaned.json["node"], cleaned.json["acts"]) == (HOME, [])
        told = lvmigrate("check", GUEST.name, "--to", AWAY, "--json")
        assert told.code == ExitCode.OK, told.out + told.err
        assert f"{HOME}:web1={AWAY}:web9" in told.out
