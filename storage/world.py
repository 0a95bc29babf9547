"""What the lines of one node's ``events2`` add up to.

A world is built from the ``exists`` lines of one stream and changed by the events of that same stream.  After a
stream has ended, a new world is built from the next one: nothing is carried over a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from lvmigrate.replication import (
    UNNAMED,
    Connection,
    ConnectionState,
    DiskState,
    PeerVolume,
    ReplicationState,
    Resource,
    Role,
    Volume,
)
from storage.events2 import Action, Event, Kind

#: While one of these, ``done`` is about the present; afterwards it is a memory.
_RESYNC: Final = frozenset(
    {
        ReplicationState.SYNC_SOURCE,
        ReplicationState.SYNC_TARGET,
        ReplicationState.PAUSED_SOURCE,
        ReplicationState.PAUSED_TARGET,
        ReplicationState.VERIFY_SOURCE,
        ReplicationState.VERIFY_TARGET,
    }
)


class Gap(ValueError):
    """Lines are missing, or came in another order: the world must be built anew."""


@dataclass(slots=True, kw_only=True)
class _Parts:
    """One resource, as far as the lines have told."""

    role: Role = Role.UNKNOWN
    suspended: str = "no"
    volumes: dict[int, Volume] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    peer_volumes: dict[tuple[int, int], PeerVolume] = field(default_factory=dict)


class World:
    """The resources of one node. Not thread-safe: it belongs to the one who reads the stream."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._parts: dict[str, _Parts] = {}
        self._made: dict[str, Resource] = {}
        #: Whether the first dump has been read to its end. Before, an absent resource proves nothing.
        self.complete = False

    def resource(self, name: str) -> Resource | None:
        """The resource as it is after the newest line; ``None``: not announced (yet, see `complete`)."""
        made = self._made.get(name)
        if made is None and name in self._parts:
            made = self._made[name] = self._make(name, self._parts[name])
        return made

    def resources(self) -> Mapping[str, Resource]:
        """Every resource, by name."""
        return {name: made for name in self._parts if (made := self.resource(name)) is not None}

    def apply(self, event: Event) -> None:
        """Take one line. Raises `Gap` when it does not fit what came before; the world is of no more use then."""
        if event.kind is Kind.END:
            self.complete = True
            return
        if event.kind is Kind.SKIPPED:
            raise Gap(f"its events are not in sequence (skipped {event.skipped})")
        self._made.pop(event.name, None)
        match event.kind:
            case Kind.RESOURCE:
                self._resource(event)
            case Kind.DEVICE:
                self._device(event)
            case Kind.CONNECTION:
                self._connection(event)
            case Kind.PEER_DEVICE:
                self._peer_device(event)
            case Kind.PATH | Kind.HELPER:
                # They change nothing that a `Resource` tells.
                pass

    def _resource(self, event: Event) -> None:
        if event.action is Action.DESTROY:
            self._parts.pop(event.name, None)
            return
        if event.action is Action.RENAME:
            self._parts[event.new_name or event.name] = self._known(event)
            if event.new_name not in {None, event.name}:
                del self._parts[event.name]
                self._made.pop(event.new_name or "", None)
            return
        if event.action is not Action.CHANGE:
            self._parts[event.name] = _Parts()
        parts = self._known(event)
        parts.role = event.role or parts.role
        parts.suspended = event.suspended or parts.suspended

    def _device(self, event: Event) -> None:
        parts, number = self._known(event), event.volume or 0
        if event.action is Action.DESTROY:
            parts.volumes.pop(number, None)
            return
        old = parts.volumes.get(number)
        if event.action is not Action.CHANGE:
            old = Volume(number=number, minor=-1 if event.minor is None else event.minor, disk=DiskState.DISKLESS)
        if old is None:
            raise _gap(event)
        parts.volumes[number] = replace(
            old,
            minor=old.minor if event.minor is None else event.minor,
            disk=event.disk or old.disk,
            quorum=old.quorum if event.quorum is None else event.quorum,
            size_kib=old.size_kib if event.size_kib is None else event.size_kib,
        )

    def _connection(self, event: Event) -> None:
        parts, number = self._known(event), event.peer_node_id or 0
        if event.action is Action.DESTROY:
            parts.connections.pop(number, None)
            for key in [key for key in parts.peer_volumes if key[0] == number]:
                del parts.peer_volumes[key]
            return
        old = parts.connections.get(number)
        if event.action is not Action.CHANGE:
            old = Connection(
                name=event.conn_name or UNNAMED,
                peer_node_id=number,
                state=ConnectionState.STANDALONE,
                peer_role=Role.UNKNOWN,
                congested=None,
                volumes=(),
            )
        if old is None:
            raise _gap(event)
        parts.connections[number] = replace(
            old,
            name=event.conn_name or old.name,
            state=event.connection or old.state,
            peer_role=event.role or old.peer_role,
            congested=old.congested if event.congested is None else event.congested,
        )

    def _peer_device(self, event: Event) -> None:
        parts, number = self._known(event), event.volume or 0
        key = (event.peer_node_id or 0, number)
        if event.action is Action.DESTROY:
            parts.peer_volumes.pop(key, None)
            return
        old = parts.peer_volumes.get(key)
        if event.action is not Action.CHANGE:
            old = PeerVolume(number=number, replication=ReplicationState.OFF, disk=DiskState.UNKNOWN)
        if old is None:
            raise _gap(event)
        replication = event.replication or old.replication
        done = old.done_percent if event.done_percent is None else event.done_percent
        parts.peer_volumes[key] = replace(
            old,
            replication=replication,
            disk=event.peer_disk or old.disk,
            out_of_sync_kib=old.out_of_sync_kib if event.out_of_sync_kib is None else event.out_of_sync_kib,
            done_percent=done if replication in _RESYNC else None,
            resync_suspended=event.resync_suspended or old.resync_suspended,
        )

    def _known(self, event: Event) -> _Parts:
        parts = self._parts.get(event.name)
        if parts is None:
            raise _gap(event)
        return parts

    def _make(self, name: str, parts: _Parts) -> Resource:
        return Resource(
            node=self._node,
            name=name,
            role=parts.role,
            suspended=parts.suspended,
            volumes=tuple(parts.volumes[number] for number in sorted(parts.volumes)),
            connections=tuple(
                replace(
                    parts.connections[peer],
                    volumes=tuple(parts.peer_volumes[key] for key in sorted(parts.peer_volumes) if key[0] == peer),
                )
                for peer in sorted(parts.connections)
            ),
        )


def _gap(event: Event) -> Gap:
    return Gap(f"{event.action.value} of {event.kind.value} of {event.name} that was not announced")
