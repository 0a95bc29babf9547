"""lvmigrate: moves running guests between KVM hosts whose disks DRBD replicates.

::

    from lvmigrate import Cluster

    with Cluster.open() as cluster:
        print(cluster.migrate("web1", target="node2").downtime_s)

Its promise, in this order: never two running copies; never lost data; never a dual-primary left open; never a guest
left paused; never silent; then fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvmigrate.errors import (
    Code,
    ConfigurationError,
    ExitCode,
    Finding,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    NodeUnreachable,
    OutcomeUnknown,
    Refused,
)

if TYPE_CHECKING:
    from lvmigrate.cluster import Cluster
    from lvmigrate.plan import Mode, Options, Plan, Switch
    from lvmigrate.progress import MemoryProgress, StepProgress, SyncProgress
    from lvmigrate.report import CleanupReport, Report

__all__ = [
    "CleanupReport",
    "Cluster",
    "Code",
    "ConfigurationError",
    "ExitCode",
    "Finding",
    "GuestLost",
    "LeftBehind",
    "LvmigrateError",
    "MemoryProgress",
    "Mode",
    "MoveAborted",
    "MoveFailed",
    "NodeUnreachable",
    "Options",
    "OutcomeUnknown",
    "Plan",
    "Refused",
    "Report",
    "StepProgress",
    "Switch",
    "SyncProgress",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- PEP 562
    """Bring in what is asked for, only then: a command that prints its help needs no values, and no adapters.

    With `Cluster` come libvirt and sh.
    """
    # ruff: noqa: PLC0415 -- that is the point
    if name == "Cluster":
        from lvmigrate.cluster import Cluster

        return Cluster
    if name in ("Mode", "Options", "Plan", "Switch"):
        from lvmigrate import plan

        return getattr(plan, name)
    if name in ("MemoryProgress", "StepProgress", "SyncProgress"):
        from lvmigrate import progress

        return getattr(progress, name)
    if name in ("CleanupReport", "Report"):
        from lvmigrate import report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
