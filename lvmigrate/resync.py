"""How a resynchronisation gets on, from what both ends say of it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from lvmigrate.progress import Stall, SyncProgress, VolumeSync
from lvmigrate.replication import (
    VERIFYING,
    ConnectionState,
    DiskState,
    PeerVolume,
    ReplicationState,
    Resource,
)

#: The rate is taken over this long at most, in seconds: DRBD 9 tells of progress about every 3 s.
_WINDOW_S: Final = 30.0
#: Without progress for this long, in seconds, it is worth a word.
_QUIET_S: Final = 10.0
_NO_DISK: Final = frozenset({DiskState.DISKLESS, DiskState.FAILED, DiskState.DETACHING})

#: What to do about a resynchronisation that does not get on.
STALL_HINTS: Final[Mapping[Stall, str]] = MappingProxyType(
    {
        Stall.NOT_CONNECTED: "`drbdsetup status` on both nodes; `drbdadm connect` where it is StandAlone.",
        Stall.NO_DISK: "`drbdadm attach` on the node whose disk is not there, or replace that disk.",
        Stall.OTHER_FIRST: "Wait for the other resource (resync-after), or give this one longer with --sync-stall.",
        Stall.PAUSED: "`drbdadm resume-sync` on both nodes.",
        Stall.CONGESTED: "See what fills the link between the nodes; then try again.",
        Stall.UNKNOWN: "See the kernel logs of both nodes (`journalctl -k -g drbd`), and the resync rate.",
    }
)

#: A resource as one node describes it (``None``: not known), and the node at the other end.
End = tuple[Resource | None, str]


class SyncMeter:
    """Takes one look after another and says how far it is, how fast, and whether and why it stands still."""

    def __init__(self) -> None:
        #: (time, KiB left), the oldest first.
        self._looks: deque[tuple[float, int]] = deque()
        self._least: int | None = None
        self._states: tuple[object, ...] = ()
        self._moved_at: float | None = None

    def look(self, ends: Sequence[End], waiting_for: tuple[str, ...], now: float) -> SyncProgress:
        """Both ends of every resource as they are at ``now`` (seconds)."""
        volumes = tuple(_volumes(ends))
        left = sum(volume.out_of_sync_kib or 0 for volume in volumes)
        size = sum(_sizes(ends).values())
        self._note(now, left, tuple((v.resource, v.volume, v.states) for v in volumes))
        if _verifies(ends):
            self._moved_at = now  # it makes nothing less, and 8.4 does not tell how far it is
        rate = self._rate()
        quiet = 0.0 if self._moved_at is None else now - self._moved_at
        return SyncProgress(
            out_of_sync_kib=left,
            percent=100.0 * (1 - min(left, size) / size) if size else None,
            waiting_for=waiting_for,
            rate_kib_s=rate,
            eta_s=left / rate if rate else None,
            volumes=volumes,
            stalled_s=quiet if quiet >= _QUIET_S else 0.0,
            stall=stall_of(ends) if quiet >= _QUIET_S else None,
        )

    def _note(self, now: float, left: int, states: tuple[object, ...]) -> None:
        if self._looks and left > self._looks[-1][1]:
            # Another resynchronisation, or more to do: what was before tells no rate, and no progress.
            self._looks.clear()
            self._least = left
        self._looks.append((now, left))
        while len(self._looks) > 2 and now - self._looks[1][0] >= _WINDOW_S:  # noqa: PLR2004 -- two ends of a window
            self._looks.popleft()
        if self._least is None or left < self._least or states != self._states:
            self._least, self._moved_at = left, now
        self._states = states

    def _rate(self) -> float | None:
        (begin, most), (end, left) = self._looks[0], self._looks[-1]
        return (most - left) / (end - begin) if most > left and end > begin else None


def _verifies(ends: Sequence[End]) -> bool:
    links = [resource.towards(peer) for resource, peer in ends if resource is not None]
    return any(volume.replication in VERIFYING for link in links if link is not None for volume in link.volumes)


def stall_of(ends: Sequence[End]) -> Stall:
    """Why it stands still: of several reasons the one that keeps the others from mattering."""
    links = [(resource, resource.towards(peer)) for resource, peer in ends if resource is not None]
    if any(link is None or link.state is not ConnectionState.CONNECTED for _, link in links):
        return Stall.NOT_CONNECTED
    replicated = [volume for _, link in links if link is not None for volume in link.volumes]
    disks = {volume.disk for resource, _ in links for volume in resource.volumes}
    if _NO_DISK & (disks | {volume.disk for volume in replicated}):
        return Stall.NO_DISK
    why = {word for volume in replicated for word in volume.resync_suspended.split(",")}
    if "dependency" in why:
        return Stall.OTHER_FIRST
    paused = {ReplicationState.PAUSED_SOURCE, ReplicationState.PAUSED_TARGET}
    if why - {"no"} or any(volume.replication in paused for volume in replicated):
        return Stall.PAUSED
    behind = {ReplicationState.AHEAD, ReplicationState.BEHIND}
    if any(link is not None and link.congested for _, link in links) or any(
        v.replication in behind for v in replicated
    ):
        return Stall.CONGESTED
    return Stall.UNKNOWN


def _volumes(ends: Sequence[End]) -> Iterator[VolumeSync]:
    found: dict[tuple[str, int], dict[str, PeerVolume | None]] = {}
    unhealthy: set[tuple[str, int]] = set()
    for resource, peer in ends:
        if resource is None:
            continue
        link = resource.towards(peer)
        there = {} if link is None else {volume.number: volume for volume in link.volumes}
        for volume in resource.volumes:
            key = (resource.name, volume.number)
            seen = found.setdefault(key, {})[resource.node] = there.get(volume.number)
            if seen is None or seen.replication is not ReplicationState.ESTABLISHED:
                unhealthy.add(key)
    for (name, number), by_node in sorted(found.items()):
        if (name, number) not in unhealthy:
            continue
        told = [seen for seen in by_node.values() if seen is not None]
        # An end that has just begun says 0, and one that sends no news an old number: never less than there is.
        left = [seen.out_of_sync_kib for seen in told if seen.out_of_sync_kib is not None]
        done = [seen.done_percent for seen in told if seen.done_percent is not None]
        yield VolumeSync(
            resource=name,
            volume=number,
            out_of_sync_kib=max(left, default=None),
            percent=min(done, default=None),
            states=tuple((node, seen.replication.value if seen else "-") for node, seen in sorted(by_node.items())),
        )


def _sizes(ends: Sequence[End]) -> dict[tuple[str, int], int]:
    return {
        (resource.name, volume.number): volume.size_kib or 0
        for resource, _ in ends
        if resource is not None
        for volume in resource.volumes
    }
