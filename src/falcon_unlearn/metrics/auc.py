"""Area under the ROC curve of a membership score, with its uncertainty.

Shapes: N forget texts, M holdout texts, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import rankdata

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.linalg.intervals import Estimate, Interval, check_confidence, percentile_interval
from falcon_unlearn.metrics.membership import privleak

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]

_END = 1e-12


def membership_auc(forget_scores: ArrayLike, holdout_scores: ArrayLike) -> float:
    """Return P(holdout score > forget score), ties counted half; 1 means that members are always found.

    Raises:
        DataError: a side without scores.
        NumericalError: a score is not a number.
    """
    forget_N, holdout_M = _scores(forget_scores, "forget"), _scores(holdout_scores, "holdout")
    ranks = rankdata(np.concatenate([holdout_M, forget_N]))
    wins = ranks[: holdout_M.size].sum() - holdout_M.size * (holdout_M.size + 1) / 2
    return float(wins / (holdout_M.size * forget_N.size))


def resampled_aucs(
    forget_scores: ArrayLike, holdout_scores: ArrayLike, draws: Iterable[tuple[Rows, Rows]]
) -> FloatArray:
    """Return `membership_auc` of every draw (B): positions of forget and of holdout texts, repeats allowed.

    The scores are sorted once for all draws, which is many times faster than ranking each.

    Raises:
        DataError: a side without scores, or a draw that leaves one without.
        NumericalError: a score is not a number.
    """
    forget_N, holdout_M = _scores(forget_scores, "forget"), _scores(holdout_scores, "holdout")
    levels, codes = np.unique(np.concatenate([forget_N, holdout_M]), return_inverse=True)
    forget_codes, holdout_codes = codes[: forget_N.size], codes[forget_N.size :]
    found = []
    for forget_rows, holdout_rows in draws:
        pairs = len(forget_rows) * len(holdout_rows)
        if not pairs:
            raise DataError("a draw left the AUC without forget or holdout texts.")
        at_level = np.bincount(forget_codes[forget_rows], minlength=levels.size)
        wins = (at_level.cumsum() - at_level / 2)[holdout_codes[holdout_rows]].sum()
        found.append(wins / pairs)
    return np.array(found)


def auc_standard_error(auc: float, num_forget: int, num_holdout: int) -> float:
    """Return the standard error of an AUC (Hanley and McNeil 1982).

    Raises:
        DataError: an AUC outside 0..1, or a side without scores.
    """
    if not 0.0 <= auc <= 1.0 or min(num_forget, num_holdout) < 1:
        raise DataError(
            f"no standard error for AUC {auc} of {num_forget} forget, {num_holdout} holdout texts."
        )
    # Chance that two holdout texts both score above one forget text, and one holdout text above two.
    two_holdout = auc / (2.0 - auc)
    two_forget = 2.0 * auc * auc / (1.0 + auc)
    variance = (
        auc * (1.0 - auc)
        + (num_holdout - 1) * (two_holdout - auc * auc)
        + (num_forget - 1) * (two_forget - auc * auc)
    ) / (num_forget * num_holdout)
    return math.sqrt(max(0.0, variance))


def auc_interval(auc: float, num_forget: int, num_holdout: int, confidence: float = 0.95) -> Interval:
    """Return the AUCs whose own Hanley-McNeil error does not exclude the one observed.

    Taking the error at the candidate and not at the estimate (as Wilson does for shares, and Newcombe 2006
    for AUCs) keeps the interval inside 0..1, and wider than a point for perfect separation.
    """
    check_confidence(confidence)
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)

    def excess(candidate: float) -> float:
        return abs(candidate - auc) - quantile * auc_standard_error(candidate, num_forget, num_holdout)

    # At the ends 0 and 1 the error vanishes, so the search starts a little inside.
    low = 0.0 if auc <= _END else float(brentq(excess, 0.0, min(auc, 1.0 - _END)))
    high = 1.0 if auc >= 1.0 - _END else float(brentq(excess, max(auc, _END), 1.0))
    return Interval(low, high)


def privleak_estimate(
    forget_scores: ArrayLike,
    holdout_scores: ArrayLike,
    reference_forget_scores: ArrayLike,
    reference_holdout_scores: ArrayLike,
    *,
    generator: np.random.Generator,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Estimate:
    """Return PrivLeak (open-unlearning orientation) with a bootstrap interval over texts.

    Both models scored the same texts in the same order, and each resample uses the same texts for both:
    unpaired, the error of two AUCs adds up and exceeds the acceptance band of MUSE.

    Raises:
        DataError: the two models scored different numbers of texts.
    """
    forget = np.stack(_paired(forget_scores, reference_forget_scores, "forget"))
    holdout = np.stack(_paired(holdout_scores, reference_holdout_scores, "holdout"))

    draws = [(_drawn(forget, generator), _drawn(holdout, generator)) for _ in range(num_resamples)]
    model, reference = (resampled_aucs(forget[row], holdout[row], draws) for row in (0, 1))
    replicates = [privleak(float(own), float(other)) for own, other in zip(model, reference, strict=True)]
    low, high = percentile_interval(replicates, confidence)
    value = privleak(membership_auc(forget[0], holdout[0]), membership_auc(forget[1], holdout[1]))
    return Estimate(value, low, high)


def _drawn(scores_2N: FloatArray, generator: np.random.Generator) -> Rows:
    size = scores_2N.shape[1]
    return np.asarray(generator.integers(0, size, size=size), dtype=np.int64)


def _paired(model: ArrayLike, reference: ArrayLike, side: str) -> tuple[FloatArray, FloatArray]:
    first, second = _scores(model, side), _scores(reference, side)
    if first.size != second.size:
        raise DataError(
            f"both models must score the same {side} texts, got {first.size} and {second.size} scores."
        )
    return first, second


def _scores(values: ArrayLike, side: str) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise DataError(f"the AUC needs a non-empty list of {side} scores, got shape {vector.shape}.")
    if np.isnan(vector).any():
        raise NumericalError(f"{int(np.isnan(vector).sum())} {side} scores are not numbers.")
    return vector
