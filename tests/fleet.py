"""Fleets of any size, made up: half of the nodes are to be emptied; every guest has copies on one or two others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from lvmigrate.assignment import Room, Traveller
from lvmigrate.domain import Activity, Domain, DomainDisk, DomainState, Host, JobKind
from lvmigrate.fleet import Question
from lvmigrate.node import Node
from lvmigrate.plan import Options
from lvmigrate.replication import (
    Connection,
    ConnectionState,
    DiskState,
    PeerVolume,
    Place,
    Reach,
    ReplicationState,
    Resource,
    Role,
    Volume,
)
from lvmigrate.tasklet import Context
from lvmigrate.token import Held, Traces

_GIB: Final = 1 << 20  # in KiB
_SIZES_GIB: Final = (1, 2, 2, 4, 4, 4, 8, 8, 16, 32)


def fleet(nodes: int, guests: int, *, seed: int) -> tuple[list[Room], list[Traveller]]:
    """The same for the same seed. There is room for nearly all of them, and for a few there is none."""
    chance = random.Random(seed)
    leaving = [f"old{number:04}" for number in range(nodes // 2)]
    staying = [f"new{number:04}" for number in range(nodes - nodes // 2)]
    rooms = [Room(node=node, free_kib=8 * _GIB, link_mib_s=chance.choice((None, 1100, 2800))) for node in leaving]
    rooms += [
        Room(
            node=node,
            free_kib=chance.randrange(256, 1024) * _GIB,
            link_mib_s=chance.choice((1100, 2800)),
            resyncs=chance.random() < 0.05,
            vcpus=chance.randrange(64),
            cpus=64,
        )
        for node in staying
    ]
    travellers = []
    for number in range(guests):
        memory = chance.choice(_SIZES_GIB) * _GIB
        peers = tuple(chance.sample(staying, chance.choice((1, 1, 2))))
        travellers.append(
            Traveller(
                uuid=f"uuid-{number:06}",
                name=f"guest{number:06}",
                source=leaving[number % len(leaving)],
                memory_kib=memory,
                resident_kib=int(memory * chance.uniform(0.2, 1.0)),
                peers=peers,
                vcpus=chance.randrange(1, 9),
                dirty_rate=chance.choice((0, 0, chance.randrange(1 << 20, 1 << 28))),
            )
        )
    return rooms, travellers


@dataclass
class Landscape:
    """The same fleet as its nodes tell of it: the looks of both adapters, answered from memory."""

    rooms: Mapping[str, Room]
    travellers: Mapping[str, Traveller]
    domains_: dict[str, list[Domain]] = field(default_factory=dict)
    resources: dict[str, dict[str, Resource]] = field(default_factory=dict)
    tokens: dict[str, list[Held]] = field(default_factory=dict)
    #: By path: the nodes that reach it beside DRBD.
    reached: dict[str, frozenset[str]] = field(default_factory=dict)
    #: How many paths were asked for in all, and how many calls were made of each kind.
    paths: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, nodes: int, guests: int, *, seed: int) -> Landscape:
        """Every guest has one disk, each copy of which is in step."""
        rooms, travellers = fleet(nodes, guests, seed=seed)
        made = cls(rooms={room.node: room for room in rooms}, travellers={each.uuid: each for each in travellers})
        for guest in travellers:
            made.domains_.setdefault(guest.source, []).append(_domain(guest))
            made.resources.setdefault(guest.source, {})[guest.name] = _resource(guest, guest.source, guest.peers)
            for peer in guest.peers:
                made.resources.setdefault(peer, {})[guest.name] = _resource(guest, peer, (guest.source,))
        return made

    @property
    def context(self) -> Context:
        """What looks at it."""
        nodes = {
            name: Node(name=name, ssh=name, libvirt_uri="", peer_uri="", migration_address="", link_mib_s=r.link_mib_s)
            for name, r in self.rooms.items()
        }
        return Context(nodes=nodes, hypervisor=cast(Any, self), storage=cast(Any, self))

    @property
    def question(self) -> Question:
        """The one half is to leave for the other."""
        leaving = frozenset(name for name in self.rooms if name.startswith("old"))
        return Question(
            sources=leaving,
            targets=frozenset(self.rooms) - leaving,
            leaves=lambda _domain: True,
            options=lambda _domain: Options(),
            about=leaving,
            forecast_s=1,
        )

    # ---- what is asked of a node

    def domains(self, node: str) -> tuple[Domain, ...]:
        self.calls["domains"] += 1
        return tuple(self.domains_.get(node, ()))

    def host(self, node: str) -> Host:
        self.calls["host"] += 1
        room = self.rooms[node]
        return Host(
            node=node,
            free_memory_kib=room.free_kib,
            libvirt_version=(11, 0, 0),
            qemu_version=(10, 0, 0),
            cpus=room.cpus,
        )

    def activity(self, _node: str, uuid: str, _seconds: int) -> Activity:
        guest = self.travellers[uuid]
        return Activity(resident_bytes=guest.resident_kib << 10, dirty_rate=guest.dirty_rate)

    def available_kib(self, _node: str) -> int | None:
        self.calls["available_kib"] += 1
        return None

    def traces(self, node: str) -> Traces:
        self.calls["traces"] += 1
        return Traces(node=node, tokens=tuple(self.tokens.get(node, ())), guards=())

    def observe(self, node: str, _names: Collection[str] | None = None) -> Mapping[str, Resource]:
        self.calls["observe"] += 1
        return self.resources.get(node, {})

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        self.calls["locate"] += 1
        self.paths += len(paths)
        names = {path: path.split("/")[-2] for path in paths}
        there = self.resources.get(node, {})
        return {path: Place(resource=name, volume=0) for path, name in names.items() if name in there}

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        self.calls["shared"] += 1
        self.paths += len(paths)
        return {path: Reach(what="the same") for path in paths if node in self.reached.get(path, ())}


def _domain(guest: Traveller) -> Domain:
    path = f"/dev/drbd/by-res/{guest.name}/0"
    return Domain(
        node=guest.source,
        name=guest.name,
        uuid=guest.uuid,
        state=DomainState.RUNNING,
        reason="",
        job=JobKind.NONE,
        persistent=True,
        autostart=True,
        virt_type="kvm",
        memory_kib=guest.memory_kib,
        vcpus=guest.vcpus,
        disks=(DomainDisk(target="vda", source=path, kind="block", device="disk", read_only=False),),
    )


def _resource(guest: Traveller, node: str, peers: Collection[str]) -> Resource:
    here = node == guest.source
    volume = PeerVolume(number=0, replication=ReplicationState.ESTABLISHED, disk=DiskState.UP_TO_DATE)
    return Resource(
        node=node,
        name=guest.name,
        role=Role.PRIMARY if here else Role.SECONDARY,
        suspended="no",
        volumes=(Volume(number=0, minor=0, disk=DiskState.UP_TO_DATE, size_kib=guest.memory_kib * 8),),
        connections=tuple(
            Connection(
                name=peer,
                peer_node_id=0,
                state=ConnectionState.CONNECTED,
                peer_role=Role.SECONDARY if here else Role.PRIMARY,
                congested=False,
                volumes=(volume,),
            )
            for peer in peers
        ),
    )
