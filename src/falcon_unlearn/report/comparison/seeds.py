"""Put one number of several seeds together: mean, range and an interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

LARGEST = 1e100
"""Beyond this a number is a fault of the measurement, and sums and squares would overflow."""


class Spread(NamedTuple):
    """Summarise values of equal standing; the interval is NaN for a single one."""

    mean: float
    low: float
    high: float
    minimum: float
    maximum: float


def usable(value: float | None) -> float | None:
    """Return a number that can be averaged and drawn, else None."""
    return value if value is not None and math.isfinite(value) and abs(value) <= LARGEST else None


def spread(values: Sequence[float], confidence: float) -> Spread:
    """Return mean, Student's t interval of the mean, minimum and maximum.

    Args:
        values: one per seed, at least one, all `usable`.
        confidence: of the interval, strictly between 0 and 1.
    """
    number = len(values)
    mean = min(max(math.fsum(values) / number, min(values)), max(values))
    low = high = math.nan
    if number > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
        half = float(stdtrit(number - 1, 0.5 + confidence / 2)) * math.sqrt(variance / number)
        low, high = mean - half, mean + half
    return Spread(mean, low, high, min(values), max(values))
