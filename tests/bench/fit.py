"""How something grows: the exponent of a curve, so that a square is seen as one."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]


def exponent(points: Points) -> float:
    """What y grows with x like: 1 is proportional, 2 a square. By least squares of the logarithms.

    What y is without any x makes this smaller: give it the larger of the points only.  Needs two of them, above 0.
    """
    return statistics.linear_regression([math.log(x) for x, _ in points], [math.log(y) for _, y in points]).slope


def steady(points: Points) -> float:
    """As `slope`, whatever single points say: the median of the slopes between every two of them.

    0 where nothing steady is there, and where there are no two points.
    """
    slopes = [(y - v) / (x - u) for (u, v), (x, y) in itertools.combinations(points, 2) if x != u]
    return statistics.median(slopes) if slopes else 0.0


def slope(points: Points) -> float:
    """How much y grows with one more x, by least squares."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
