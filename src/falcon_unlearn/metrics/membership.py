"""Membership inference: scores, AUC and PrivLeak. A higher score means: less likely seen in training.

Shapes: L scored tokens of one text, N forget texts, M holdout texts. Losses and log-probabilities in nats.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, NumericalError

FloatArray = NDArray[np.float64]

_MINIMUM_VARIANCE = 1e-6


def loss_score(token_log_probabilities: ArrayLike) -> float:
    """Return the mean negative log-probability per token (Yeom et al. 2018)."""
    return float(-_tokens(token_log_probabilities, drop_last=False).mean())


def zlib_score(avg_loss: float, text: str) -> float:
    """Return the loss per byte of the zlib-compressed text, in nats per byte (Carlini et al. 2021).

    Args:
        avg_loss: mean token loss of the answer.
        text: the scored text alone, without the prompt.
    """
    return float(avg_loss) / len(zlib.compress(text.encode("utf-8")))


def reference_score(avg_loss: float, reference_avg_loss: float) -> float:
    """Return the loss minus that of a reference model on the same text."""
    return float(avg_loss) - float(reference_avg_loss)


def min_k_score(token_log_probabilities: ArrayLike, *, share: float = 0.4, drop_last: bool = False) -> float:
    """Return minus the mean of the least probable tokens (Shi et al. 2024, Min-K%).

    Args:
        token_log_probabilities: (L,) log-probabilities of the true tokens.
        share: share of tokens used, rounded down, at least one token.
        drop_last: leave out the last scored token, as open-unlearning does.

    Raises:
        DataError: no tokens are left, or `share` outside (0, 1].
        NumericalError: a value is not a number.
    """
    return _mean_of_lowest(_tokens(token_log_probabilities, drop_last), share)


def min_k_plus_plus_score(
    token_log_probabilities: ArrayLike,
    mean_log_probabilities: ArrayLike,
    log_probability_variances: ArrayLike,
    *,
    share: float = 0.4,
    drop_last: bool = False,
) -> float:
    """Return Min-K% of standardised log-probabilities (Zhang et al. 2025, Min-K%++).

    Args:
        token_log_probabilities: (L,) log-probabilities of the true tokens.
        mean_log_probabilities: (L,) expected log-probability over the vocabulary, weighted by probability.
        log_probability_variances: (L,) variance of the same; values below 1e-6 count as 1e-6.
        share: share of tokens used, rounded down, at least one token.
        drop_last: leave out the last scored token, as open-unlearning does.

    Raises:
        DataError: lengths differ, no tokens are left, or `share` outside (0, 1].
    """
    found_L = _tokens(token_log_probabilities, drop_last)
    mean_L = _tokens(mean_log_probabilities, drop_last)
    variance_L = _tokens(log_probability_variances, drop_last)
    if not found_L.size == mean_L.size == variance_L.size:
        raise DataError(
            "Min-K++ needs log-probability, mean and variance of each token, "
            f"got {found_L.size}, {mean_L.size} and {variance_L.size}."
        )
    deviation_L = np.sqrt(np.maximum(variance_L, _MINIMUM_VARIANCE))
    return _mean_of_lowest(np.asarray((found_L - mean_L) / deviation_L), share)


def privleak(
    auc: float,
    auc_reference: float | None,
    *,
    orientation: Literal["open_unlearning", "muse"] = "open_unlearning",
    epsilon: float = 1e-10,
) -> float:
    """Return PrivLeak in percent: -100 untouched, 0 like the retrained model, above 0 over-unlearned.

    Args:
        auc: Min-40% AUC of the model. `open_unlearning`: P(holdout score > forget score), about 1 for an
            untouched model. `muse`: forget texts are the class with the higher score, about 0 for it.
        auc_reference: the same of the retrained model, in the same orientation.
        orientation: which of the two.
        epsilon: added to the denominator, as open-unlearning does; MUSE adds nothing.

    Raises:
        DataError: no reference, an AUC outside 0..1, or a reference without spread.
    """
    if auc_reference is None:
        raise DataError(
            "PrivLeak needs the AUC of a model retrained without the forget set, got none.",
            hint="Give a retain log. An AUC of .5 is not a substitute: forget and holdout texts differ.",
        )
    for name, value in (("model", auc), ("reference", auc_reference)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"the AUC of the {name} must lie between 0 and 1, got {value}.")
    if orientation == "open_unlearning":
        auc, auc_reference = 1.0 - auc, 1.0 - auc_reference
    else:
        epsilon = 0.0
    if auc_reference == 0.0:
        raise DataError("PrivLeak has no value: the AUC of the reference model leaves nothing to divide by.")
    return 100.0 * (auc - auc_reference) / (auc_reference + epsilon)


def _mean_of_lowest(values_L: FloatArray, share: float) -> float:
    if not 0.0 < share <= 1.0:
        raise DataError(f"the share of tokens must lie in (0, 1], got {share}.")
    count = max(1, int(share * values_L.size))
    return float(-np.sort(values_L)[:count].mean())


def _tokens(values: ArrayLike, drop_last: bool) -> FloatArray:
    vector_L = np.asarray(values, dtype=np.float64)
    if vector_L.ndim != 1:
        raise DataError(f"a membership score needs one number per token, got shape {vector_L.shape}.")
    kept_L = vector_L[:-1] if drop_last else vector_L
    if kept_L.size == 0:
        raise DataError(f"a membership score needs at least one scored token, got {vector_L.size}.")
    if np.isnan(kept_L).any():
        raise NumericalError("a membership score got a value that is not a number.")
    return kept_L
