"""What must never happen, noted at the moment at which it happens, with the name of who did it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Breach(enum.Enum):
    """Which promise was broken."""

    TWO_RUNNING = "two running copies"
    STALE = "a copy runs on a disk that lacks its writes"
    FOREIGN = "a copy runs on a disk with writes that are not its own"
    LOST_WRITE = "an acknowledged write is on no disk any more"
    LOST_GUEST = "the only copy of a running guest was ended"
    LOST_DEFINITION = "the last definition of a guest was removed"
    LAW = "an act that a law forbids"
    SPLIT = "copies of a disk have parted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One breach. ``str()`` is a line for people."""

    breach: Breach
    at_s: float
    #: Who did it: ``controller c1``, ``guard on node2``, ``libvirt on node1``, ``node1's boot``, ``operator``.
    by: str
    #: The guest, or the resource.
    of: str
    words: str

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s, {self.by}: {self.breach.value}: {self.words}"
