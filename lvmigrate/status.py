"""What runs where, and how its disks are: one look at every node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from lvmigrate import room
from lvmigrate.domain import Domain, Host
from lvmigrate.errors import CommandFailed, LvmigrateError, NodeUnreachable
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.replication import Resource
from lvmigrate.together import outcomes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOnNode:
    """A guest as one node knows it."""

    domain: Domain
    #: The resources under its disks, as this node's kernel describes them.
    resources: tuple[Resource, ...]
    #: Who holds its token here, in words.
    holder: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node's word, or why there is none."""

    node: str
    guests: tuple[GuestOnNode, ...]
    trouble: LvmigrateError | None = None
    #: What the node itself has; ``None``: its libvirt gave no answer.
    host: Host | None = None


def status(
    hypervisor: Hypervisor, storage: Storage, nodes: Iterable[str], instance: str | None = None
) -> tuple[NodeStatus, ...]:
    """Ask every node, side by side, for every guest or for ``instance`` alone. A silent node is part of the answer."""
    names = tuple(nodes)
    outcomes = outcomes_of([partial(_node, hypervisor, storage, node, instance) for node in names])
    return tuple(
        outcome if isinstance(outcome, NodeStatus) else NodeStatus(node=node, guests=(), trouble=outcome)
        for node, outcome in zip(names, outcomes, strict=True)
    )


def _node(hypervisor: Hypervisor, storage: Storage, node: str, instance: str | None) -> NodeStatus:
    domains = tuple(d for d in hypervisor.domains(node) if instance is None or instance in (d.name, d.uuid))
    paths = {disk.source for domain in domains for disk in domain.layers if disk.source}
    try:
        host = room.host(hypervisor, storage, node)
        places = storage.locate(node, paths)
        resources = storage.observe(node, sorted({place.resource for place in places.values()}))
        traces = storage.traces(node)
    except (NodeUnreachable, CommandFailed) as error:
        # libvirt's half of the answer is worth having without DRBD's.
        bare = tuple(GuestOnNode(domain=domain, resources=(), holder=None) for domain in domains)
        return NodeStatus(node=node, guests=bare, trouble=error, host=hypervisor.host(node))
    guests = []
    for domain in sorted(domains, key=lambda domain: domain.name):
        used = {places[disk.source].resource for disk in domain.layers if disk.source and disk.source in places}
        guests.append(
            GuestOnNode(
                domain=domain,
                resources=tuple(resources[name] for name in sorted(used) if name in resources),
                holder=held.holder if (held := traces.token(domain.uuid)) is not None and held.alive else None,
            )
        )
    return NodeStatus(node=node, guests=tuple(guests), host=host)
