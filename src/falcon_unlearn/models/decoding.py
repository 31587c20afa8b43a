"""Decoding in batches from which finished rows drop out.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.models.keys_values import cached_forward
from falcon_unlearn.models.prompts import PromptPass, read_prompts

# Selecting rows copies their keys and values, so it is done when this share of a batch is left.
_WORTHWHILE_SHARE = 0.75


Picker = Callable[[Tensor], Tensor]


def most_probable(logits_BV: Tensor) -> Tensor:
    """Return the most probable token of each row."""
    return logits_BV.argmax(dim=-1)


def nucleus_tokens(
    logits_BV: Tensor, *, temperature: float, top_p: float, generator: torch.Generator
) -> Tensor:
    """Draw a token of each row among the likeliest that together have a probability (Holtzman et al. 2020).

    Args:
        logits_BV: Logits.
        temperature: Divides them.
        top_p: Smallest probability of the tokens that are drawn among; 1 for all.
        generator: On the device of the logits.
    """
    falling_BV, order_BV = (logits_BV.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    # The most probable token always stays; each further one if those before it are too few.
    falling_BV = falling_BV.masked_fill(falling_BV.cumsum(dim=-1) - falling_BV >= top_p, 0.0)
    drawn_B1 = torch.multinomial(falling_BV, 1, generator=generator)
    return order_BV.gather(1, drawn_B1)[:, 0]


@dataclass
class _Batch:
    """Hold the rows that are still computed; some of them may have ended already."""

    rows: list[int]
    tokens_B: Tensor
    """Newest token of each row, not fed yet."""
    mask_BL: Tensor
    cache: Any


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
    rows = [row for row, budget in enumerate(budgets) if budget > 0]
    if not rows:
        return [[] for _ in prompts]
    with torch.inference_mode():
        read = read_prompts(model, [prompts[row] for row in rows], pad_id=pad_id, following=max(budgets) - 1)
        chosen = [budgets[row] for row in rows]
        found = iter(continued(model, read, chosen, end_ids=end_ids, is_complete=is_complete))
    return [next(found) if budget > 0 else [] for budget in budgets]


def continued(
    model: Any,
    read: PromptPass,
    budgets: Sequence[int],
    *,
    end_ids: Collection[int],
    is_complete: Callable[[Sequence[int]], bool] | None = None,
    pick: Picker = most_probable,
) -> list[list[int]]:
    """Continue prompts that were read, at least one token each; their keys and values are used up.

    Args:
        model: The model that read them.
        read: One row per prompt, keys and values kept.
        budgets: Most new tokens of each row.
        end_ids: Tokens that end a row.
        is_complete: As in `greedy_tokens`.
        pick: Chooses the next tokens, B, by the logits, B x V.
    """
    answers: list[list[int]] = [[] for _ in budgets]
    ended: set[int] = set()
    rows = list(range(len(budgets)))
    batch: _Batch | None = _Batch(rows, pick(read.logits_BV), read.mask_BL, read.cache)
    while batch is not None:
        going = []
        for place, (row, token) in enumerate(zip(batch.rows, batch.tokens_B.tolist(), strict=True)):
            answer = answers[row]
            if row in ended:
                continue
            answer.append(token)
            if not (_has_ended(answer, budgets[row], end_ids) or (is_complete and is_complete(answer))):
                going.append(place)
            else:
                ended.add(row)
        batch = _advance(model, batch, going, pick)
    return answers


def _has_ended(answer: list[int], budget: int, end_ids: Collection[int]) -> bool:
    return len(answer) >= budget or (bool(answer) and answer[-1] in end_ids)


def _advance(model: Any, batch: _Batch, going: list[int], pick: Picker) -> _Batch | None:
    """Feed the newest tokens, without ended rows where leaving them out pays; None where all have ended."""
    if not going:
        return None
    rows, tokens_B, mask_BL = batch.rows, batch.tokens_B, batch.mask_BL
    if len(going) <= _WORTHWHILE_SHARE * len(rows):
        chosen = torch.tensor(going, device=tokens_B.device)
        batch.cache.batch_select_indices(chosen)
        rows, mask_BL, tokens_B = [rows[place] for place in going], mask_BL[chosen], tokens_B[chosen]
    mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=1)
    logits, cache = cached_forward(
        model,
        batch.cache,
        input_ids=tokens_B[:, None],
        attention_mask=mask_BL.long(),
        position_ids=mask_BL.sum(dim=1, keepdim=True) - 1,
        logits_to_keep=1,
    )
    return _Batch(rows, pick(logits[:, -1]), mask_BL, cache)
