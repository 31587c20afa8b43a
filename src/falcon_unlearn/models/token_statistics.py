"""Log-probabilities of given tokens together with the spread over the vocabulary at their positions.

Shapes: B batch, L tokens, N scored positions, V vocabulary. Everything is in nats and float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.models.scoring import CompletionScore, Tokens, check_lengths
from falcon_unlearn.models.text import length_buckets, pad_batch

# As in `scoring`: logits held at a time, and rows of them in float32 at a time.
_LOGIT_BUDGET = 2**25
_SOFTMAX_ROWS = 128


@dataclass(frozen=True)
class TokenStatistics(CompletionScore):
    """Hold what a model says about one completion, and how its predictions spread at each token."""

    means: tuple[float, ...]
    """Mean of log p over the vocabulary under the model itself (the negative entropy)."""
    variances: tuple[float, ...]
    """Variance of log p over the vocabulary under the model itself."""


def completion_statistics(
    model: Any, pairs: Sequence[tuple[Tokens, Tokens]], *, pad_id: int, batch_tokens: int
) -> list[TokenStatistics]:
    """Score each completion given its prompt, with the moments that Min-K++ standardises by.

    Prompts are not shared: for one completion of each prompt this costs what plain scoring costs.

    Args:
        model: Hugging Face causal language model in evaluation mode.
        pairs: prompt ids and completion ids, both at least one token.
        pad_id: any id of the vocabulary; padding is masked.
        batch_tokens: tokens per forward pass, padding included.

    Returns:
        One record per pair, in the order given.

    Raises:
        DataError: an empty prompt or completion, or more tokens than the model reads.
        NumericalError: a number is not finite.
    """
    config = model.config.get_text_config()
    check_lengths(model, pairs)
    room = min(batch_tokens, max(1, _LOGIT_BUDGET // int(config.vocab_size)))
    results: dict[int, TokenStatistics] = {}
    with torch.inference_mode():
        for batch in length_buckets([len(prompt) + len(answer) - 1 for prompt, answer in pairs], room):
            results.update(zip(batch, _score_batch(model, [pairs[i] for i in batch], pad_id), strict=True))
    return [results[index] for index in range(len(pairs))]


def _score_batch(model: Any, pairs: list[tuple[Tokens, Tokens]], pad_id: int) -> list[TokenStatistics]:
    ids_BL, mask_BL = pad_batch([[*prompt, *completion][:-1] for prompt, completion in pairs], pad_id)
    keep_BL = torch.zeros_like(mask_BL)
    for row, (prompt, completion) in enumerate(pairs):
        keep_BL[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    device = model.device
    # Padding sits on the right, where a causal model cannot see it; positions are then the default ones.
    output = model(
        input_ids=ids_BL.to(device),
        attention_mask=mask_BL.long().to(device),
        use_cache=False,
        logits_to_keep=keep_BL.to(device),
    )
    targets_N = torch.tensor([token for _, completion in pairs for token in completion], device=device)
    columns = _moments(output.logits.reshape(-1, output.logits.shape[-1]), targets_N)
    results, start = [], 0
    for _, completion in pairs:
        stop = start + len(completion)
        values, matches, means, variances = (tuple(column[start:stop]) for column in columns)
        results.append(TokenStatistics(values, tuple(bool(match) for match in matches), means, variances))
        start = stop
    return results


def _moments(logits_NV: Tensor, targets_N: Tensor) -> list[list[float]]:
    """Return log p, argmax agreement (0 or 1), mean and variance of log p for every row."""
    columns: list[list[float]] = [[], [], [], []]
    for part, targets in zip(
        torch.split(logits_NV, _SOFTMAX_ROWS), torch.split(targets_N, _SOFTMAX_ROWS), strict=True
    ):
        log_p = torch.log_softmax(part.float(), dim=-1)
        p = log_p.exp()
        mean = (p * log_p).sum(dim=-1)
        variance = (p * (log_p - mean[:, None]).square()).sum(dim=-1)
        value = log_p.gather(1, targets[:, None])[:, 0]
        if not torch.isfinite(torch.stack([value, mean, variance])).all():
            raise NumericalError(
                "the model gives log-probabilities that are not finite",
                hint="its weights are damaged, or the learning rate was too high; try float32",
            )
        matches = (part.argmax(dim=-1) == targets).float()
        for column, found in zip(columns, (value, matches, mean, variance), strict=True):
            column.extend(found.tolist())
    return columns
