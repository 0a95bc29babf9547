"""One DRBD resource on its two nodes: what the kernels do with roles, openers, cuts and reconnections.

Measured behaviour (facts/drbd.md) and the kernel's own source; what differs between 8.4 and 9 is asked of `Version`.

Long, because the rules of both versions stand side by side for each thing that a kernel does.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterator, Mapping
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
from lvmigrate.simulator.records import EMPTY, Record, includes
from lvmigrate.simulator.timeline import Timeline

_SIZE_KIB: Final = 65536
#: What ``--force`` takes for UpToDate.
_FORCED: Final = frozenset({DiskState.INCONSISTENT, DiskState.OUTDATED, DiskState.CONSISTENT, DiskState.UP_TO_DATE})


class Version(enum.Enum):
    """Which module the nodes run."""

    V84 = "8.4"
    V9 = "9"

    @property
    def module(self) -> str:
        """As the kernel's module says it: that of the recorded ones."""
        return "9.3.3" if self is Version.V9 else "8.4.11"


class KernelRefused(Exception):
    """The kernel's no: the exit code of ``drbdsetup`` and its words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class IoFailed(Exception):
    """A write or a read that no disk in reach can serve."""


@dataclass(slots=True, kw_only=True, eq=False)
class Hold:
    """Something that has the resource's devices open on a node."""

    who: str
    write: bool
    process: bool = True
    #: The guest whose QEMU it is.
    guest: str = ""


@dataclass(slots=True, kw_only=True)
class End:
    """The resource on one node. Roles, openers and options are the kernel's and end with the node; disks do not."""

    node: str
    up: bool = True
    role: Role = Role.SECONDARY
    #: Primary by command, and so until the next command; else as long as a writer has it open.
    explicit: bool = False
    holds: list[Hold] = field(default_factory=list)
    two_primaries: bool = False
    protocol: str = "C"
    state: ConnectionState = ConnectionState.CONNECTED
    disks: dict[int, DiskState] = field(default_factory=dict)
    heads: dict[int, Record] = field(default_factory=dict)
    #: The generation of its data, as the metadata has it.
    generation: str = "G0"
    #: Earlier ones: while it is written to without the peer, the first is the one that they had in common.
    earlier: tuple[str, ...] = ()
    #: It was written to since the peer was last in step.
    alone: bool = False
    #: It was Primary when its node died.
    crashed: bool = False
    #: A person has given up its changes (``--discard-my-data``).
    discards: bool = False
    #: This end's view, until something changes.
    seen: Resource | None = None

    @property
    def good(self) -> bool:
        """Every volume here is UpToDate."""
        return all(disk is DiskState.UP_TO_DATE for disk in self.disks.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long DRBD takes, in seconds."""

    #: From a cut to the kernel's noticing it (``ping-int``, ``timeout``).
    notice_s: float = 1.5
    #: From the link's return to the handshake (``connect-int``).
    connect_s: float = 1.0
    resync_s: float = 4.0
    verify_s: float = 6.0


class Replicated:
    """A resource with some volumes, replicated between exactly two nodes.

    ``called`` and ``minors``: by node, its own name of it and its minors; ``name`` is the one that the core hears.
    ``linked``: whether the network carries DRBD between the two now.  ``changed``: told after every change of a role,
    a connection, a disk or an option.  ``parted``: told when the two copies have parted for good.
    """

    def __init__(  # noqa: PLR0913 -- one by one, by name
        self,
        *,
        name: str,
        nodes: tuple[str, str],
        called: Mapping[str, str],
        minors: Mapping[str, tuple[int, ...]],
        version: Version,
        auto_promote: bool,
        protocol: str,
        timeline: Timeline,
        pace: Pace,
        linked: Callable[[], bool],
        changed: Callable[[Replicated], None],
        parted: Callable[[Replicated, str], None],
    ) -> None:
        self.name = name
        self.nodes = nodes
        self.called = called
        self.minors = minors
        self.version = version
        self.auto_promote = auto_promote
        #: What the configuration file says: a node that boots has this.
        self.configured = protocol
        #: Whether it allows two primaries too.
        self.for_good = False
        self.ends = {node: End(node=node, protocol=protocol) for node in nodes}
        for end in self.ends.values():
            end.disks = dict.fromkeys(range(len(minors[end.node])), DiskState.UP_TO_DATE)
            end.heads = dict.fromkeys(range(len(minors[end.node])), EMPTY)
        #: Which node is being brought in step by the other, if any.
        self.syncing: str | None = None
        #: By what copies are compared; ``None``: they cannot be.
        self.verify_alg: str | None = "crc32c"
        #: Volumes whose copies are being compared, and the node that was told to.
        self.verifying: dict[int, str] = {}
        #: By node and volume: when a comparison that was begun there came to its end last.
        self.verified: dict[tuple[str, int], float] = {}
        #: Of the volumes that were compared: KiB that differ.
        self.differing: dict[int, int] = {}
        #: Words for people: why it is StandAlone.
        self.apart = ""
        self._timeline = timeline
        self._pace = pace
        self._linked = linked
        self._changed = changed
        self._parted = parted
        self._generations = itertools.count(1)
        self._syncs = 0

    # ---- looking

    def peer(self, node: str) -> End:
        """The other end."""
        return self.ends[self.nodes[1 - self.nodes.index(node)]]

    @property
    def connected(self) -> bool:
        """Both kernels say Connected, whether or not the network still carries it."""
        return all(end.up and end.state is ConnectionState.CONNECTED for end in self.ends.values())

    @property
    def blind(self) -> bool:
        """The network is cut and no kernel has noticed: writes wait."""
        return not self._linked() and any(e.up and e.state is ConnectionState.CONNECTED for e in self.ends.values())

    def content(self, node: str, volume: int) -> Record | None:
        """What a reader on ``node`` finds: its own disk, or the peer's through the network; ``None``: an I/O error."""
        end, peer = self.ends[node], self.peer(node)
        if end.disks[volume] is DiskState.UP_TO_DATE:
            return end.heads[volume]
        return peer.heads[volume] if self.connected and peer.disks[volume] is DiskState.UP_TO_DATE else None

    def at(self, node: str, path: str) -> int | None:
        """Which volume ``path`` leads to on ``node``: its minor is called so, and udev makes a link with its name."""
        if node not in self.nodes:
            return None
        for number, minor in enumerate(self.minors[node]):
            if path in (f"/dev/drbd{minor}", f"/dev/drbd/by-res/{self.called[node]}/{number}"):
                return number
        return None

    def view_as(self, node: str, name: str) -> Resource | None:
        """As `view`, under that name."""
        seen = self.view(node)
        return seen if seen is None or seen.name == name else replace(seen, name=name)

    def view(self, node: str) -> Resource | None:
        """What the kernel of ``node`` says; ``None``: the resource is not up there."""
        end = self.ends[node]
        if not end.up:
            return None
        if end.seen is None:
            end.seen = self._view(end, self.peer(node))
        return end.seen

    def _view(self, end: End, peer: End) -> Resource:
        connected = end.state is ConnectionState.CONNECTED
        nine = self.version is Version.V9
        connection = Connection(
            name=peer.node if nine else UNNAMED,
            peer_node_id=self.nodes.index(peer.node) if nine else 0,
            state=end.state,
            peer_role=peer.role if connected else Role.UNKNOWN,
            congested=False,
            volumes=tuple(
                PeerVolume(
                    number=number,
                    replication=self._replication(end, number) if connected else ReplicationState.OFF,
                    disk=peer.disks[number] if connected else DiskState.UNKNOWN,
                    out_of_sync_kib=self.differing.get(number, 0) if connected and self.syncing is None else 4096,
                )
                for number in end.disks
            ),
        )
        # 8.4 has no connection object at all while it is StandAlone.
        absent = not nine and end.state is ConnectionState.STANDALONE
        return Resource(
            node=end.node,
            name=self.name,
            role=end.role,
            suspended="no",
            volumes=tuple(
                Volume(
                    number=number,
                    minor=self.minors[end.node][number],
                    disk=disk,
                    quorum=True if nine else None,
                    size_kib=_SIZE_KIB,
                )
                for number, disk in end.disks.items()
            ),
            connections=() if absent else (connection,),
        )

    def _replication(self, end: End, volume: int) -> ReplicationState:
        if self.syncing is None:
            match self.verifying.get(volume):
                case None:
                    return ReplicationState.ESTABLISHED
                case end.node:
                    return ReplicationState.VERIFY_SOURCE
                case _:
                    return ReplicationState.VERIFY_TARGET
        return ReplicationState.SYNC_TARGET if self.syncing == end.node else ReplicationState.SYNC_SOURCE

    def settled(self) -> Iterator[str]:
        """What is not as it is when nothing is wrong: roles and options apart. In words."""
        for end in self.ends.values():
            if not end.up:
                yield f"{self.name} is down on {end.node}"
            elif end.state is not ConnectionState.CONNECTED:
                yield f"{self.name} on {end.node} is {end.state.value}" + (f" ({self.apart})" if self.apart else "")
            elif self.syncing is not None or not end.good:
                yield f"{self.name} on {end.node} is not UpToDate"

    # ---- roles and openers

    def open(self, node: str, hold: Hold) -> None:
        """Open all volumes. Raises `KernelRefused`: a writer needs a Primary, or one that may become so by itself."""
        end = self.ends[node]
        if not end.up:
            raise KernelRefused(10, "No such device")
        promotes = self.version is Version.V9 and self.auto_promote
        if end.role is not Role.PRIMARY:
            if not promotes:
                raise KernelRefused(1, "Read-only file system" if hold.write else "Wrong medium type")
            if hold.write:
                self._may_promote(end)
                end.role = Role.PRIMARY
            elif self.connected and self.peer(node).role is Role.PRIMARY:
                raise KernelRefused(1, "Wrong medium type")
        end.holds.append(hold)
        self._tell()

    def close(self, node: str, hold: Hold) -> None:
        """Close them. Nothing if it is not open."""
        end = self.ends[node]
        if hold not in end.holds:
            return
        end.holds.remove(hold)
        # Without auto-promote nobody becomes Primary without a command.
        if not end.explicit and not any(other.write for other in end.holds):
            end.role = Role.SECONDARY
        self._tell()

    def reopen(self, node: str, hold: Hold) -> None:
        """Open for writing what was open for reading. Raises `KernelRefused`."""
        if hold.write:
            return
        end = self.ends[node]
        if end.role is not Role.PRIMARY:
            if self.version is not Version.V9 or not self.auto_promote:
                raise KernelRefused(1, "Read-only file system")
            self._may_promote(end)
            end.role = Role.PRIMARY
        hold.write = True
        self._tell()

    def promote(self, node: str, *, force: bool = False) -> None:
        """``drbdsetup primary``, with ``--force`` or without it. Raises `KernelRefused`."""
        end = self.ends[node]
        if not end.up:
            raise KernelRefused(10, "(158) Unknown resource")
        if end.role is not Role.PRIMARY:
            forced = force and not end.good and all(disk in _FORCED for disk in end.disks.values())
            self._may_promote(end, forced=forced)
            if forced:
                # drbd_set_role(): "Forced to consider local data as UpToDate!", and a generation of its own.
                end.disks = dict.fromkeys(end.disks, DiskState.UP_TO_DATE)
                self._begin_alone(end)
            end.role = Role.PRIMARY
            if not self.connected:
                self._begin_alone_84(end)
        end.explicit = True
        self._tell()

    def demote(self, node: str) -> None:
        """``drbdsetup secondary``, as the kernel does it: 9 counts only writers. Raises `KernelRefused`."""
        end = self.ends[node]
        if not end.up:
            raise KernelRefused(10, "(158) Unknown resource")
        if any(hold.write or self.version is Version.V84 for hold in end.holds):
            raise KernelRefused(11, "(-12) Device is held open by someone")
        end.role = Role.SECONDARY
        end.explicit = False
        self._tell()

    def _may_promote(self, end: End, *, forced: bool = False) -> None:
        peer = self.peer(end.node)
        if self.connected and self.blind:
            self._notice()  # the kernel asks its peer first, and so finds out that there is none
        if not forced and not end.good and not (self.connected and peer.good):
            raise KernelRefused(17, "(-2) Need access to UpToDate data")
        if self.connected and peer.role is Role.PRIMARY and not (end.two_primaries and peer.two_primaries):
            raise KernelRefused(11, "(-1) Multiple primaries not allowed by config")

    # ---- options

    def set_options(self, node: str, *, two_primaries: bool, protocol: str) -> None:
        """``drbdsetup net-options``: shared by both ends while the network carries it. Raises `KernelRefused`."""
        end, peer = self.ends[node], self.peer(node)
        if not end.up:
            raise KernelRefused(10, "(158) Unknown resource")
        if two_primaries and protocol != "C":
            raise KernelRefused(10, "(139) Protocol C required")
        both = self.connected and end.role is peer.role is Role.PRIMARY
        if both and end.two_primaries and not two_primaries:
            words = "(164) Can not clear allow_two_primaries as long as there a primaries on both sides"
            raise KernelRefused(10, words)
        for other in (end, peer) if self.connected and self._linked() else (end,):
            other.two_primaries, other.protocol = two_primaries, protocol
        self._tell()

    # ---- comparing

    def verify(self, node: str, volume: int) -> None:
        """``drbdsetup verify``: both copies are compared while they are read and written. Raises `KernelRefused`."""
        if not self.connected or self.syncing is not None:
            raise KernelRefused(11, "(-15) Need a connection to start verify or resync")
        if self.verify_alg is None:
            raise KernelRefused(11, "(-14) Need a verify algorithm to start online verify")
        self.verifying[volume] = node
        self._tell()

        def done() -> None:
            one, other = (self.ends[name].heads[volume] for name in self.nodes)
            self.differing[volume] = 0 if one == other else 4
            self.verified[node, volume] = self._timeline.now
            del self.verifying[volume]
            self._tell()

        self._unless_noticed(self._pace.verify_s, done)

    # ---- writing

    def write(self, node: str, volume: int, writer: str) -> Record | None:
        """One acknowledged write by somebody on ``node``.

        ``None``: it waits, because the network is cut and no kernel has noticed.  Raises `IoFailed`.
        """
        end, peer = self.ends[node], self.peer(node)
        if self.blind and self.connected:
            return None
        before = self.content(node, volume)
        if before is None or end.role is not Role.PRIMARY:
            raise IoFailed
        record = Record(writer, before)
        end.heads[volume] = record
        if self.connected:
            if peer.disks[volume] is DiskState.UP_TO_DATE:
                peer.heads[volume] = record
        elif not end.alone:
            self._begin_alone(end)
            self._tell()
        return record

    def _begin_alone(self, end: End) -> None:
        """A generation of its own: from here on its data are not the peer's."""
        end.alone = True
        end.earlier = (end.generation, *end.earlier)
        end.generation = f"G{next(self._generations)}"

    def _begin_alone_84(self, end: End) -> None:
        """8.4 does so as soon as a Primary has no peer; 9 waits for the first write."""
        if self.version is Version.V84 and end.role is Role.PRIMARY and not end.alone and end.good:
            self._begin_alone(end)

    # ---- the network and the nodes

    def link_changed(self) -> None:
        """The network between the two, or a node, went or came back: the kernels find out in their time."""
        if self._linked():
            self._timeline.after(self._pace.connect_s, self._handshake)
        else:
            self._timeline.after(self._pace.notice_s, self._notice)

    def power_cut(self, node: str) -> None:
        """The node died: its kernel's knowledge is gone, its disks and their metadata stay."""
        end = self.ends[node]
        end.up = False
        end.crashed = end.crashed or end.role is Role.PRIMARY
        end.role, end.explicit, end.holds = Role.SECONDARY, False, []
        self._tell()
        self.link_changed()

    def boot(self, node: str) -> None:
        """The node is back: Secondary, with the options of its configuration file, looking for its peer."""
        end = self.ends[node]
        end.up = True
        end.two_primaries, end.protocol = self.for_good, self.configured
        end.state = ConnectionState.CONNECTING
        if self.syncing is not None:
            self._interrupt()
        self._tell()
        self.link_changed()

    def bring_down(self, node: str) -> None:
        """``drbdadm down``. Nothing where something has it open, or it is down."""
        end = self.ends[node]
        if not end.up or end.holds:
            return
        end.up = False
        end.role, end.explicit = Role.SECONDARY, False
        end.state = ConnectionState.STANDALONE
        peer = self.peer(node)
        if peer.up and peer.state is ConnectionState.CONNECTED:
            peer.state = ConnectionState.CONNECTING
            self._begin_alone_84(peer)
        self._interrupt()
        self._tell()

    def bring_up(self, node: str) -> None:
        """``drbdadm up``. Nothing where it is up."""
        if not self.ends[node].up:
            self.boot(node)

    def disconnect(self, node: str) -> None:
        """``drbdadm disconnect`` of an end that has no peer: it looks for one no longer."""
        end = self.ends[node]
        if end.state is ConnectionState.CONNECTING:
            end.state = ConnectionState.STANDALONE
            self._tell()

    def outdate(self, node: str) -> None:
        """A Secondary is taken apart: ``drbdadm disconnect`` there, and ``outdate``, which 9 does by itself."""
        end, peer = self.ends[node], self.peer(node)
        end.state = ConnectionState.STANDALONE
        end.disks = dict.fromkeys(end.disks, DiskState.OUTDATED)
        if peer.up and peer.state is ConnectionState.CONNECTED:
            peer.state = ConnectionState.CONNECTING
            self._begin_alone_84(peer)
        self._interrupt()
        self._tell()

    def reconnect(self, node: str, *, discard: bool = False) -> None:
        """``drbdadm connect``: nothing unless it is StandAlone there; it takes both ends.

        ``discard``: with ``--discard-my-data``: this end's changes are given up.
        """
        end = self.ends[node]
        if end.state is ConnectionState.STANDALONE:
            end.state = ConnectionState.CONNECTING
            end.discards = discard
            self._tell()
            self.link_changed()

    def _notice(self) -> None:
        if self._linked():
            return
        for end in self.ends.values():
            if end.up and end.state is ConnectionState.CONNECTED:
                end.state = ConnectionState.CONNECTING
                self._begin_alone_84(end)
        self._interrupt()
        self._tell()

    def _interrupt(self) -> None:
        self.syncing = None
        self.verifying.clear()
        self._syncs += 1

    def _handshake(self) -> None:
        ends = [self.ends[node] for node in self.nodes]
        if not self._linked() or not all(e.up and e.state is ConnectionState.CONNECTING for e in ends):
            return
        first, second = ends
        if (first.two_primaries, first.protocol) != (second.two_primaries, second.protocol):
            # receive_protocol(): "incompatible allow-two-primaries settings"
            self._stand_alone("the options of the two ends differ")
            return
        if first.role is second.role is Role.PRIMARY and not first.two_primaries:
            self._stand_alone("both are Primary and two primaries are off")
            return
        discarding = [end for end in ends if end.discards and end.role is Role.SECONDARY]
        if first.alone and second.alone and not discarding:
            self._stand_alone("split-brain: both have a generation of their own")
            if not any(self._has_all(one, two) for one, two in ((first, second), (second, first))):
                self._parted(self, "both were written to during a cut")
            return
        source = self._sync_source(first, second)
        if source is not None and (target := self.peer(source.node)).role is Role.PRIMARY:
            self._stand_alone(f"{target.node} is Primary and refuses to become SyncTarget")
            return
        for end in ends:
            end.state = ConnectionState.CONNECTED
        self.apart = ""
        if source is not None:
            self._sync_from(source)
        self._tell()

    def _sync_source(self, first: End, second: End) -> End | None:
        """Whose data is the newer, if the two are not surely the same."""
        for end, other in ((first, second), (second, first)):
            if (end.alone and other.discards) or (end.alone and not other.alone):
                return end
        for end, other in ((first, second), (second, first)):
            if end.good and not other.good:
                return end
        if first.crashed is not second.crashed:
            return second if first.crashed else first  # by the activity log of the one that crashed
        return None

    @staticmethod
    def _has_all(end: End, other: End) -> bool:
        return all(includes(head, other.heads[volume]) for volume, head in end.heads.items())

    def _sync_from(self, source: End) -> None:
        target = self.peer(source.node)
        if not self._has_all(source, target) and not target.discards:
            self._parted(self, f"the resynchronisation of {target.node} overwrites what is only there")
        target.disks = dict.fromkeys(target.disks, DiskState.INCONSISTENT)
        self.syncing = target.node
        self.differing.clear()
        self._syncs += 1

        def done() -> None:
            target.heads = dict(source.heads)
            target.disks = dict.fromkeys(target.disks, DiskState.UP_TO_DATE)
            target.generation, target.earlier = source.generation, source.earlier
            source.alone = target.alone = False
            source.crashed = target.crashed = False
            source.discards = target.discards = False
            self.syncing = None
            self._tell()

        self._unless_noticed(self._pace.resync_s, done)

    def _unless_noticed(self, seconds: float, done: Callable[[], None]) -> None:
        """``done`` in so many seconds: not if the kernels notice a cut; one that is mended sooner only delays it."""
        number = self._syncs

        def due() -> None:
            if number != self._syncs or not self.connected:
                return
            if not self._linked():
                self._timeline.after(self._pace.notice_s, due)
                return
            done()

        self._timeline.after(seconds, due)

    def _stand_alone(self, why: str) -> None:
        self.apart = why
        for end in self.ends.values():
            end.state = ConnectionState.STANDALONE
        self._tell()

    def _tell(self) -> None:
        for end in self.ends.values():
            end.seen = None
        self._changed(self)
