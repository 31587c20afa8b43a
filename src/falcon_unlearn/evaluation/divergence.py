"""Kullback-Leibler divergence of the changed model from the original one, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.evaluation.perplexity import MAXIMUM_WINDOW, windows
from falcon_unlearn.evaluation.subject import OriginalWeights, Subject


@dataclass(frozen=True)
class TextDivergence:
    """Sum KL(original || changed) over the predicted tokens of one text."""

    total: float
    """In nats."""
    num_tokens: int


def text_divergences(
    subject: Subject,
    texts: Sequence[Sequence[int]],
    *,
    original: OriginalWeights,
    maximum_tokens: int,
) -> list[TextDivergence]:
    """Compare the next-token distributions of both states of one model object.

    Two forward passes per batch; the distributions of one batch are held at a time.

    Args:
        subject: the changed model.
        texts: token ids; read in order until `maximum_tokens` predictions are compared, the last text is cut.
        original: swaps the original tensors in and back.
        maximum_tokens: predictions compared in all.

    Returns:
        One entry for each text that was read, in order.
    """
    size = min(MAXIMUM_WINDOW, subject.maximum_tokens)
    owners: list[int] = []
    pieces: list[Sequence[int]] = []
    left = maximum_tokens
    for index, text in enumerate(texts):
        for window in windows(text, size):
            if left > 0:
                owners.append(index)
                pieces.append(window[: left + 1])
                left -= len(pieces[-1]) - 1
    totals = [0.0] * (owners[-1] + 1)
    counts = [0] * (owners[-1] + 1)
    for batch, original_NV, changed_NV in subject.compared(pieces, original):
        values_N = token_divergences(original_NV, changed_NV)
        for index, values in zip(
            batch, torch.split(values_N, [len(pieces[index]) - 1 for index in batch]), strict=True
        ):
            totals[owners[index]] += float(values.double().sum())
            counts[owners[index]] += len(values)
    return [TextDivergence(total, count) for total, count in zip(totals, counts, strict=True)]


def token_divergences(original_NV: Tensor, changed_NV: Tensor) -> Tensor:
    """Return KL(original || changed) for rows of log-probabilities, in nats, never below 0.

    Args:
        original_NV: [N, V] log-probabilities.
        changed_NV: [N, V] log-probabilities.

    Returns:
        [N].

    Raises:
        NumericalError: a result is not finite.
    """
    values_N = ((original_NV - changed_NV) * original_NV.exp()).sum(dim=-1).clamp(min=0.0)
    if not values_N.isfinite().all():
        raise NumericalError(
            "the divergence to the original model is not finite",
            hint="the changed weights are damaged, or the learning rate was too high; try float32",
        )
    return values_N
