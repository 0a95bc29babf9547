"""What DRBD says of a resource on one node at one moment, and what that means for a move.

Names and states are those of drbdsetup-events2(8) of DRBD 9; DRBD 8.4 through the same tool uses a subset of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final


class Role(enum.Enum):
    """A resource's role on a node."""

    PRIMARY = "Primary"
    SECONDARY = "Secondary"
    UNKNOWN = "Unknown"


class DiskState(enum.Enum):
    """The state of one copy of a volume."""

    DISKLESS = "Diskless"
    ATTACHING = "Attaching"
    DETACHING = "Detaching"
    FAILED = "Failed"
    NEGOTIATING = "Negotiating"
    INCONSISTENT = "Inconsistent"
    OUTDATED = "Outdated"
    UNKNOWN = "DUnknown"
    CONSISTENT = "Consistent"
    UP_TO_DATE = "UpToDate"


#: A copy that is whole, as the disk was at one moment, and may lack what was written since.
OLD: Final = frozenset({DiskState.OUTDATED, DiskState.CONSISTENT})


class ConnectionState(enum.Enum):
    """The state of the connection to one peer."""

    STANDALONE = "StandAlone"
    DISCONNECTING = "Disconnecting"
    UNCONNECTED = "Unconnected"
    TIMEOUT = "Timeout"
    BROKEN_PIPE = "BrokenPipe"
    NETWORK_FAILURE = "NetworkFailure"
    PROTOCOL_ERROR = "ProtocolError"
    TEAR_DOWN = "TearDown"
    CONNECTING = "Connecting"
    CONNECTED = "Connected"


class ReplicationState(enum.Enum):
    """The state of replication of one volume to one peer."""

    OFF = "Off"
    ESTABLISHED = "Established"
    STARTING_SYNC_SOURCE = "StartingSyncS"
    STARTING_SYNC_TARGET = "StartingSyncT"
    BITMAP_SOURCE = "WFBitMapS"
    BITMAP_TARGET = "WFBitMapT"
    WAIT_UUID = "WFSyncUUID"
    SYNC_SOURCE = "SyncSource"
    SYNC_TARGET = "SyncTarget"
    VERIFY_SOURCE = "VerifyS"
    VERIFY_TARGET = "VerifyT"
    PAUSED_SOURCE = "PausedSyncS"
    PAUSED_TARGET = "PausedSyncT"
    AHEAD = "Ahead"
    BEHIND = "Behind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume of a resource on this node."""

    number: int
    minor: int
    disk: DiskState
    #: ``None`` where the module has no quorum (8.4).
    quorum: bool | None = None
    size_kib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerVolume:
    """One volume as replicated to one peer."""

    number: int
    replication: ReplicationState
    disk: DiskState
    #: KiB that differ between the two copies, as far as the module has said so.
    out_of_sync_kib: int | None = None
    #: Percent of the running resynchronisation, where the module says so (DRBD 9).
    done_percent: float | None = None
    #: Why a resynchronisation stands still (``resync-suspended``), ``no`` when it does not.
    resync_suspended: str = "no"


#: What DRBD 8.4 calls every connection: it does not say which node its peer is.
UNNAMED: Final = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The connection of a resource to one peer."""

    #: DRBD 9: the peer's host name. DRBD 8.4: ``peer`` in its events, and the node where both ends were asked.
    name: str
    #: DRBD 9's node id of the peer; DRBD 8.4 says 0.
    peer_node_id: int
    state: ConnectionState
    peer_role: Role
    congested: bool | None
    volumes: tuple[PeerVolume, ...]


class DoubtKind(enum.Enum):
    """What can be wrong between two copies."""

    SUSPENDED = "I/O is suspended"
    NO_QUORUM = "no quorum"
    #: A copy that is not UpToDate.
    DISK = "not UpToDate"
    #: No connection, or one that does not work.
    CONNECTION = "not connected"
    #: Connected, but replication of a volume is not Established.
    REPLICATION = "not Established"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """One reason why two copies are not both good and in step. ``str()`` is a clause with names, no full stop."""

    kind: DoubtKind
    resource: str
    #: ``None`` when the whole resource is concerned.
    volume: int | None
    words: str

    def __str__(self) -> str:
        return self.words


#: Both copies are compared, block by block; reads and writes go on, to both.
VERIFYING: Final = frozenset({ReplicationState.VERIFY_SOURCE, ReplicationState.VERIFY_TARGET})
#: This copy is being brought to the peer, or compared with it: waiting helps.
SENDING: Final = frozenset(
    {
        ReplicationState.STARTING_SYNC_SOURCE,
        ReplicationState.BITMAP_SOURCE,
        ReplicationState.WAIT_UUID,
        ReplicationState.SYNC_SOURCE,
        ReplicationState.PAUSED_SOURCE,
        *VERIFYING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A DRBD resource as one node's kernel describes it."""

    node: str
    name: str
    role: Role
    #: Why I/O is suspended, ``no`` when it is not.
    suspended: str
    volumes: tuple[Volume, ...]
    connections: tuple[Connection, ...]

    @property
    def tells_progress(self) -> bool:
        """Whether the module sends events while it resynchronises: 8.4, which knows no names of peers, does not.

        Of a resource as it is watched; where both nodes were asked, 8.4's peers have names as well.
        """
        return all(connection.name != UNNAMED for connection in self.connections) and bool(self.connections)

    def towards(self, peer: str) -> Connection | None:
        """The connection to the node called ``peer``; the only one there is where the module knows no names (8.4)."""
        named = [c for c in self.connections if c.name == peer]
        if named:
            return named[0]
        if len(self.connections) == 1 and self.connections[0].name == UNNAMED:
            return self.connections[0]
        return None

    def doubts(self, peer: str) -> Iterator[Doubt]:
        """Every reason why this copy and the one on ``peer`` are not both good and in step, as this node sees it."""

        def doubt(kind: DoubtKind, words: str, volume: int | None = None) -> Doubt:
            return Doubt(kind=kind, resource=self.name, volume=volume, words=words)

        if self.suspended != "no":
            yield doubt(DoubtKind.SUSPENDED, f"I/O of {self.name} is suspended on {self.node} ({self.suspended})")
        for volume in self.volumes:
            what = f"{self.name}/{volume.number} on {self.node}"
            if volume.disk is not DiskState.UP_TO_DATE:
                yield doubt(DoubtKind.DISK, f"{what} is {volume.disk.value}", volume.number)
            if volume.quorum is False:
                yield doubt(DoubtKind.NO_QUORUM, f"{what} has no quorum", volume.number)
        connection = self.towards(peer)
        if connection is None:
            yield doubt(DoubtKind.CONNECTION, f"{self.name} on {self.node} has no connection to {peer}")
            return
        if connection.state is not ConnectionState.CONNECTED:
            words = f"{self.name} on {self.node} is not connected to {peer} ({connection.state.value})"
            yield doubt(DoubtKind.CONNECTION, words)
            return
        yield from self._doubts_of_replication(peer, connection)

    def _doubts_of_replication(self, peer: str, connection: Connection) -> Iterator[Doubt]:
        replicated = {volume.number: volume for volume in connection.volumes}
        for number in sorted(replicated.keys() | {volume.number for volume in self.volumes}):
            there = replicated.get(number)
            if there is None:
                kind, words = DoubtKind.CONNECTION, f"on {self.node} is not replicated to {peer}"
            elif there.replication is not ReplicationState.ESTABLISHED:
                kind, words = DoubtKind.REPLICATION, f"on {self.node} is {there.replication.value} to {peer}"
            elif there.disk is not DiskState.UP_TO_DATE:
                kind, words = DoubtKind.DISK, f"on {peer} is {there.disk.value}"
            else:
                continue
            yield Doubt(kind=kind, resource=self.name, volume=number, words=f"{self.name}/{number} {words}")

    def in_step_with(self, peer: str) -> bool:
        """Connected to ``peer``, and every volume Established and UpToDate at both ends, as this node sees it."""
        return not any(self.doubts(peer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where the data of one copy of a volume come from: generations as 16 hexadecimal digits, roles' bit left out."""

    current: str
    #: The generation since which it counts what the peer lacks, then older ones; none of them zero.
    earlier: tuple[str, ...]
    #: KiB that it counts as differing from the peer's; ``None``: it does not say.
    changed_kib: int | None = None
    #: When its node lost the peer last, by the node's kernel log.
    lost_at: datetime | None = None


class Unbroken(enum.Enum):
    """Whether replication stayed whole. The value is a word for people."""

    YES = "never left Established"
    NO = "left Established"
    #: Nobody watched for a while, and no kernel can prove what was meanwhile.
    UNKNOWN = "nobody knows whether it left Established"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of replication since a moment. ``str()`` is a clause."""

    verdict: Unbroken
    #: That moment, by the clock of the one who watches, in seconds.
    since_s: float
    #: Why, in words.
    because: str

    def __str__(self) -> str:
        return f"replication {self.verdict.value} ({self.because})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a block device leads: a volume of a resource."""

    resource: str
    volume: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where a path leads that is no replicated volume: storage that other nodes can reach too."""

    #: What it is, in words that are equal on every node that reaches the same thing.
    what: str
    #: Why no other node can open it meanwhile, as a clause; empty where it can.
    exclusive: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The options of one connection that a move changes and later restores exactly."""

    allow_two_primaries: bool
    #: ``None`` when it is not set and DRBD's default (C) holds.
    protocol: str | None
    #: Whether opening the device for writing promotes by itself (a resource option of DRBD 9, on by default there).
    auto_promote: bool = False
    #: What the node's tool calls the connection: two words of its command line; empty: not known.
    called: tuple[str, ...] = field(default=(), compare=False)
    #: What an online verify compares by (``verify-alg``); ``None``: nothing is set, and there can be none.
    verify_alg: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyEnd:
    """An online verify of a volume that came to its end, by the kernel's log."""

    #: When, in the log's words.
    at: str
    #: KiB that were not compared, because the guest wrote there just then (a module that does so says it).
    skipped_kib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherHand:
    """Another program on a node that has a resource in its configuration, and may act on it at any time."""

    #: ``linstor``, ``drbd-reactor`` or ``pacemaker``.
    program: str
    resource: str
    #: Whether it runs now.
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is around some resources on a node: the module, their configuration, and who else acts on them."""

    #: DRBD's version as the module says it; empty where there are no resources.
    version: str = ""
    #: The resources on which two primaries are allowed now and by the node's configuration too: they are left so.
    two_primaries_for_good: frozenset[str] = frozenset()
    other_hands: tuple[OtherHand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Something on a node that has a volume's device open."""

    resource: str
    volume: int
    #: Such as ``qemu-system-x86 (pid 288)`` or ``mounted on /srv``.
    what: str
    #: Whether it is a process; else a mount, a swap space, or a device on top.
    process: bool
    #: The name of the guest of libvirt's whose process it is; empty: of none that is known.
    guest: str = ""
