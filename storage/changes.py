"""What differs between two states of a resource, in sentences for people."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from lvmigrate.replication import UNNAMED, Resource


def changes(node: str, name: str, old: Resource | None, new: Resource | None, nodes: Sequence[str]) -> Iterator[str]:
    """What differs, in sentences, of roles, connections, disks and replication."""
    if old is None or new is None:
        if old is not new:
            yield f"{name} on {node} {'is gone' if new is None else 'is there'}"
        return
    yield from _change(f"{name} on {node}", old.role, new.role)
    if new.suspended != old.suspended:
        yield f"{name} on {node}: I/O suspended: {new.suspended} (was {old.suspended})"
    disks = {v.number: v.disk for v in old.volumes}
    for volume in new.volumes:
        yield from _change(f"{name}/{volume.number} on {node}", disks.pop(volume.number, None), volume.disk)
    for number in disks:
        yield f"{name}/{number} on {node} is gone"
    links = {c.peer_node_id: c for c in old.connections}
    for connection in new.connections:
        link = links.pop(connection.peer_node_id, None)
        peer = _peer_name(connection.name, node, nodes)
        yield from _change(f"{name} on {node}", link.state if link else None, connection.state, f" to {peer}")
        states = {v.number: v.replication for v in link.volumes} if link else {}
        for there in connection.volumes:
            what = f"{name}/{there.number} on {node}"
            yield from _change(what, states.get(there.number), there.replication, f" to {peer}")
    for link in links.values():
        yield f"{name} on {node} has no connection to {_peer_name(link.name, node, nodes)} any more"


def _change(what: str, old: enum.Enum | None, new: enum.Enum, to: str = "") -> Iterator[str]:
    if new is not old:
        yield f"{what} is {new.value}{to} (was {old.value if old else 'absent'})"


def _peer_name(connection: str, node: str, nodes: Sequence[str]) -> str:
    """DRBD 8.4 calls every peer ``peer``; of two watched nodes it is the other one."""
    others = [n for n in nodes if n != node]
    return others[0] if connection == UNNAMED and len(others) == 1 else connection
