"""What is said of how a move opens the disks, and of who would finish it."""

from __future__ import annotations

import dataclasses

import pytest

from lvmigrate.domain import DomainState, Host
from lvmigrate.errors import Code
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Mode, Options, Plan, Switch
from lvmigrate.replication import Reach
from tests.unit.fakes import NODES, World, guest


def plan(world: World, options: Options | None = None) -> Plan:
    return MigrateInstance(world.context(), "web1", options=options).check_prereq()


def said(world: World, code: Code, options: Options | None = None) -> bool:
    return code in {finding.code for finding in plan(world, options).warnings}


def host(node: str, version: tuple[int, int, int]) -> Host:
    return Host(node=node, free_memory_kib=1 << 20, libvirt_version=version, qemu_version=(10, 0, 0))


@pytest.mark.parametrize(
    ("kind", "libvirt", "explicit"),
    [("raw", (11, 3, 0), False), ("", (10, 0, 0), False), ("qcow2", (11, 3, 0), True), ("raw", (9, 0, 0), True)],
)
def test_a_disk_that_qemu_opens_for_reading_first_is_promoted_by_a_command(
    kind: str, libvirt: tuple[int, int, int], *, explicit: bool
) -> None:
    here = guest("node1")
    here = dataclasses.replace(here, disks=(dataclasses.replace(here.disks[0], format=kind),))
    world = World(domains={"node1": here}, auto_promote=True, hosts={node: host(node, libvirt) for node in NODES})
    assert said(world, Code.PROMOTED_EXPLICITLY) is explicit
    assert [resource.promotes for resource in plan(world).resources] == [explicit]


@pytest.mark.parametrize(
    ("options", "state", "warned"),
    [
        (Options(), DomainState.RUNNING, False),
        (Options(guard=False), DomainState.RUNNING, True),
        (Options(guard=False, switch=Switch.FAST), DomainState.RUNNING, False),
        (Options(guard=False), DomainState.PAUSED, False),
    ],
)
def test_a_guest_that_nobody_would_let_run(options: Options, state: DomainState, *, warned: bool) -> None:
    assert said(World(domains={"node1": guest("node1", state=state, reason="user")}), Code.UNGUARDED, options) is warned


def test_without_a_resource_there_is_no_guard_to_let_it_run() -> None:
    image = Reach(what="NFS filer:/vms web1.img (inode 7)")
    assert said(World(replicated=False, reached=dict.fromkeys(NODES, image)), Code.UNGUARDED)


@pytest.mark.parametrize(
    ("libvirt", "mode", "state", "warned"),
    [
        ((11, 3, 0), Mode.POST_COPY, DomainState.RUNNING, True),
        ((11, 2, 0), Mode.POST_COPY, DomainState.RUNNING, True),
        ((11, 1, 0), Mode.POST_COPY, DomainState.RUNNING, False),
        ((11, 4, 0), Mode.POST_COPY, DomainState.RUNNING, False),
        ((11, 3, 0), Mode.LIVE, DomainState.RUNNING, False),
        ((11, 3, 0), Mode.POST_COPY, DomainState.PAUSED, False),
    ],
)
def test_a_libvirt_that_cannot_mend_a_post_copy(
    libvirt: tuple[int, int, int], mode: Mode, state: DomainState, *, warned: bool
) -> None:
    world = World(
        domains={"node1": guest("node1", state=state, reason="user")},
        hosts={node: host(node, libvirt) for node in NODES},
    )
    assert said(world, Code.POST_COPY_UNMENDED, Options(mode=mode)) is warned
