"""Which definitions of a guest there are once it has moved, or stayed."""

from __future__ import annotations

import pytest

from lvmigrate.definitions import Definitions, disks_to_come
from lvmigrate.domain import DomainDisk, DomainState
from lvmigrate.errors import Code, MoveFailed
from tests.unit.fakes import NODES, UUID, World, guest


def moved(world: World, *, keep: bool = False) -> None:
    source, target = NODES
    made = Definitions(hypervisor=world.context().hypervisor, uuid=UUID, source=source, target=target, keep=keep)
    made.moved(autostart=True)


def arrived(state: DomainState = DomainState.RUNNING) -> World:
    off = guest("node1", state=DomainState.OFF, reason="migrated")
    return World(domains={"node1": off, "node2": guest("node2", state=state, autostart=False)})


def test_the_sources_goes_and_the_target_starts_it_after_a_reboot() -> None:
    world = arrived()
    moved(world)
    assert list(world.domains) == ["node2"]
    assert world.domains["node2"].autostart


def test_one_that_is_kept_starts_nothing() -> None:
    world = arrived()
    moved(world, keep=True)
    assert {node: domain.autostart for node, domain in world.domains.items()} == {"node1": False, "node2": True}


def test_of_a_guest_that_has_ended_on_the_target_none_is_forgotten() -> None:
    world = arrived(DomainState.OFF)
    with pytest.raises(MoveFailed, match="The guest ended on node2") as caught:
        moved(world)
    assert caught.value.code is Code.LEFT_BEHIND
    assert set(world.domains) == set(NODES)


def test_a_guest_that_is_not_defined_where_it_is_keeps_the_other() -> None:
    world = arrived()
    world.set("node2", persistent=False)
    with pytest.raises(MoveFailed, match="not defined on node2"):
        moved(world)
    assert "node1" in world.domains


def test_disks_that_a_guest_has_from_its_next_start_on() -> None:
    def disk(source: str | None, device: str = "disk") -> DomainDisk:
        return DomainDisk(target="vdb", source=source, kind="block", device=device, read_only=False)

    running = guest("node1")
    more = (disk("/dev/sdb"), disk("/dev/sr0", "cdrom"), disk(None))
    defined = guest("node1", disks=(*running.disks, *more))
    assert disks_to_come(running, defined) == ("/dev/sdb",)
    assert disks_to_come(running, running) == ()
