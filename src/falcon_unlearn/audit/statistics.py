"""Statistics of an audit: paired tests, cluster bootstrap, recovery ratios. Pure; numpy and scipy only.

Shapes: Q quantities (one model under one condition each), S seeds, N items, C clusters, R resamples. All
quantities of one table are measured on the same items, so every resample draws the same clusters for all.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.linalg.intervals import Interval, percentile_interval

FloatArray = NDArray[np.float64]
NUM_RESAMPLES = 10_000
SMALLEST_DENOMINATOR = 2.0
"""Standard errors; ratios over less are refused."""
SMALL_DENOMINATOR = 4.0
"""Standard errors; below, Fieller's interval is given instead of the bootstrap's."""
POWER_FACTOR = 2.8
"""Sum of the normal quantiles of .975 and .8."""


@dataclass(frozen=True)
class Ratio:
    """Hold a ratio of two linear combinations of means, or the reason why there is none."""

    value: float | None
    low: float | None
    high: float | None
    difference: float
    """The numerator alone."""
    difference_low: float
    difference_high: float
    note: str = ""


@dataclass(frozen=True)
class McNemar:
    """Hold the exact test of a change on the same items."""

    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class Resampled:
    """Hold means of all quantities, observed (Q) and in every resample (R, Q)."""

    names: tuple[Hashable, ...]
    observed_Q: FloatArray
    replicates_RQ: FloatArray
    num_clusters: int
    confidence: float

    def combination(self, weights: Mapping[Hashable, float]) -> tuple[float, FloatArray]:
        """Return a weighted sum of the means, observed and replicated."""
        vector = np.array([weights.get(name, 0.0) for name in self.names])
        unknown = set(weights) - set(self.names)
        if unknown:
            raise KeyError(f"no quantity {sorted(map(str, unknown))}")
        return float(self.observed_Q @ vector), self.replicates_RQ @ vector

    def difference(self, weights: Mapping[Hashable, float]) -> tuple[float, Interval]:
        """Return a weighted sum of means with its interval, at least as wide as `least_half_width`."""
        value, replicates = self.combination(weights)
        low, high = percentile_interval(replicates, self.confidence)
        width = self.least_half_width * _spread_of(weights)
        return value, Interval(min(low, value - width), max(high, value + width))

    @property
    def least_half_width(self) -> float:
        """Width that remains where no item differs: Wilson's upper limit of zero in C clusters.

        A bootstrap of equal values has no width, which would call ten equal items proof of equality.
        """
        squared = NormalDist().inv_cdf(0.5 + self.confidence / 2) ** 2
        return squared / (self.num_clusters + squared)

    def ratio(self, numerator: Mapping[Hashable, float], denominator: Mapping[Hashable, float]) -> Ratio:
        """Return numerator over denominator, never clipped.

        Refused where the denominator is below two standard errors. Below four, the interval is Fieller's,
        with the bootstrap's covariances; else the bootstrap's percentiles.
        """
        value, (low, high) = self.difference(numerator)
        _, above = self.combination(numerator)
        bottom, below = self.combination(denominator)
        error = float(below.std(ddof=1))
        if bottom < SMALLEST_DENOMINATOR * error or bottom <= 0.0:
            note = f"not defined: the denominator is {bottom:.3f} with a standard error of {error:.3f}"
            return Ratio(None, None, None, value, low, high, note)
        least = self.least_half_width * _spread_of(numerator) / bottom
        share = value / bottom
        note = ""
        if bottom < SMALL_DENOMINATOR * error:
            interval = fieller_interval(value, bottom, np.cov(above, below), self.confidence)
            note = "Fieller's interval: the denominator is small"
        else:
            interval = percentile_interval(above / np.maximum(below, 1e-3 * bottom), self.confidence)
        return Ratio(
            share, min(interval.low, share - least), max(interval.high, share + least), value, low, high, note
        )


def resample(
    tables: Mapping[Hashable, ArrayLike],
    clusters: Sequence[Hashable],
    *,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> Resampled:
    """Draw clusters with replacement, the same for all quantities, and seeds in an outer loop.

    Args:
        tables: Values (S, N) or (N) of each quantity. Quantities with equally many seeds share their draws.
        clusters: Cluster of each of the N items.
        generator: Source of the draws.
        num_resamples: R.
        confidence: Of the intervals derived from the result.

    Raises:
        DataError: No items, or tables of different length.
    """
    labels, codes_N = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    num_items, num_clusters = len(codes_N), len(labels)
    if num_items == 0:
        raise DataError("there are no items to compare")
    sizes_C = np.bincount(codes_N, minlength=num_clusters).astype(np.float64)
    counts_RC = generator.multinomial(
        num_clusters, np.full(num_clusters, 1.0 / num_clusters), size=num_resamples
    ).astype(np.float64)
    totals_R = counts_RC @ sizes_C
    draws: dict[int, FloatArray] = {}
    observed, columns = [], []
    for name, table in tables.items():
        values_SN = np.atleast_2d(np.asarray(table, dtype=np.float64))
        if values_SN.shape[1] != num_items:
            raise DataError(f"{name}: {values_SN.shape[1]} values for {num_items} items")
        sums_SC = np.stack([np.bincount(codes_N, weights=row, minlength=num_clusters) for row in values_SN])
        means_RS = (counts_RC @ sums_SC.T) / totals_R[:, None]
        weights_RS = _seed_weights(len(values_SN), num_resamples, generator, draws)
        observed.append(values_SN.mean())
        columns.append((means_RS * weights_RS).sum(axis=1))
    return Resampled(tuple(tables), np.array(observed), np.stack(columns, axis=1), num_clusters, confidence)


def _seed_weights(
    num_seeds: int, num_resamples: int, generator: np.random.Generator, draws: dict[int, FloatArray]
) -> FloatArray:
    if num_seeds not in draws:
        counts = generator.multinomial(num_seeds, np.full(num_seeds, 1.0 / num_seeds), size=num_resamples)
        draws[num_seeds] = counts / num_seeds
    return draws[num_seeds]


def _spread_of(weights: Mapping[Hashable, float]) -> float:
    """Return the largest weight: the change of the sum when one quantity errs."""
    return max((abs(weight) for weight in weights.values()), default=0.0)


def fieller_interval(
    numerator: float, denominator: float, covariance: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Return Fieller's interval of a ratio of two normal means; infinite where it is unbounded.

    Args:
        numerator: Estimate above the line.
        denominator: Estimate below the line.
        covariance: Their covariance matrix, 2 x 2.
        confidence: Level.
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    squared = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    a = denominator**2 - squared * matrix[1, 1]
    b = numerator * denominator - squared * matrix[0, 1]
    c = numerator**2 - squared * matrix[0, 0]
    discriminant = b * b - a * c
    if a <= 0.0 or discriminant < 0.0:
        return Interval(-math.inf, math.inf)
    root = math.sqrt(discriminant)
    return Interval((b - root) / a, (b + root) / a)


def exact_mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """Test a change of 0/1 values on the same items; values between count as 1 from one half.

    Raises:
        DataError: Different lengths.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(before, dtype=float) >= 0.5, np.asarray(after, dtype=float) >= 0.5
    if first.shape != second.shape:
        raise DataError(f"McNemar's test needs pairs, got {first.size} and {second.size} values")
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    if gained + lost == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(gained, lost, float(binomtest(gained, gained + lost, 0.5).pvalue))


def sign_flip_p_value(
    differences: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> float:
    """Return the one-sided p-value that the differences are larger than 0, flipping whole clusters.

    Valid where, without an effect, the difference of a cluster is as likely positive as negative. All flips
    are counted where there are at most `num_resamples` of them, else a random sample.
    """
    values = np.asarray(differences, dtype=np.float64)
    _, codes = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    sums = np.bincount(codes, weights=values)
    sums = sums[np.abs(sums) > 1e-12]
    total = float(sums.sum())
    if sums.size == 0 or total <= 0.0:
        return 1.0
    if 2**sums.size <= num_resamples:
        bits = (np.arange(2**sums.size)[:, None] >> np.arange(sums.size)) & 1
        flipped = (1.0 - 2.0 * bits) @ sums
        return float((flipped >= total - 1e-9).mean())
    signs = generator.integers(0, 2, size=(num_resamples, sums.size)) * 2.0 - 1.0
    return float((1 + (signs @ sums >= total - 1e-9).sum()) / (num_resamples + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable_change(discordant_share: float, num_items: int) -> float:
    """Return the smallest paired change of a share found with 80 % power at the 5 % level.

    Args:
        discordant_share: Share of items whose values differ between both measurements.
        num_items: Number of independent items (clusters, where they are larger than one item).
    """
    if num_items < 1 or not 0.0 <= discordant_share <= 1.0:
        raise UsageError(f"got {num_items} items with a discordant share of {discordant_share}")
    return POWER_FACTOR * math.sqrt(discordant_share / num_items)


RECOVERED: dict[str, tuple[dict[Hashable, float], dict[Hashable, float]]] = {
    "recovered": (
        {"unlearned^a": 1.0, "unlearned": -1.0},
        {"original": 1.0, "unlearned": -1.0},
    ),
    "net_recovered": (
        {"unlearned^a": 1.0, "unlearned": -1.0, "null^a": -1.0, "null": 1.0},
        {"original": 1.0, "null": -1.0},
    ),
    "knowledge_left": (
        {"unlearned^a": 1.0, "null^a": -1.0},
        {"original^a": 1.0, "null^a": -1.0},
    ),
    "reachable": (
        {"unlearned^a": 1.0, "null^a": -1.0},
        {"original": 1.0, "null": -1.0},
    ),
    "knowledge_left_unattacked": (
        {"unlearned": 1.0, "null": -1.0},
        {"original": 1.0, "null": -1.0},
    ),
    "removed_share": (
        {"original": 1.0, "unlearned": -1.0},
        {"original": 1.0, "null": -1.0},
    ),
}
"""Numerator and denominator of each recovery number, over means named by model; ^a: under the attack."""
