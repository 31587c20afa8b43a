"""Forget quality of TOFU: can the truth ratios be told from those of a model that never saw the forget set?

Shapes: N ratios of the model, M of the reference, B bootstrap resamples, P = N + M pooled ratios.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.intervals import Interval, check_confidence

FloatArray = NDArray[np.float64]

# The default method of scipy is exact up to this size.
_LARGEST_EXACT = 10_000
_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class ForgetQuality:
    """Hold a two-sample Kolmogorov-Smirnov test between the truth ratios of two models.

    A large p-value is absence of evidence, not evidence of forgetting, and is bounded below by the number of
    questions; the distance D with its interval says how far apart the models are.
    """

    p_value: float
    distance: float
    """D, the largest gap between the two distribution functions."""
    interval: Interval | None
    """Bootstrap interval of D; None if no generator was given."""
    method: str
    """`exact` or `asymptotic`: how the p-value was computed."""


def forget_quality(
    ratios: ArrayLike,
    reference_ratios: ArrayLike,
    *,
    generator: np.random.Generator | None = None,
    paired: bool = False,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> ForgetQuality:
    """Compare the truth ratios of a model with those of the retrained reference (Maini et al. 2024).

    Args:
        ratios: (N,) truth ratios of the model on the forget questions.
        reference_ratios: (M,) truth ratios of the model trained without them.
        generator: source of the resamples; without it no interval is computed.
        paired: entry i of both lists belongs to the same question, so both are resampled together.
        num_resamples: number of bootstrap resamples.
        confidence: coverage of the interval.

    Raises:
        DataError: an empty list, or `paired` with different lengths.
        NumericalError: a ratio is not a number.
        UsageError: no resamples, or an impossible confidence.
    """
    first_N, second_M = _sample(ratios, "model"), _sample(reference_ratios, "reference")
    check_confidence(confidence)
    if num_resamples < 1:
        raise UsageError(f"num_resamples must be at least 1, got {num_resamples}.")
    if paired and first_N.size != second_M.size:
        raise DataError(
            f"paired truth ratios need equally many questions, got {first_N.size} and {second_M.size}."
        )
    p_value, distance, method = _test(first_N, second_M)
    interval = None
    if generator is not None:
        gaps_B = _resampled_gaps(first_N, second_M, generator, paired, num_resamples)
        margin = float(np.quantile(gaps_B, confidence))
        interval = Interval(max(0.0, distance - margin), min(1.0, distance + margin))
    return ForgetQuality(p_value=p_value, distance=distance, interval=interval, method=method)


def smallest_p_value(num_ratios: int, num_reference_ratios: int) -> float:
    """Return the p-value of two samples without any overlap: no result can fall below it."""
    if min(num_ratios, num_reference_ratios) < 1:
        raise DataError(f"a test needs questions, got {num_ratios} and {num_reference_ratios}.")
    total = num_ratios + num_reference_ratios
    # Two of all orderings separate the samples; by logarithms, because their number exceeds a float.
    orderings = math.lgamma(total + 1) - math.lgamma(num_ratios + 1) - math.lgamma(num_reference_ratios + 1)
    return min(1.0, math.exp(math.log(2.0) - orderings))


def _test(first_N: FloatArray, second_M: FloatArray) -> tuple[float, float, str]:
    """Return the p-value, D and the method of the default two-sided test of scipy."""
    with warnings.catch_warnings(record=True) as caught:
        # scipy says by a warning that the exact computation failed and the asymptotic one replaced it.
        warnings.simplefilter("always", RuntimeWarning)
        result = ks_2samp(first_N, second_M)
    large = max(first_N.size, second_M.size) > _LARGEST_EXACT
    replaced = any("asymp" in str(warning.message) for warning in caught)
    method = "asymptotic" if large or replaced else "exact"
    return float(result.pvalue), float(result.statistic), method


def _resampled_gaps(
    first_N: FloatArray,
    second_M: FloatArray,
    generator: np.random.Generator,
    paired: bool,
    num_resamples: int,
) -> FloatArray:
    """Return (B,) largest deviations of the resampled difference of distribution functions.

    The percentile interval of D itself misses small distances almost always, because resampling adds a
    distance of its own. This deviation bounds the error of D, so the interval covers at least as promised,
    and its lower end is 0 about when the test does not reject.
    """
    pooled_P = np.concatenate([first_N, second_M])
    order_P = np.argsort(pooled_P, kind="stable")
    sorted_P = pooled_P[order_P]
    # The distribution functions are compared after each group of ties, infinite ratios included.
    ends = np.flatnonzero(np.append(sorted_P[1:] != sorted_P[:-1], True))
    rows = max(1, _CHUNK_ELEMENTS // pooled_P.size)
    parts = []
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        first_BN = _weight_errors(first_N.size, size, generator)
        second_BM = first_BN if paired else _weight_errors(second_M.size, size, generator)
        gaps_BP = np.cumsum(np.concatenate([first_BN, -second_BM], axis=1)[:, order_P], axis=1)
        parts.append(np.abs(gaps_BP[:, ends]).max(axis=1))
    return np.concatenate(parts)


def _weight_errors(num_units: int, num_resamples: int, generator: np.random.Generator) -> FloatArray:
    counts = generator.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=num_resamples)
    return np.asarray((counts - 1.0) / num_units)


def _sample(values: ArrayLike, owner: str) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise DataError(
            f"the truth ratios of the {owner} must be a non-empty list, got shape {vector.shape}."
        )
    if np.isnan(vector).any():
        raise NumericalError(f"{int(np.isnan(vector).sum())} truth ratios of the {owner} are not numbers.")
    return vector
