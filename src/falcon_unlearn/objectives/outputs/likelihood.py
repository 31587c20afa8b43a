"""What all objectives on outputs share: likelihoods of labels, divergence from the frozen model, and means.

Everything is computed on log-probabilities, never on raw logits, in float32 or in the wider dtype of the
logits. Only supervised tokens exist here, so that prompts and padding cannot enter a mean.

Legend: B sequences, M supervised positions, V vocabulary; p the model, q the frozen model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit


def log_distribution(logits_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return log p over the vocabulary, M x V in nats, at least float32.

    Raises:
        ValueError: Logits, labels and owners of the batch do not fit each other.
    """
    check_batch(logits_MV, batch)
    return _widen(logits_MV).log_softmax(-1)


def frozen_logits(log_p_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return the frozen model's logits, M x V in the dtype of log p, without gradient.

    Raises:
        ValueError: The batch does not carry them, or they have another shape than log p.
    """
    if batch.reference_logits_MV is None:
        raise ValueError(
            "this loss needs the frozen model's logits, but the batch has no reference_logits_MV"
        )
    if batch.reference_logits_MV.shape != log_p_MV.shape:
        raise ValueError(
            f"reference_logits_MV must have the shape of the logits, {tuple(log_p_MV.shape)}, "
            f"got {tuple(batch.reference_logits_MV.shape)}"
        )
    return batch.reference_logits_MV.detach().to(log_p_MV.dtype)


def label_log_probabilities(logits_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return log p(label) of every position, M in nats; errors as in `log_distribution`."""
    return pick_labels(log_distribution(logits_MV, batch), batch)


def pick_labels(values_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return the value of each position at its label, M."""
    return values_MV.gather(1, batch.labels_M[:, None])[:, 0]


def log_ratios_by_sequence(logits_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return log p - log q of whole answers, B in nats.

    Raises:
        ValueError: The batch does not carry log q, or does not fit the logits.
    """
    if batch.reference_M is None:
        raise ValueError(
            "this loss needs the frozen model's log-probabilities, but the batch has no reference_M"
        )
    values_M = label_log_probabilities(logits_MV, batch)
    if batch.reference_M.shape != values_M.shape:
        raise ValueError(
            f"reference_M must hold one number per label, {len(values_M)}, "
            f"got shape {tuple(batch.reference_M.shape)}"
        )
    # Subtract before summing: the difference of two long sums would lose digits.
    return sum_by_sequence(values_M - batch.reference_M.detach().to(values_M.dtype), batch)


def divergences(log_p_MV: Tensor, batch: TokenBatch) -> Tensor:
    """Return KL(q || p) of every position, M in nats; exactly 0 where the distributions are equal.

    Raises:
        ValueError: The batch does not carry the frozen logits, or they do not fit.
    """
    log_q_MV = frozen_logits(log_p_MV, batch).log_softmax(-1)
    return kl_div(log_p_MV, log_q_MV, reduction="none", log_target=True).sum(-1)


def sum_by_sequence(values_M: Tensor, batch: TokenBatch) -> Tensor:
    """Sum the values of each sequence, B; 0 where a sequence has none."""
    return values_M.new_zeros(batch.num_sequences).index_add(0, batch.owners_M, values_M)


def mean_by_sequence(values_M: Tensor, batch: TokenBatch) -> Tensor:
    """Average the values of each sequence, B; 0 where a sequence has none."""
    return sum_by_sequence(values_M, batch) / labels_by_sequence(batch).clamp_min(1)


def labels_by_sequence(batch: TokenBatch) -> Tensor:
    """Count the labels of each sequence, B, integer."""
    return torch.bincount(batch.owners_M, minlength=batch.num_sequences)


def mean_of_originals(values_B: Tensor, batch: TokenBatch) -> Tensor:
    """Average over the original sequences that have labels, whatever their lengths.

    Raises:
        ValueError: There is none.
    """
    chosen_B = ~batch.is_alternative_B & (labels_by_sequence(batch) > 0)
    return _mean(values_B[chosen_B], "original")


def mean_over_tokens(values_M: Tensor, batch: TokenBatch, *, alternative: bool = False) -> Tensor:
    """Average over the tokens of the original sequences, or of the alternative ones.

    Raises:
        ValueError: There is none.
    """
    chosen_M = batch.is_alternative_B[batch.owners_M] == alternative
    return _mean(values_M[chosen_M], "alternative" if alternative else "original")


def count_units(batch: TokenBatch, unit: Unit) -> int:
    """Count what a loss is averaged over, so that the means of parts of a batch can be put together."""
    if unit in ("tokens", "alternative tokens"):
        return int((batch.is_alternative_B[batch.owners_M] == (unit == "alternative tokens")).sum())
    originals_B = ~batch.is_alternative_B
    if unit == "sequences":
        originals_B = originals_B & (labels_by_sequence(batch) > 0)
    return int(originals_B.sum())


def check_batch(logits_MV: Tensor, batch: TokenBatch) -> None:
    """Raise ValueError unless the batch fits the logits and all its labels are token ids.

    An index of -100, the usual mark of ignored tokens, would pick some other entry or crash the device.
    """
    num_labels = len(batch.labels_M)
    if num_labels == 0:
        raise ValueError("the batch has no label: there is nothing to learn from")
    if logits_MV.ndim != 2 or len(logits_MV) != num_labels or len(batch.owners_M) != num_labels:
        raise ValueError(
            f"logits must be labels x vocabulary: got {num_labels} labels of {len(batch.owners_M)} owners "
            f"and logits of shape {tuple(logits_MV.shape)}"
        )
    _check_range("labels_M", batch.labels_M, logits_MV.shape[1])
    _check_range("owners_M", batch.owners_M, batch.num_sequences)


def _check_range(name: str, indices_M: Tensor, end: int) -> None:
    lowest, highest = (int(bound) for bound in torch.aminmax(indices_M))
    if lowest < 0 or highest >= end:
        raise ValueError(f"{name} must lie in 0 .. {end - 1}, got values from {lowest} to {highest}")


def _widen(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean(values: Tensor, kind: str) -> Tensor:
    if not len(values):
        raise ValueError(f"this loss needs {kind} sequences, but the batch has no label of that kind")
    return values.mean()
