"""libvirt's job statistics as progress (virDomainGetJobStats; virsh's names are in libvirt-domain.h)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lvmigrate.progress import MemoryProgress

_CAP: Final = 99.0


def progress_of(
    statistics: Mapping[str, Any], *, before: MemoryProgress | None, passes_before: int = 0
) -> MemoryProgress | None:
    """The progress in one set of statistics, or ``None`` while the copy has not begun (``memory_total`` is still 0).

    ``before``: what was said last of the same job; the percent never falls below it.  ``passes_before``: those of
    earlier jobs that were cancelled, which QEMU's counter may include.
    """
    total = int(statistics.get("memory_total", 0))
    if total <= 0:
        return None
    remaining = int(statistics.get("memory_remaining", 0))
    sent = 100.0 * (1.0 - min(remaining, total) / total)
    floor = 0.0 if before is None else before.percent
    page = int(statistics.get("memory_page_size", 4096))
    pages = sum(int(statistics.get(key, 0)) for key in ("memory_normal", "memory_constant", "compression_pages"))
    return MemoryProgress(
        elapsed_s=int(statistics.get("time_elapsed", 0)) / 1000,
        total=total,
        remaining=remaining,
        processed=int(statistics.get("memory_processed", 0)),
        rate=int(statistics.get("memory_bps", 0)),
        dirty_rate=int(statistics.get("memory_dirty_rate", 0)) * page,
        iteration=max(0, int(statistics.get("memory_iteration", 0)) - passes_before),
        expected_downtime_s=int(statistics.get("downtime", 0)) / 1000,
        percent=min(_CAP, max(floor, sent)),
        throttle_percent=int(statistics.get("auto_converge_throttle", 0)),
        postcopy_requests=int(statistics.get("memory_postcopy_requests", 0)),
        passed=pages * page,
    )
