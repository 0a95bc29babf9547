"""What a node says of itself when it is examined (`lvmigrate.doctor`), beside what a move asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One node's word. Versions as the programs print them, empty where there is none."""

    node: str
    #: The node's wall clock less the controller's monotonic one, in seconds, and how far off that may be at most: two
    #: nodes' clocks are as far apart as these are.
    clock_s: float
    clock_error_s: float
    #: DRBD's module and drbd-utils.
    module: str = ""
    utils: str = ""
    #: How many sessions sshd lets one connection have; ``None``: it does not tell.
    max_sessions: int | None = None
    #: Those of the programs asked for that are not there.
    lacking: frozenset[str] = frozenset()
    #: By libvirt's services that are in use: whether they start after DRBD; empty where systemd does not say.
    after_drbd: Mapping[str, bool] = field(default_factory=dict)
