"""Confidence intervals: Wilson or Clopper-Pearson for shares, percentile bootstrap for the rest.

Only numpy, but for the exact limit: evaluation and the report use this without torch. All randomness comes
from the generator given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, NumericalError, UsageError

FloatArray = NDArray[np.float64]
Statistic = Callable[..., Any]

_CHUNK_ELEMENTS = 4_000_000


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of the estimate."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Tell whether `value` lies inside, ends included."""
        return self.low <= value <= self.high


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def check_confidence(confidence: float) -> None:
    """Raise `UsageError` unless `confidence` lies strictly between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence must lie strictly between 0 and 1, got {confidence}.")


def wilson_interval(num_successes: int, num_trials: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval (no continuity correction) of a share.

    Raises:
        DataError: no trials, or successes outside 0..num_trials.
    """
    check_confidence(confidence)
    _check_share(num_successes, num_trials)
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_successes / num_trials
    squared = quantile * quantile
    centre = (share + squared / (2 * num_trials)) / (1 + squared / num_trials)
    spread = math.sqrt(share * (1 - share) / num_trials + squared / (4 * num_trials * num_trials))
    half_width = quantile * spread / (1 + squared / num_trials)
    # At the two ends the formula gives exactly 0 or 1, rounding does not.
    low = 0.0 if num_successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if num_successes == num_trials else min(1.0, centre + half_width)
    return Interval(low, high)


def clopper_pearson_upper(num_successes: int, num_trials: int, confidence: float = 0.95) -> float:
    """Return the one-sided exact upper limit of a share; without successes it is 1 - alpha^(1/n).

    Raises:
        DataError: no trials, or successes outside 0..num_trials.
    """
    from scipy.special import betaincinv

    check_confidence(confidence)
    _check_share(num_successes, num_trials)
    if num_successes == num_trials:
        return 1.0
    return float(betaincinv(num_successes + 1, num_trials - num_successes, confidence))


def _check_share(num_successes: int, num_trials: int) -> None:
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise DataError(
            f"a share needs 0 <= successes <= trials and trials >= 1, got {num_successes} of {num_trials}."
        )


def percentile_interval(replicates: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the central share `confidence` of bootstrap or permutation replicates."""
    check_confidence(confidence)
    values = _finite_vector(replicates, "replicates")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(
    values: ArrayLike,
    *,
    generator: np.random.Generator,
    statistic: Statistic = np.mean,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return a statistic of independent values with its percentile bootstrap interval.

    Args:
        values: one value per independent unit (for example per question or per text).
        generator: source of the resamples; the same seed gives the same interval.
        statistic: called as `statistic(array, axis=-1)`.
        num_resamples: resamples drawn with replacement.
        confidence: share of replicates inside the interval.

    Raises:
        DataError: no values.
        NumericalError: a value is not finite.
    """
    sample = _finite_vector(values, "values")
    replicates = _resample(sample, sample.size, generator, statistic, num_resamples)
    low, high = percentile_interval(replicates, confidence)
    return Estimate(float(statistic(sample, axis=-1)), low, high)


def paired_bootstrap_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    generator: np.random.Generator,
    statistic: Statistic = np.mean,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return `statistic(after) - statistic(before)` with an interval that resamples units, not measurements.

    Unit i has been measured twice, as `before[i]` and `after[i]`; both are drawn together, so the variation
    between units that both share cancels.

    Raises:
        DataError: no values, or different lengths.
        NumericalError: a value is not finite.
    """
    first, second = _finite_vector(before, "before"), _finite_vector(after, "after")
    if first.size != second.size:
        raise DataError(
            f"a paired difference needs equally many values, got {first.size} before and {second.size} after."
        )

    def difference(stacked: FloatArray, axis: int) -> Any:
        return statistic(stacked[1], axis=axis) - statistic(stacked[0], axis=axis)

    stacked = np.stack([first, second])
    replicates = _resample(stacked, first.size, generator, difference, num_resamples)
    low, high = percentile_interval(replicates, confidence)
    return Estimate(float(difference(stacked, axis=-1)), low, high)


def _resample(
    sample: FloatArray,
    num_units: int,
    generator: np.random.Generator,
    statistic: Statistic,
    num_resamples: int,
) -> FloatArray:
    if num_resamples < 1:
        raise UsageError(f"num_resamples must be at least 1, got {num_resamples}.")
    rows = max(1, _CHUNK_ELEMENTS // num_units)
    parts = []
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), num_units)
        indices = generator.integers(0, num_units, size=size)
        parts.append(np.asarray(statistic(sample[..., indices], axis=-1), dtype=np.float64))
    return np.concatenate(parts)


def _finite_vector(values: ArrayLike, name: str) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise DataError(f"{name} must be a non-empty list of numbers, got shape {vector.shape}.")
    if not np.isfinite(vector).all():
        raise NumericalError(f"{name} hold {int((~np.isfinite(vector)).sum())} non-finite entries.")
    return vector
