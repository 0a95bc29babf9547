"""Storage that every node reaches alike, behind `lvmigrate.protocols.Storage`: NFS, Ceph, iSCSI, NBD and the like.

Nothing is replicated, so there is nothing to open, to close or to watch; tokens exclude others as everywhere.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Never

from lvmigrate.errors import Code, CommandFailed
from lvmigrate.node import Node
from lvmigrate.replication import (
    ConnectionOptions,
    Lineage,
    Opener,
    Place,
    Reach,
    Resource,
    Surroundings,
    VerifyEnd,
)
from lvmigrate.together import together
from lvmigrate.token import Guarded, Token
from storage import reach
from storage.marks import Marks, no_guard
from storage.remote import Remote
from storage.shell import Shell
from storage.watch import ReplicationWatch

_NOTHING_TO_GUARD = "shared storage has nothing that a guard would close"


class SharedStorage(Marks):
    """Fulfils `lvmigrate.protocols.Storage` for guests of which no disk is replicated.

    That one of ``directories`` is the same on every node is the caller's word; a file in it must have the same inode.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        directories: Collection[str],
        *,
        ssh_config: Path | None = None,
        command_timeout_s: float = 30.0,
        root: str = "",
        shell: Shell | None = None,
    ) -> None:
        shell = shell or Shell(ssh_config=ssh_config, connect_timeout_s=10.0)
        super().__init__(Remote(nodes, shell, command_timeout_s=command_timeout_s, root=root))
        self._directories = tuple(posixpath.normpath(directory) for directory in directories)

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        """Those of ``paths`` that lead to storage which other nodes can reach too, and what that is."""
        return reach.look(self._remote, node, paths, self._directories)

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:  # noqa: ARG002
        """None of ``paths`` is a device of DRBD's that this storage would know."""
        self._remote.node(node)
        return {}

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:  # noqa: ARG002
        """There are no resources."""
        self._remote.node(node)
        return {}

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:  # noqa: ARG002
        """There are no resources."""
        self._remote.node(node)
        return {}

    def observe(self, node: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:  # noqa: ARG002
        """There are no resources."""
        self._remote.node(node)
        return {}

    def watch(
        self,
        nodes: Sequence[str],
        names: Collection[str],
        *,
        on_change: Callable[[str], None] | None = None,
    ) -> AbstractContextManager[ReplicationWatch]:
        """A watch with nothing to watch: it sees no break."""
        if names:
            self._refuse(", ".join(nodes), f"Watching {', '.join(names)}")
        return nothing_to_watch(self._remote, nodes, on_change)

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:  # noqa: ARG002
        """There are no connections: `CommandFailed`."""
        self._refuse(node, f"Reading the options of {name}")

    def two_primaries(self, node: str) -> frozenset[str]:
        """There are no resources."""
        self._remote.node(node)
        return frozenset()

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        """There are no resources: `CommandFailed` if one is named."""
        self._remote.node(node)
        if names:
            self._refuse(node, f"Looking around {', '.join(names)}")
        return Surroundings()

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:  # noqa: ARG002
        """There are no connections: `CommandFailed`."""
        self._refuse(node, f"Allowing two primaries of {name}")

    def restore_options(
        self,
        node: str,
        name: str,
        peer: str,  # noqa: ARG002
        options: ConnectionOptions,  # noqa: ARG002
        token: Token,  # noqa: ARG002
    ) -> ConnectionOptions:
        """There are no connections: `CommandFailed`."""
        self._refuse(node, f"Restoring the options of {name}")

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:  # noqa: ARG002
        """There are no connections: `CommandFailed`."""
        self._refuse(node, f"Connecting {name} again")

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:  # noqa: ARG002
        """There are no resources: `CommandFailed`."""
        self._refuse(node, f"Promoting {name}")

    def promote_by_force(self, node: str, name: str, token: Token) -> None:  # noqa: ARG002
        """There are no resources: `CommandFailed`."""
        self._refuse(node, f"Promoting {name} by force")

    def demote(self, node: str, name: str, token: Token) -> None:  # noqa: ARG002
        """There are no resources: `CommandFailed`."""
        self._refuse(node, f"Demoting {name}")

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:  # noqa: ARG002
        """There are no resources: `CommandFailed`."""
        self._refuse(node, f"Beginning to verify {name}/{volume}")

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:  # noqa: ARG002
        """There are no resources: `CommandFailed`."""
        self._refuse(node, f"Looking how the verification of {name} ended")

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """Nobody, as there are no resources: `CommandFailed` if one is named."""
        self._remote.node(node)
        if names:
            self._refuse(node, f"Looking who has {', '.join(names)} open")
        return ()

    def guard_trouble(self, node: str) -> str | None:
        """No guard is armed: there is nothing to guard."""
        self._remote.node(node)
        return _NOTHING_TO_GUARD

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:  # noqa: ARG002
        """No guard is armed: `CommandFailed`."""
        raise no_guard(node, _NOTHING_TO_GUARD)

    def _refuse(self, node: str, what: str) -> Never:
        raise CommandFailed(
            node,
            what,
            status=0,
            hint="The guest's disks are on shared storage, which has no resources.",
            code=Code.STORAGE_FAILED,
        )


def nothing_to_watch(remote: Remote, nodes: Sequence[str], on_change: Callable[[str], None] | None) -> ReplicationWatch:
    """A watch of no resource, each of ``nodes`` having answered once. Raises `NodeUnreachable`."""
    together([partial(remote.ask, node, "Greeting the node", "true") for node in nodes])
    return ReplicationWatch(
        called={},
        follow=lambda node: remote.stream(node, "follow"),
        why=lambda node, answer: remote.why(node, "Following events", answer),
        on_change=on_change,
        answer_within_s=remote.timeout_s,
    )
