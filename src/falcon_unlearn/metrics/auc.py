"""Area under the ROC curve of a membership score, with its uncertainty.

Shapes: N forget texts, M holdout texts, B bootstrap resamples.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import rankdata

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.linalg.intervals import Estimate, Interval, check_confidence, percentile_interval
from falcon_unlearn.metrics.membership import privleak

FloatArray = NDArray[np.float64]

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

    def value(forget_2N: FloatArray, holdout_2M: FloatArray) -> float:
        model, reference = (membership_auc(forget_2N[row], holdout_2M[row]) for row in (0, 1))
        return privleak(model, reference)

    replicates = []
    for _ in range(num_resamples):
        forget_rows = generator.integers(0, forget.shape[1], size=forget.shape[1])
        holdout_rows = generator.integers(0, holdout.shape[1], size=holdout.shape[1])
        replicates.append(value(forget[:, forget_rows], holdout[:, holdout_rows]))
    low, high = percentile_interval(replicates, confidence)
    return Estimate(value(forget, holdout), low, high)


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
