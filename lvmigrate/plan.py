"""What a move is going to do, decided before anything is changed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from lvmigrate import convergence
from lvmigrate.convergence import Policy
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Finding
from lvmigrate.forecast import Forecast
from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Errand


class Mode(enum.Enum):
    """How the guest's memory travels."""

    #: Pre-copy: the guest runs during the copy.
    LIVE = "live"
    #: Not at all: the guest is shut down, and starts again from its disks.
    FAILOVER = "failover"
    #: The guest stands still during the copy, and runs again at the end.
    NON_LIVE = "non-live"
    #: After one pass the guest goes on at the target and fetches what is missing.  It cannot be aborted from then on,
    #: and needs both nodes and the link until all is there.
    POST_COPY = "post-copy"


class Switch(enum.Enum):
    """Who starts the guest on the target."""

    #: lvmigrate, after it has seen the source's copy gone and replication whole.
    STRICT = "strict"
    #: The target's libvirt, by itself: some tenths of a second sooner, and with less proof.
    FAST = "fast"


class Compression(enum.Enum):
    """How memory is compressed on its way."""

    #: Only the difference to what was sent before: for guests that dirty the same pages again and again.
    XBZRLE = "xbzrle"
    #: By several threads; QEMU has it until 9.0.
    MT = "mt"
    #: With parallel connections only.
    ZLIB = "zlib"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller may choose. Times in seconds, rates in MiB/s."""

    mode: Mode = Mode.LIVE
    switch: Switch = Switch.STRICT
    #: Whether a dead-man's guard must be armed on both nodes; without one a dead controller leaves what it opened.
    guard: bool = True
    #: The most that the copy of memory may use; ``None``: no limit.
    bandwidth_mib_s: int | None = None
    #: The same once the guest runs at the target (post-copy); what the guest waits for is sent without a limit.
    postcopy_bandwidth_mib_s: int | None = None
    #: The longest time that the guest may stand still for the last pass; ``policy`` may raise it.
    downtime_limit_s: float = 0.3
    #: What is done about a copy that does not come to its end.
    policy: Policy = convergence.GENTLE
    #: Slow the guest down when it dirties memory faster than it is sent (``policy`` may ask for it as well).
    auto_converge: bool = False
    #: By how many percent at first, and by how many more each time; ``None``: as QEMU does by default.
    throttle_initial: int | None = None
    throttle_increment: int | None = None
    compression: Compression | None = None
    #: `Compression.MT` and zlib: 0 to 9; zstd: 0 to 20.
    compression_level: int | None = None
    #: Send memory over so many connections side by side; ``None``: over one, in order.
    connections: int | None = None
    #: Encrypt memory on its way, with the certificates that QEMU on both nodes is configured with.
    tls: bool = False
    #: How long to wait until the disks are in step, before the move.
    sync_timeout_s: float = 3600.0
    #: How long a resynchronisation may stand still before the move is given up.
    sync_stall_s: float = 120.0
    #: How long the copy of memory may take before it is aborted.
    copy_timeout_s: float = 3600.0
    #: How often job statistics are read; they are read also whenever a pass over the memory has begun.
    poll_s: float = 0.5
    #: How long a post-copy that broke is tried to be mended, after the last memory has arrived, before both ends are
    #: held as they are.
    recovery_timeout_s: float = 600.0
    #: Measure the guest before, and tell how long the copy will take; so many seconds, 0: no forecast.
    forecast_s: int = 0
    #: Move to an older libvirt or QEMU.
    ignore_hvversions: bool = False
    #: Where the guest cannot move while it runs, shut it down and start it on the target, if that can be done.
    allow_failover: bool = False
    #: Do that in any case: this guest never moves while it runs.
    always_failover: bool = False
    #: How long it may take to shut down then.
    shutdown_timeout_s: float = 120.0
    #: Leave its definition, without autostart, on the node that it leaves: for a failover when the other one is dead.
    keep_definition: bool = False
    #: Afterwards have DRBD compare both copies of its disks, and wait for what that comes to.
    verify_disks: bool = False
    #: Move it to a node whose policy does not take it.
    ignore_ipolicy: bool = False
    #: The program that chooses the target where none is named: a path, or its name among Ganeti's.
    iallocator: str | None = None
    #: Let the guest give memory back where the target has too little for what it has now; it gets it back afterwards.
    allow_runtime_changes: bool = False
    #: What it keeps in any case; ``None``: half of what it has.
    minimum_memory_mib: int | None = None

    @property
    def throttles(self) -> bool:
        """Whether QEMU may slow the guest down."""
        return self.mode is not Mode.NON_LIVE and (self.auto_converge or self.policy.auto_converge)

    @property
    def may_post_copy(self) -> bool:
        """Whether the copy is begun such that it can be switched to post-copy."""
        return self.mode is Mode.POST_COPY or (self.mode is Mode.LIVE and self.policy.may_post_copy)

    def may_post_copy_of(self, domain: Domain) -> bool:
        """Whether that holds for the guest as it is: one that stands still has nothing to go on with."""
        return self.may_post_copy and domain.state is DomainState.RUNNING

    @property
    def rules(self) -> Policy:
        """The policy in force."""
        if self.mode is Mode.NON_LIVE:
            return convergence.PATIENT  # a guest that stands still dirties nothing
        return convergence.POST_COPY_SOON if self.mode is Mode.POST_COPY else self.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePlan:
    """One DRBD resource of the guest, and what was set on its connection before."""

    name: str
    volumes: tuple[int, ...]
    #: As found on (source, target).
    options: tuple[ConnectionOptions, ConnectionOptions]
    #: The target's copy is old, and made Primary by force: what it lacks was given up.
    forced: bool = False
    #: The target's QEMU opens the disks for reading until the guest arrives: that promotes nothing, and DRBD 9 refuses
    #: it beside a Primary.
    reads_first: bool = False
    #: The minor numbers of all of the resource's devices, and the module's version, on (source, target).
    minors: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    modules: tuple[str, str] = ("", "")

    @property
    def promotes(self) -> bool:
        """Whether the target is promoted by a command, before the memory travels: opening the disk would not do it."""
        return self.reads_first or not self.options[1].auto_promote


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
    #: By node: the id of the token of an earlier move that ran out, and of which nothing is left to finish.
    tokens: Mapping[str, str] = field(default_factory=dict)
    #: (name, sentence) of every step, in order.
    steps: tuple[tuple[str, str], ...]
    #: What the guest is to shrink to before the move; ``None``: it fits as it is.
    shrunk_kib: int | None = None
    #: If one was asked for and could be had.
    forecast: Forecast | None = None
    #: Why this target, where it was not named; empty: it was, or there is no other.
    target_because: str = ""
    warnings: tuple[Finding, ...]
