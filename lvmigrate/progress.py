"""How far a move has come, as values. Text is made from them at the edges."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProgress:
    """One look at libvirt's job statistics. Sizes in bytes, rates in bytes per second, times in seconds.

    ``percent`` is computed from what *remains*, never falls during one job, and stays at 99 at most until the job has
    ended (processed / total passes 100 as soon as the guest dirties a page twice).
    """

    elapsed_s: float
    total: int
    remaining: int
    processed: int
    rate: int
    dirty_rate: int
    #: The pass over the guest's memory that this job is in: 1 is the first, 0 before it.
    iteration: int
    #: What QEMU expects now; the real one is in the report.
    expected_downtime_s: float
    percent: float
    #: How much auto-converge slows the guest's CPUs down.
    throttle_percent: int = 0
    #: Pages that the guest has waited for since it goes on at the target (post-copy).
    postcopy_requests: int = 0
    #: Bytes of the guest's memory that have been gone through, in whatever form they were sent; 0: not told.
    passed: int = 0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the rest is sent at the present rate, ``None`` while that cannot be said."""
        gain = self.rate - self.dirty_rate
        return self.remaining / gain if gain > 0 else None


class Stall(enum.Enum):
    """Why a resynchronisation does not get on. The value is a clause."""

    NOT_CONNECTED = "the nodes are not connected"
    NO_DISK = "one end has no disk that could be written"
    OTHER_FIRST = "another resynchronisation goes first"
    PAUSED = "it is paused"
    CONGESTED = "the connection is congested"
    UNKNOWN = "DRBD gives no reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSync:
    """One volume that is not in step, as both ends tell it."""

    resource: str
    volume: int
    #: KiB that still differ; ``None``: neither end says so.
    out_of_sync_kib: int | None
    #: Percent of this resynchronisation, where the module says so (DRBD 9).
    percent: float | None
    #: What replication is at each node that answered, such as ``SyncSource``; ``-``: there is none.
    states: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress:
    """How far the resynchronisation of a guest's volumes is."""

    #: KiB that still differ, over all volumes.
    out_of_sync_kib: int
    #: 0 to 100 over all volumes, as far as known.
    percent: float | None
    #: What is being waited for, in words; empty when everything is in step.
    waiting_for: tuple[str, ...]
    #: KiB a second, over the last half minute at most; ``None`` while that cannot be said.
    rate_kib_s: float | None = None
    #: Seconds until everything is in step at that rate.
    eta_s: float | None = None
    #: Every volume that is not in step.
    volumes: tuple[VolumeSync, ...] = ()
    #: Seconds without any progress, and why, as far as DRBD tells; ``None`` while it gets on.
    stalled_s: float = 0.0
    stall: Stall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyProgress:
    """How far the online verify of a guest's volumes is."""

    #: Of the volume that is least far, where the module says so (DRBD 9).
    percent: float | None
    #: KiB that were found to differ, over all volumes, as far as the module says so.
    out_of_sync_kib: int
    #: The volumes that are not at their end, as ``RESOURCE/NUMBER``.
    volumes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """What a move is doing: sent at each change and at each look at the statistics."""

    instance: str
    source: str
    target: str
    #: The name of the step, as in the plan.
    step: str
    #: 1 for the first.
    number: int
    steps: int
    sentence: str
    #: Seconds since the move began.
    elapsed_s: float
    memory: MemoryProgress | None = None
    sync: SyncProgress | None = None
    verify: VerifyProgress | None = None
