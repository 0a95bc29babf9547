"""What a move is going to do, decided before anything is changed."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lvmigrate.domain import Domain
from lvmigrate.errors import Finding
from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Errand


class Mode(enum.Enum):
    """How the guest's memory travels."""

    #: Pre-copy: the guest runs during the copy.
    LIVE = "live"
    #: Not at all: the guest is shut down, and starts again from its disks.
    FAILOVER = "failover"


class Switch(enum.Enum):
    """Who starts the guest on the target."""

    #: lvmigrate, after it has seen the source's copy gone and replication whole.
    STRICT = "strict"
    #: The target's libvirt, by itself: some tenths of a second sooner, and with less proof.
    FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller may choose. Times in seconds, rates in MiB/s."""

    mode: Mode = Mode.LIVE
    switch: Switch = Switch.STRICT
    #: Whether a dead-man's guard must be armed on both nodes; without one a dead controller leaves what it opened.
    guard: bool = True
    #: The most that the copy of memory may use; ``None``: no limit.
    bandwidth_mib_s: int | None = None
    #: The longest time that the guest may stand still for the last pass.
    downtime_limit_s: float = 0.3
    #: How long to wait until the disks are in step, before the move.
    sync_timeout_s: float = 3600.0
    #: How long a resynchronisation may stand still before the move is given up.
    sync_stall_s: float = 120.0
    #: How long the copy of memory may take before it is aborted.
    copy_timeout_s: float = 3600.0
    #: How often job statistics are read.
    poll_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePlan:
    """One DRBD resource of the guest, and what was set on its connection before."""

    name: str
    volumes: tuple[int, ...]
    #: As found on (source, target).
    options: tuple[ConnectionOptions, ConnectionOptions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the checks learned and everything the move will do."""

    instance: str
    domain: Domain
    source: str
    target: str
    #: Whether the target knew the guest before (an inactive definition): a failed move then leaves it there.
    target_had_definition: bool
    mode: Mode
    resources: tuple[ResourcePlan, ...]
    #: What the token on the nodes says of this move.
    errand: Errand
    #: (name, sentence) of every step, in order.
    steps: tuple[tuple[str, str], ...]
    warnings: tuple[Finding, ...]
