"""Guests, and the copies of them that exist: each remembers what it has written, and its memory travels with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lvmigrate.domain import DomainDisk, DomainState
from lvmigrate.simulator.drbd import Hold, Replicated
from lvmigrate.simulator.records import Record
from lvmigrate.simulator.timeline import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk of a guest: a volume of a resource, under one path on every node."""

    target: str
    path: str
    resource: Replicated
    volume: int

    @property
    def described(self) -> DomainDisk:
        """As libvirt describes it."""
        return DomainDisk(
            target=self.target, source=self.path, kind="block", device="disk", read_only=False, cache="none"
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Guest:
    """A guest, wherever its copies are."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    memory_kib: int
    #: Where it was when the world began, and whether its CPUs ran (or have run since it was started anew).
    home: str
    ran: bool
    #: What was defined in the beginning: persistent at home, with or without autostart.
    persistent: bool
    autostart: bool
    #: The nodes that had a definition in the beginning.
    defined_on: frozenset[str]
    #: Whether a move of it leaves a definition where it comes from.
    keeps_definition: bool = False
    #: What its balloon leaves it; ``None``: all.
    current_kib: int | None = None
    #: How long a copy of its memory takes; ``None``: as in all of the world.
    copy_s: float | None = None
    #: The newest acknowledged write to each disk.
    latest: dict[Disk, Record] = field(default_factory=dict)
    #: Somebody other than lvmigrate paused it.
    paused_by_operator: bool = False
    #: The node from whose old disk it may be started, because somebody has given up what that lacks.
    old_copy_on: str | None = None
    #: It was.
    given_up: bool = False
    #: What ended its last copy, if that was a fault or a person.
    ended_by: str = ""
    ended_at_s: float = 0.0
    #: When which copy was lost to a fault.
    lost: list[tuple[float, Copy]] = field(default_factory=list)

    @property
    def resources(self) -> tuple[Replicated, ...]:
        """Its resources, each once."""
        return tuple(dict.fromkeys(disk.resource for disk in self.disks))


@dataclass(slots=True, kw_only=True, eq=False)
class Copy:
    """One process with a guest's memory, on one node."""

    guest: Guest
    node: str
    state: DomainState
    #: Why it is in that state, in the words of ``hv``.
    reason: str
    #: By disk: what it has written, or found there.
    memory: dict[Disk, Record]
    #: libvirt is receiving it.
    incoming: bool = False
    #: It stands, and another copy has run since: its memory is no longer the guest's.
    older: bool = False
    holds: list[tuple[Replicated, Hold]] = field(default_factory=list)
    #: Its next write, and how long after the last one.
    next_write: Event | None = None
    write_s: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether its CPUs run."""
        return self.state is DomainState.RUNNING


@dataclass(slots=True, kw_only=True)
class Definition:
    """A guest's definition on one node."""

    guest: Guest
    autostart: bool
    #: Why it is off here, in the words of ``hv``.
    off: str = "unknown"
    #: The tombstone.
    left_on: str | None = None
