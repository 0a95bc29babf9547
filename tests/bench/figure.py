"""A figure that was measured, as one line of JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any


def show(name: str, value: float, unit: str, *, goal: float | None, higher: bool, **detail: Any) -> bool:
    """Print it, and say whether the goal holds; one without a goal stands beside another that has one."""
    holds = goal is None or (value >= goal if higher else value <= goal)
    print(
        json.dumps(
            {
                "name": name,
                "value": round(value, 4),
                "unit": unit,
                "goal": goal,
                "holds": holds,
                "better": "higher" if higher else "lower",
                "detail": detail,
            }
        ),
        flush=True,
    )
    return holds


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of the values do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
