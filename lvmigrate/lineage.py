"""Whether two copies of a volume have parted, by the generations of their data. Pure but for `parted`, which asks.

Each copy has the generation of its data now, the one from which it counts what the other one lacks (its bitmap's), and
earlier ones.  A copy that was written to without the other begins a new generation; two that did so have parted
(split-brain), and nothing here ever chooses which of them is to be given up.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from lvmigrate.errors import Code, Finding
from lvmigrate.own_names import own_name
from lvmigrate.protocols import Storage
from lvmigrate.replication import Lineage
from lvmigrate.together import together

#: No generation, and that of a copy that was never in use.
NONE: Final = "0" * 16
JUST_CREATED: Final = "0" * 15 + "4"


class Kin(enum.Enum):
    """What two copies are to each other."""

    SAME = "the same data"
    FIRST_NEWER = "the first one has everything of the second"
    SECOND_NEWER = "the second one has everything of the first"
    PARTED = "both have changed since they were the same"
    STRANGERS = "they never were the same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """A resource whose two copies have both changed."""

    resource: str
    #: The volumes concerned.
    volumes: tuple[int, ...]
    #: By node: KiB changed there since; ``None``: not known.
    changed_kib: Mapping[str, int | None]
    #: When they lost each other, by a node's clock, and that node; ``None``: no kernel log tells.
    since: tuple[datetime, str] | None
    strangers: bool

    def finding(self, keep: str) -> Finding:
        """The refusal. ``keep``: the node whose copy is in use, or was last; the hint's example keeps that one."""
        nodes = sorted(self.changed_kib)
        which = ", ".join(f"{self.resource}/{number}" for number in self.volumes)
        when = "" if self.since is None else f" since {self.since[0].isoformat()} (by {self.since[1]})"
        changed = ", ".join(
            f"{node} has {'an unknown amount' if kib is None else f'{kib} KiB'} of its own"
            for node, kib in sorted(self.changed_kib.items())
        )
        what = "never were copies of each other" if self.strangers else f"have both changed{when}"
        gone = next((node for node in nodes if node != keep), keep)
        there = own_name(self.resource, gone)
        return Finding(
            code=Code.SPLIT_BRAIN,
            sentence=f"Split-brain: the copies of {which} on {' and '.join(nodes)} {what}; {changed}.",
            hint=f"A person chooses whose changes are lost. To give up those of {gone}: on {gone}"
            f" `drbdadm connect --discard-my-data {there}`, on {keep} `drbdadm connect {own_name(self.resource, keep)}`"
            f" (to give up those of {keep}: the other way round, and never while the guest runs there). Where it still"
            f" looks for its peer, or is Primary on {gone}, first `drbdadm disconnect {there}` and `drbdadm secondary"
            f" {there}` there.",
        )


def kin(first: Lineage, second: Lineage) -> Kin:
    """What two copies are to each other, as the module itself compares them when they meet (drbd_uuid_compare)."""
    if first.current == second.current:
        return Kin.SAME
    if second.current in {NONE, JUST_CREATED}:
        return Kin.FIRST_NEWER
    if first.current in {NONE, JUST_CREATED}:
        return Kin.SECOND_NEWER
    if first.current in second.earlier:
        return Kin.SECOND_NEWER
    if second.current in first.earlier:
        return Kin.FIRST_NEWER
    return Kin.PARTED if set(first.earlier) & set(second.earlier) else Kin.STRANGERS


def parting(
    name: str, first: tuple[str, Mapping[str, Lineage]], second: tuple[str, Mapping[str, Lineage]]
) -> Parting | None:
    """Whether the copies of ``name`` on two nodes have parted, by the lineages that each node tells of its volumes."""
    (one, ours), (other, theirs) = first, second
    apart: dict[int, Kin] = {}
    for volume in sorted(ours.keys() & theirs.keys()):
        resource, _, number = volume.rpartition("/")
        relation = kin(ours[volume], theirs[volume])
        if resource == name and relation in {Kin.PARTED, Kin.STRANGERS}:
            apart[int(number)] = relation
    if not apart:
        return None
    changed: dict[str, int | None] = {}
    times: list[tuple[datetime, str]] = []
    for node, told in ((one, ours), (other, theirs)):
        found = [told[f"{name}/{number}"] for number in apart]
        known = [lineage.changed_kib for lineage in found if lineage.changed_kib is not None]
        changed[node] = sum(known) if len(known) == len(found) else None
        times += [(lineage.lost_at, node) for lineage in found if lineage.lost_at is not None]
    return Parting(
        resource=name,
        volumes=tuple(apart),
        changed_kib=changed,
        since=min(times, default=None),
        strangers=all(relation is Kin.STRANGERS for relation in apart.values()),
    )


def parted(storage: Storage, name: str, nodes: tuple[str, str]) -> Parting | None:
    """Ask both nodes. Raises what the adapter raises: no answer is no proof, and DRBD itself may be told to choose."""
    first, second = nodes
    ours, theirs = together(
        [partial(storage.lineages, node, peer, (name,)) for node, peer in ((first, second), (second, first))]
    )
    return parting(name, (first, ours), (second, theirs))
