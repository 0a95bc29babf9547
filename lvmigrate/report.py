"""What a move did, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from lvmigrate.convergence import Firing
from lvmigrate.errors import Finding
from lvmigrate.forecast import Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """When a step began and how long it took, in seconds since the move began."""

    name: str
    sentence: str
    begin_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Something seen during the move, in seconds since it began, by the controller's clock."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What DRBD's online verify of one volume came to, after a move. ``str()`` is a clause."""

    resource: str
    volume: int
    #: From its beginning until its end was seen.
    seconds: float = 0.0
    #: KiB that the two copies differ by, as DRBD counts them; ``None``: it did not come to its end.
    out_of_sync_kib: int | None = None
    #: KiB that were not compared, because the guest wrote there just then.
    skipped_kib: int = 0
    #: Why it did not come to its end, or was not begun, as a clause; empty: it did.
    because: str = ""

    def __str__(self) -> str:
        name = f"{self.resource}/{self.volume}"
        if self.because:
            return f"{name} was not compared to the end: {self.because}"
        found = f"differs in {self.out_of_sync_kib} KiB" if self.out_of_sync_kib else "is the same on both nodes"
        return f"{name} {found}" + (f", {self.skipped_kib} KiB were left out" if self.skipped_kib else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupReport:
    """A cleanup that succeeded."""

    instance: str
    uuid: str
    #: Where the guest is; ``None``: it is off everywhere.
    node: str | None
    running: bool
    seconds: float
    #: What was done, in sentences; empty: everything was in order.
    acts: tuple[str, ...]
    warnings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A move that succeeded. Times in seconds, by the controller's monotonic clock."""

    instance: str
    uuid: str
    #: Under which the journal tells more of it; empty: there is none.
    errand: str
    source: str
    target: str
    mode: str
    seconds: float
    #: From the source's CPUs seen stopped until they were seen running on the target.
    downtime_s: float
    #: While both nodes were Primary for at least one of the guest's resources.
    dual_primary_s: float
    #: While two primaries were allowed on at least one of its connections.
    two_primaries_allowed_s: float
    #: Bytes of memory sent, and passes over it.
    memory_bytes: int
    iterations: int
    #: The most that auto-converge slowed the guest's CPUs down.
    throttle_percent: int = 0
    #: Whether the guest went on at the target before all of its memory was there.
    post_copy: bool = False
    #: From the beginning of the copy until the guest was seen running on the target; 0 if it was to stand still.
    copy_s: float = 0.0
    #: The fastest that memory was sent, in bytes per second; 0 where that had a limit.
    peak_rate: int = 0
    #: What was told before the move, if that was asked for.
    forecast: Forecast | None = None
    #: The name of the convergence policy, and every rule of it that fired.
    policy: str = ""
    fired: tuple[Firing, ...] = ()
    #: Why this target, where it was not named.
    target_because: str = ""
    #: By volume, what an online verify after the move came to, if that was asked for; ``seconds`` are without it.
    verified: tuple[Verified, ...] = ()
    running: bool
    steps: tuple[StepRecord, ...]
    timeline: tuple[Moment, ...]
    warnings: tuple[Finding, ...]
