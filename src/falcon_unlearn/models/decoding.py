"""Greedy decoding in batches from which finished rows drop out.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.models.keys_values import cached_forward
from falcon_unlearn.models.text import pad_batch

# Selecting rows copies their keys and values, so it is done when this share of a batch is left.
_WORTHWHILE_SHARE = 0.75


@dataclass
class _Batch:
    """Hold the rows that are still computed; some of them may have ended already."""

    rows: list[int]
    fed_BL: Tensor
    mask_BL: Tensor
    positions_BL: Tensor
    cache: Any = None


def greedy_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    *,
    end_ids: Collection[int],
    pad_id: int,
    is_complete: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue each prompt by the most probable tokens until an end token, which is kept, or its budget.

    Runs as one batch; no setting of the model's own for sampling or penalties has any effect.

    Args:
        model: Hugging Face causal language model in evaluation mode.
        prompts: Token ids, at least one each.
        budgets: Most new tokens of each row.
        end_ids: Tokens that end a row.
        pad_id: Any id of the vocabulary; padding is masked.
        is_complete: Tells of the new tokens of a row, of which there is one at least, whether they suffice.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    ended: set[int] = set()
    batch = _start([row for row, budget in enumerate(budgets) if budget > 0], prompts, pad_id, model.device)
    with torch.inference_mode():
        while batch is not None:
            tokens_B = _next_tokens(model, batch)
            going = []
            for place, (row, token) in enumerate(zip(batch.rows, tokens_B.tolist(), strict=True)):
                answer = answers[row]
                if row in ended:
                    continue
                answer.append(token)
                if not (_has_ended(answer, budgets[row], end_ids) or (is_complete and is_complete(answer))):
                    going.append(place)
                else:
                    ended.add(row)
            batch = _advance(batch, tokens_B, going)
    return answers


def _start(rows: list[int], prompts: Sequence[Sequence[int]], pad_id: int, device: Any) -> _Batch | None:
    if not rows:
        return None
    # Padding on the left, so that every row goes on at the same place.
    ids_BL, mask_BL = pad_batch([prompts[row] for row in rows], pad_id, "left")
    positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    return _Batch(rows, ids_BL.to(device), mask_BL.to(device), positions_BL.to(device))


def _next_tokens(model: Any, batch: _Batch) -> Tensor:
    logits, batch.cache = cached_forward(
        model,
        batch.cache,
        input_ids=batch.fed_BL,
        attention_mask=batch.mask_BL.long(),
        position_ids=batch.positions_BL,
        logits_to_keep=1,
    )
    return logits[:, -1].argmax(dim=-1)


def _has_ended(answer: list[int], budget: int, end_ids: Collection[int]) -> bool:
    return len(answer) >= budget or (bool(answer) and answer[-1] in end_ids)


def _advance(batch: _Batch, tokens_B: Tensor, going: list[int]) -> _Batch | None:
    """Return the batch with its newest tokens to feed, without ended rows where leaving them out pays."""
    if not going:
        return None
    rows, mask_BL = batch.rows, batch.mask_BL
    if len(going) <= _WORTHWHILE_SHARE * len(rows):
        chosen = torch.tensor(going, device=tokens_B.device)
        batch.cache.batch_select_indices(chosen)
        rows, mask_BL, tokens_B = [rows[place] for place in going], mask_BL[chosen], tokens_B[chosen]
    mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=1)
    return _Batch(rows, tokens_B[:, None], mask_BL, mask_BL.sum(dim=1, keepdim=True) - 1, batch.cache)
