"""The disks of a guest under way: its DRBD resources as both nodes of the move see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.progress import SyncProgress
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import ReplicationState, Resource, Role
from lvmigrate.together import outcomes_of

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Disks:
    """What the watch and the kernels say about all resources of one guest on two nodes."""

    storage: Storage
    watch: Watch
    #: The guest's resources.
    names: tuple[str, ...]
    #: Source and target.
    nodes: tuple[str, str]
    #: By node: the generations of the data when replication was last proved whole.
    _generations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def ends(self) -> list[tuple[Resource | None, str]]:
        """Each resource at each end as last heard, with the node at the other end."""
        source, target = self.nodes
        directions = ((source, target), (target, source))
        return [(self.watch.resource(node, name), peer) for name in self.names for node, peer in directions]

    def in_step(self) -> bool:
        """Whether both ends of every resource were last heard to be in step."""
        return all(resource is not None and resource.in_step_with(peer) for resource, peer in self.ends())

    def single_primary(self, node: str) -> bool:
        """Whether every resource was last heard to be Primary on ``node`` and nowhere else."""
        return all(
            resource is not None and (resource.role is Role.PRIMARY) is (resource.node == node)
            for resource, _ in self.ends()
        )

    def doubts(self) -> tuple[str, ...]:
        """What was last heard to be wrong, in words."""
        words = [str(d) for resource, peer in self.ends() if resource is not None for d in resource.doubts(peer)]
        nodes = dict(zip(self.nodes, reversed(self.nodes), strict=True))
        return (*words, *(f"{nodes[peer]} is not watched" for resource, peer in self.ends() if resource is None))

    def roles(self) -> tuple[str, ...]:
        """What each end was last heard to be, in words."""
        return tuple(f"{r.name} is {r.role.value} on {r.node}" for r, _ in self.ends() if r is not None)

    def remember(self) -> None:
        """From here on replication is to stay whole: forget earlier breaks, and remember the data's generations."""
        self.watch.forgive()
        found = outcomes_of([partial(self.storage.generations, node, self.names) for node in self.nodes])
        self._generations = {n: g for n, g in zip(self.nodes, found, strict=True) if not isinstance(g, LvmigrateError)}

    def doubts_now(self) -> list[str]:
        """Why the two copies may not hold the same data, by both kernels' own word.

        Connected, Established and UpToDate at both ends says that they do now.  A break since `remember` is a doubt
        all the same, unless the generations of the data are still those: a Primary that writes without its peer begins
        a new one (drbd_uuid_new_current).
        """
        calls = [partial(self._observed, node) for node in self.nodes]
        doubts = []
        for node, peer, seen in zip(self.nodes, reversed(self.nodes), outcomes_of(calls), strict=True):
            if isinstance(seen, LvmigrateError):
                doubts.append(str(seen))
                continue
            doubts += [f"{node} has no {name}" for name in self.names if name not in seen]
            doubts += [str(doubt) for resource in seen.values() for doubt in resource.doubts(peer)]
        breaks = self.watch.breaks()
        return [*breaks, *doubts] if breaks and (doubts or not self._same_generations()) else doubts

    def _same_generations(self) -> bool:
        found = outcomes_of([partial(self.storage.generations, node, self.names) for node in self.nodes])
        same = all(
            node in self._generations and now == self._generations[node]
            for node, now in zip(self.nodes, found, strict=True)
        )
        _log.info("generations_compared", same=same)
        return same

    def _observed(self, node: str) -> Mapping[str, Resource]:
        """What the kernel says, asked once more if there is no answer: one lost reply must not hold a guest."""
        try:
            return self.storage.observe(node, self.names)
        except NodeUnreachable:
            return self.storage.observe(node, self.names)

    def progress_now(self) -> SyncProgress:
        """What they still lack. DRBD 8.4 sends no progress of a resynchronisation, so the kernel is asked."""
        seen = self.storage.observe(self.nodes[0], self.names)
        left = sum(
            volume.out_of_sync_kib or 0
            for resource in seen.values()
            if (connection := resource.towards(self.nodes[1])) is not None
            for volume in connection.volumes
            if volume.replication is not ReplicationState.ESTABLISHED
        )
        size = sum(volume.size_kib or 0 for resource in seen.values() for volume in resource.volumes)
        return SyncProgress(
            out_of_sync_kib=left,
            percent=100.0 * (1 - min(left, size) / size) if size else None,
            waiting_for=self.doubts(),
        )
