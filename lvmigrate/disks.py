"""The disks of a guest under way: its DRBD resources as both nodes of the move see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.plan import Plan
from lvmigrate.progress import SyncProgress
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import ReplicationState, Resource, Role
from lvmigrate.together import outcomes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """What the watch and the kernels say about all resources of one move."""

    storage: Storage
    watch: Watch
    plan: Plan

    @property
    def names(self) -> tuple[str, ...]:
        """The guest's resources."""
        return tuple(resource.name for resource in self.plan.resources)

    def ends(self) -> list[tuple[Resource | None, str]]:
        """Each resource at each end as last heard, with the node at the other end."""
        directions = ((self.plan.source, self.plan.target), (self.plan.target, self.plan.source))
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
        nodes = {self.plan.source: self.plan.target, self.plan.target: self.plan.source}
        return (*words, *(f"{nodes[peer]} is not watched" for resource, peer in self.ends() if resource is None))

    def roles(self) -> tuple[str, ...]:
        """What each end was last heard to be, in words."""
        return tuple(f"{r.name} is {r.role.value} on {r.node}" for r, _ in self.ends() if r is not None)

    def doubts_now(self) -> list[str]:
        """Every break since the watch last forgave, and every doubt now, by both kernels' own word.

        A gap of the watch is no doubt if both kernels now say Connected, Established and UpToDate: with two Primaries,
        copies that had parted would not have found together again (the target, Primary, refuses to become SyncTarget),
        and with one, a resynchronisation that is over has made them equal.
        """
        doubts = list(self.watch.breaks())
        nodes = (self.plan.source, self.plan.target)
        calls = [partial(self._observed, node) for node in nodes]
        for node, peer, seen in zip(nodes, reversed(nodes), outcomes_of(calls), strict=True):
            if isinstance(seen, LvmigrateError):
                doubts.append(str(seen))
                continue
            doubts += [f"{node} has no {name}" for name in self.names if name not in seen]
            doubts += [str(doubt) for resource in seen.values() for doubt in resource.doubts(peer)]
        return doubts

    def _observed(self, node: str) -> Mapping[str, Resource]:
        """What the kernel says, asked once more if there is no answer: one lost reply must not hold a guest."""
        try:
            return self.storage.observe(node, self.names)
        except NodeUnreachable:
            return self.storage.observe(node, self.names)

    def progress_now(self) -> SyncProgress:
        """What they still lack. DRBD 8.4 sends no progress of a resynchronisation, so the kernel is asked."""
        seen = self.storage.observe(self.plan.source, self.names)
        left = sum(
            volume.out_of_sync_kib or 0
            for resource in seen.values()
            if (connection := resource.towards(self.plan.target)) is not None
            for volume in connection.volumes
            if volume.replication is not ReplicationState.ESTABLISHED
        )
        size = sum(volume.size_kib or 0 for resource in seen.values() for volume in resource.volumes)
        return SyncProgress(
            out_of_sync_kib=left,
            percent=100.0 * (1 - min(left, size) / size) if size else None,
            waiting_for=self.doubts(),
        )
