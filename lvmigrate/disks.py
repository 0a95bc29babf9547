"""The disks of a guest under way: its DRBD resources as both nodes of the move see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from lvmigrate.errors import LvmigrateError, NodeUnreachable
from lvmigrate.progress import SyncProgress
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import Resource, Role, Standing, Unbroken
from lvmigrate.resync import SyncMeter
from lvmigrate.together import outcomes_of

_log = structlog.get_logger()

#: How often a module is asked that sends no events of a resynchronisation's progress (DRBD 8.4), in seconds.
ASK_S: Final = 2.0


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
    _since: float = 0.0
    _meter: SyncMeter = field(default_factory=SyncMeter)
    #: When the kernels were asked last, and what they said.
    _asked: tuple[float, list[tuple[Resource | None, str]]] | None = None

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

    def remember(self, now: float = 0.0) -> None:
        """From here on replication is to stay whole: forget earlier breaks, and remember the data's generations.

        What was not watched before they were read is not proved by them.
        """
        self._since = now
        self.watch.forgive()
        found = self._generations_now()
        self._generations = {} if self.watch.gaps() else found

    def standing(self) -> Standing:
        """Whether replication never left Established since `remember`.

        Where events are missing, because a stream ended and began again, only the kernel can prove it: a copy that was
        written to without the other has another generation.  Where it gives no answer, nobody knows.
        """
        breaks, gaps = self.watch.breaks(), self.watch.gaps()
        if breaks:
            verdict, because = Unbroken.NO, breaks[0]
        elif not gaps:
            verdict, because = Unbroken.YES, "by the events of both nodes"
        else:
            same = self._same_generations()
            if same is None:
                verdict, because = Unbroken.UNKNOWN, gaps[0]
            elif same:
                verdict, because = Unbroken.YES, f"by the generations of the data; {gaps[0]}"
            else:
                verdict, because = Unbroken.NO, f"the data have another generation; {gaps[0]}"
        return Standing(verdict=verdict, since_s=self._since, because=because)

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

    def _same_generations(self) -> bool | None:
        """Whether the data are those of `remember` by their generations; ``None``: a node gives no answer."""
        found = self._generations_now()
        pairs = [(self._generations.get(node), found.get(node)) for node in self.nodes]
        same: bool | None = None
        if any(before is not None and now is not None and now != before for before, now in pairs):
            same = False
        elif all(before is not None and now == before for before, now in pairs):
            same = True
        _log.info("generations_compared", same=same)
        return same

    def _generations_now(self) -> dict[str, Mapping[str, str]]:
        """By node: the generations of the data; without the nodes that do not tell those of every resource."""
        told = outcomes_of([partial(self.storage.generations, node, self.names) for node in self.nodes])
        return {
            node: found
            for node, found in zip(self.nodes, told, strict=True)
            if not isinstance(found, LvmigrateError) and self._covers(found)
        }

    def _covers(self, found: Mapping[str, str]) -> bool:
        return {volume.rpartition("/")[0] for volume in found} >= set(self.names)

    def _observed(self, node: str) -> Mapping[str, Resource]:
        """What the kernel says, asked once more if there is no answer: one lost reply must not hold a guest."""
        try:
            return self.storage.observe(node, self.names)
        except NodeUnreachable:
            return self.storage.observe(node, self.names)

    def sync(self, now: float) -> SyncProgress:
        """What both ends still lack at ``now``, and how fast it gets less.

        From the events where the module sends any of a resynchronisation's progress (DRBD 9); 8.4 does not, and is
        asked, every `ASK_S` seconds at most.
        """
        ends = self.ends()
        if any(resource is None or not resource.tells_progress for resource, _ in ends):
            if self._asked is None or now - self._asked[0] >= ASK_S:
                self._asked = (now, self._ask())
            ends = self._asked[1]
        return self._meter.look(ends, self.doubts(), now)

    def _ask(self) -> list[tuple[Resource | None, str]]:
        """Both kernels' word; of one that gives no answer nothing is known."""
        found = outcomes_of([partial(self.storage.observe, node, self.names) for node in self.nodes])
        return [
            (None if isinstance(seen, LvmigrateError) else seen.get(name), peer)
            for seen, peer in zip(found, reversed(self.nodes), strict=True)
            for name in self.names
        ]
