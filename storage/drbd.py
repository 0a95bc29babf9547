"""DRBD 9 and 8.4 behind `lvmigrate.protocols.Storage`: one name for each resource on all of its nodes.

The border where a name that the core speaks becomes a node's own, and back (`storage.names`); what is asked and done
is in `storage.kernels`.  Nothing of lvmigrate's on a node, neither a guard's orders nor a token, has another name in
it than the node's own, so that any other controller understands it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lvmigrate.node import Node
from lvmigrate.replication import (
    UNNAMED,
    Connection,
    ConnectionOptions,
    Lineage,
    Opener,
    Place,
    Reach,
    Resource,
    Surroundings,
    VerifyEnd,
)
from lvmigrate.token import Guarded, Token, Traces
from storage import reach
from storage.kernels import Kernels
from storage.marks import Marks
from storage.names import Names
from storage.remote import Remote
from storage.shell import Shell
from storage.watch import ReplicationWatch

T = TypeVar("T")


class DrbdStorage(Marks):
    """Fulfils `lvmigrate.protocols.Storage`; see there for what each method guarantees and raises.

    ``directories`` are those that the operator declares to be the same on every node.  ``root`` is put before
    ``/run``, ``/etc`` and ``/sys/module`` on the nodes, so that a test can have its own.
    """

    def __init__(  # noqa: PLR0913 -- one by one, by name
        self,
        nodes: Mapping[str, Node],
        *,
        ssh_config: Path | None = None,
        command_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        root: str = "",
        shell: Shell | None = None,
        directories: Collection[str] = (),
    ) -> None:
        shell = shell or Shell(ssh_config=ssh_config, connect_timeout_s=connect_timeout_s)
        super().__init__(Remote(nodes, shell, command_timeout_s=command_timeout_s, root=root))
        self._directories = tuple(directories)
        self._kernels = Kernels(self._remote)
        # What is out of use is not waited for.
        asked = [name for name, node in nodes.items() if node.offline is None]
        self._names = Names(asked, self._kernels.shown)

    # ---- looking

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        """Which resource and volume each block device is on ``node``. A path that is none of DRBD's is left out."""
        if not paths:
            return {}
        found = self._kernels.locate(node, paths)
        self._names.learn(node, found.shown)
        return {
            path: replace(place, resource=self._names.one(node, place.resource)) for path, place in found.places.items()
        }

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        """Those of ``paths`` that lead to storage which other nodes can reach too, and what that is."""
        return reach.look(self._remote, node, paths, self._directories)

    def observe(self, node: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:
        """What the node's kernel says now of these resources, or of all. One that it does not have is left out.

        With ``None`` a node without DRBD has no resources; with names its lack is an error.
        """
        if names is None:
            found = self._kernels.all(node)
            self._names.learn(node, found.shown)
            ones = {own: self._names.one(node, own) for own in found.resources}
            resources = found.resources
        elif names:
            ones = self._names.owns(node, names)
            resources = self._kernels.observe(node, ones)
        else:
            return {}
        return {
            ones[own]: replace(resource, name=ones[own], connections=self._named(node, resource))
            for own, resource in resources.items()
        }

    def _named(self, node: str, resource: Resource) -> tuple[Connection, ...]:
        """Its connections, of 8.4's the only one by the name of its peer, if that is known.

        Another node may have a resource of the same name with a peer of its own: it must not be taken for this one's.
        """
        connections = resource.connections
        if len(connections) == 1 and connections[0].name == UNNAMED:
            return (replace(connections[0], name=self._names.peer(node, resource.name) or UNNAMED),)
        return connections

    def two_primaries(self, node: str) -> frozenset[str]:
        """The resources of ``node`` with a connection on which two primaries are allowed now."""
        shown = self._kernels.shown(node)
        names = [one.name for one in shown if any(connection.allow_two_primaries for connection in one.connections)]
        if names:
            self._names.learn(node, shown)
        return frozenset(self._names.one(node, name) for name in names)

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        """What is set on the connection from ``node`` to ``peer`` now."""
        return self._kernels.options(node, self._names.own(node, name), peer)

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        """The generation of the data of each volume (``RESOURCE/NUMBER``), as `Kernels.generations` tells it."""
        ones = self._names.owns(node, names)
        return _volumes(self._kernels.generations(node, ones), ones) if ones else {}

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:
        """Where the data of each volume (``RESOURCE/NUMBER``) on ``node`` come from, as seen towards ``peer``.

        A volume without a disk there is left out.
        """
        ones = self._names.owns(node, names)
        return _volumes(self._kernels.lineages(node, peer, ones), ones) if ones else {}

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:
        """By volume: the last online verify with ``peer`` that came to its end, by the kernel log of ``node``."""
        return self._kernels.verify_ends(node, self._names.own(node, name), peer)

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """What has a device of these resources open on ``node`` now, in any mode: processes, mounts, other devices."""
        ones = self._names.owns(node, names)
        found = self._kernels.openers(node, ones) if ones else ()
        return tuple(replace(opener, resource=ones[opener.resource]) for opener in found)

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        """What is around these resources on ``node``: the module, their configuration, and who else acts on them."""
        ones = self._names.owns(node, names)
        if not ones:
            return Surroundings()
        found = self._kernels.surroundings(node, ones)
        return replace(
            found,
            two_primaries_for_good=frozenset(ones[own] for own in found.two_primaries_for_good),
            other_hands=tuple(replace(hand, resource=ones[hand.resource]) for hand in found.other_hands),
        )

    def watch(
        self, nodes: Sequence[str], names: Collection[str], *, on_change: Callable[[str], None] | None = None
    ) -> AbstractContextManager[ReplicationWatch]:
        """Follow these resources on these nodes. Inside the context every node has answered once."""
        return self._kernels.watch({node: self._names.owns(node, names) for node in nodes}, on_change=on_change)

    # ---- changing

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:
        """Allow two primaries on this one connection, protocol C; what is set then. Idempotent.

        Raises also `TokenLost`.
        """
        return self._kernels.allow_two_primaries(node, self._names.own(node, name), peer, token)

    def restore_options(
        self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token
    ) -> ConnectionOptions:
        """Set allow-two-primaries and the protocol to exactly ``options``; what is set then. Idempotent.

        Refuses to turn two primaries off unless the connection is Connected.  Raises also `TokenLost`.
        """
        return self._kernels.restore_options(node, self._names.own(node, name), peer, options, token)

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        """Connect ``node`` to ``peer`` again if the connection is StandAlone, with these options. Discards nothing."""
        self._kernels.reconnect(node, self._names.own(node, name), peer, options, token)

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
        """Make the node Primary. Idempotent; never by force. Raises also `TokenLost`.

        Refuses with `CommandFailed` (`Code.NOT_CONNECTED`) unless Connected to ``beside``, if that is given.
        """
        self._kernels.promote(node, self._names.own(node, name), token, beside=beside)

    def promote_by_force(self, node: str, name: str, token: Token) -> None:
        """Make the node Primary although its copies are old: ``drbdsetup primary --force``. Raises also `TokenLost`.

        Refuses with `CommandFailed` (`Code.NOT_UPTODATE`) unless each is UpToDate, Outdated or Consistent and no peer
        is connected, which is looked at in the same remote command.  Guaranteed afterwards: they count as UpToDate.
        """
        self._kernels.promote_by_force(node, self._names.own(node, name), token)

    def demote(self, node: str, name: str, token: Token) -> None:
        """Make the node Secondary. Idempotent; never by force.

        Refuses with `DeviceHeld` while anything has one of the resource's devices open in any mode.
        """
        self._kernels.demote(node, self._names.own(node, name), token)

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:
        """Have DRBD compare every block of the volume on ``node`` with the copy on ``peer``, beside all I/O.

        Refuses while there is a token of ``guest`` on ``node``, and unless the volume is replicated to ``peer`` now.
        """
        self._kernels.begin_verify(node, self._names.own(node, name), volume, peer, guest)

    # ---- guards

    def guard_trouble(self, node: str) -> str | None:
        """Why no guard can be armed on ``node`` (a clause), ``None`` when one can."""
        return self._remote.ask(node, "Looking whether a guard can be armed", "guard_trouble").out.strip() or None

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:
        """Start the dead-man's guard of this guest on ``node``; it outlives the controller. Idempotent.

        See `Kernels.arm_guard` for what is guaranteed afterwards, and raised.
        """
        orders = [replace(link, resource=self._names.own(node, link.resource)) for link in guarded]
        self._kernels.arm_guard(node, token, orders, resume=resume)

    def traces(self, node: str) -> Traces:
        """Every token and every guard that is on ``node`` now."""
        found = super().traces(node)
        if any(guard.guarded for guard in found.guards):
            self._names.learn(node, self._kernels.shown(node))
        return replace(
            found,
            guards=tuple(
                replace(
                    guard,
                    guarded=tuple(
                        replace(link, resource=self._names.one(node, link.resource)) for link in guard.guarded
                    ),
                )
                for guard in found.guards
            ),
        )


def _volumes(found: Mapping[str, T], ones: Mapping[str, str]) -> dict[str, T]:
    """What is known of each ``RESOURCE/NUMBER``, under the names that were asked for."""
    told = ((volume.rpartition("/"), value) for volume, value in found.items())
    return {f"{ones[own]}/{number}": value for (own, _, number), value in told}
