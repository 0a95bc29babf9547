"""How long a copy of memory will take, before it begins: from what the guest dirties and what the link carries. Pure.

The model is that of pre-copy: each pass sends what was dirtied during the one before, so the passes shrink by dirty
rate / link speed, until what is left goes over within the downtime limit.  A guest that dirties as fast as the link
carries never gets there.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lvmigrate.convergence import FORCE, GENTLE, POST_COPY

#: What a hand-over takes beside the last pass: the target's CPUs are started only once the source is seen gone.
_SWITCH_S: Final = 0.2
#: Setting up the connection and the target's QEMU.
_SETUP_S: Final = 0.5
#: Above this share of the link the passes shrink so slowly that noise decides.
_DOUBTFUL: Final = 0.8
_MOST_PASSES: Final = 200
#: Of what is dirtied during the first pass, which goes through all memory in order, only what lies behind it has to be
#: sent again: QEMU clears a page's dirty bit when it sends the page (migration_bitmap_clear_dirty in migration/ram.c).
_BEHIND: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Times in seconds, rates in bytes per second."""

    #: Of memory that is sent in the first pass.
    memory_bytes: int
    dirty_rate: int
    link_rate: int
    #: Where the link's speed comes from, in words.
    link_from: str
    #: Until the guest runs on the target; ``None``: it never gets there without help.
    seconds: float | None
    downtime_s: float | None
    passes: int | None
    #: The name of the policy to choose.
    advised: str
    why: str

    def error_percent(self, seconds: float) -> float | None:
        """By how many percent of the outcome the forecast was wrong; ``None``: it told no time."""
        return None if self.seconds is None or seconds <= 0 else 100.0 * abs(self.seconds - seconds) / seconds


def forecast(
    *, memory_bytes: int, dirty_rate: int, link_rate: int, link_from: str, downtime_limit_s: float
) -> Forecast:
    """What is to be expected. ``link_rate``: above 0."""
    left, seconds, passes = float(memory_bytes), _SETUP_S, 1
    share = dirty_rate / link_rate
    while left > link_rate * downtime_limit_s and passes < _MOST_PASSES:
        took = left / link_rate
        seconds += took
        # A guest cannot dirty more than all of it.
        left = min(float(memory_bytes), dirty_rate * took * (_BEHIND if passes == 1 else 1))
        passes += 1
        if share >= 1 and left >= memory_bytes:
            break
    ends = left <= link_rate * downtime_limit_s
    downtime_s = left / link_rate + _SWITCH_S
    if not ends:
        advised, why = POST_COPY.name, "it dirties memory as fast as it can be sent"
        if share < 1:
            advised, why = FORCE.name, "the passes hardly shrink"
    elif share > _DOUBTFUL:
        advised, why = FORCE.name, f"it dirties {100 * share:.0f} % of what the link carries"
    else:
        advised, why = GENTLE.name, f"it dirties {100 * share:.0f} % of what the link carries"
    return Forecast(
        memory_bytes=memory_bytes,
        dirty_rate=dirty_rate,
        link_rate=link_rate,
        link_from=link_from,
        seconds=seconds + downtime_s if ends else None,
        downtime_s=downtime_s if ends else None,
        passes=passes if ends else None,
        advised=advised,
        why=why,
    )


def learnt(rates: Sequence[int]) -> int | None:
    """The link's speed by what earlier moves have reached, newest first; ``None`` without any.

    The median of the last ten: one that shared the link, or had a limit, does not decide.
    """
    usable = [rate for rate in rates if rate > 0][:10]
    return round(statistics.median(usable)) if usable else None
