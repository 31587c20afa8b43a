"""The truth ratio of TOFU: how much more probable wrong answers are than the right one.

Shapes: N questions, K wrong answers per question. Losses are mean negative log-probabilities per token, in
nats.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, NumericalError

FloatArray = NDArray[np.float64]
Averaging = Literal["geometric", "arithmetic"]


def truth_ratio(
    avg_loss_right: ArrayLike,
    avg_losses_wrong: ArrayLike,
    *,
    averaging: Averaging = "geometric",
    epsilon: float = 0.0,
) -> FloatArray:
    """Return P(wrong) / P(right) per question, with P = exp(-mean token loss).

    The leaderboards average the wrong answers geometrically, exp(right - mean(wrong)); equation 1 of the TOFU
    paper (Maini et al. 2024) averages their probabilities. Ratios of the two kinds cannot be compared.

    Args:
        avg_loss_right: (N,) loss of the right (for TOFU: paraphrased) answer.
        avg_losses_wrong: (N, K) losses of the wrong answers.
        averaging: mean over the K wrong answers, of losses or of probabilities.
        epsilon: added to P(right); open-unlearning uses 1e-10.

    Returns:
        (N,) ratios; infinite where P(right) underflows and `epsilon` is 0.

    Raises:
        DataError: shapes do not fit.
        NumericalError: a loss is not finite.
    """
    right_N = np.asarray(avg_loss_right, dtype=np.float64)
    wrong_NK = np.asarray(avg_losses_wrong, dtype=np.float64)
    if right_N.ndim != 1 or wrong_NK.shape[:-1] != right_N.shape or 0 in wrong_NK.shape:
        raise DataError(
            "the truth ratio needs N losses of right answers and N x K of wrong ones, "
            f"got shapes {right_N.shape} and {wrong_NK.shape}."
        )
    if not (np.isfinite(right_N).all() and np.isfinite(wrong_NK).all()):
        raise NumericalError("the truth ratio got a loss that is not finite.")
    with np.errstate(over="ignore", divide="ignore"):
        if epsilon == 0.0 and averaging == "geometric":
            # One exponential of the difference: both probabilities may underflow, their ratio does not.
            return np.asarray(np.exp(right_N - wrong_NK.mean(axis=1)))
        if epsilon == 0.0:
            return np.asarray(np.exp(right_N[:, None] - wrong_NK).mean(axis=1))
        wrong_N = (
            np.exp(-wrong_NK.mean(axis=1)) if averaging == "geometric" else np.exp(-wrong_NK).mean(axis=1)
        )
        return np.asarray(wrong_N / (np.exp(-right_N) + epsilon))


def closeness_to_one(ratios: ArrayLike) -> FloatArray:
    """Return min(R, 1/R) per question: 1 if right and wrong answers are equally probable."""
    values_N = _ratios(ratios)
    with np.errstate(divide="ignore"):
        return np.minimum(values_N, 1.0 / values_N)


def truth_preference(ratios: ArrayLike) -> FloatArray:
    """Return max(0, 1 - R) per question: 1 if the wrong answers have no probability."""
    return np.maximum(0.0, 1.0 - _ratios(ratios))


def truth_share(ratios: ArrayLike) -> FloatArray:
    """Return 1/(1 + R) per question: the share of the right answer in the two probabilities."""
    return np.asarray(1.0 / (1.0 + _ratios(ratios)))


def forget_truth_ratio(ratios: ArrayLike) -> float:
    """Return the mean of min(R, 1/R), the aggregate on forgotten questions."""
    return float(closeness_to_one(ratios).mean())


def retain_truth_ratio(ratios: ArrayLike) -> float:
    """Return the mean of max(0, 1 - R), the aggregate on retained questions, authors and world facts."""
    return float(truth_preference(ratios).mean())


def knowledge_truth_ratio(ratios: ArrayLike) -> float:
    """Return the mean of 1/(1 + R), the knowledge variant of the open-unlearning report."""
    return float(truth_share(ratios).mean())


def _ratios(ratios: ArrayLike) -> FloatArray:
    values_N = np.asarray(ratios, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise DataError(f"truth ratios must be a non-empty list of numbers, got shape {values_N.shape}.")
    if np.isnan(values_N).any() or (values_N < 0).any():
        raise NumericalError("truth ratios must be numbers of at least 0.")
    return values_N
