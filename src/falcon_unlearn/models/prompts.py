"""Read prompts in one batch: what all of them begin with is computed once.

Shapes: B prompts, L tokens of the padded batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.models.keys_values import cached_forward
from falcon_unlearn.models.text import pad_batch

Tokens = Sequence[int]
# A common beginning costs a pass of its own; below this share of saved tokens it does not pay.
_WORTHWHILE_SAVING = 0.2
_REACHES = ("sliding_window", "attention_chunk_size")


@dataclass
class PromptPass:
    """Hold what a model computed for a batch of prompts, whose last tokens lie in one column."""

    logits_BV: Tensor
    """Of the next token."""
    mask_BL: Tensor
    """Which of the columns hold tokens."""
    cache: Any
    """Keys and values, None if they were not to be kept."""

    def repeated(self, times: int) -> PromptPass:
        """Return every prompt so many times, one after the other; this one is used up."""
        self.cache.batch_repeat_interleave(times)
        return PromptPass(
            self.logits_BV.repeat_interleave(times, dim=0),
            self.mask_BL.repeat_interleave(times, dim=0),
            self.cache,
        )


def read_prompts(
    model: Any, prompts: Sequence[Tokens], *, pad_id: int, following: int, keep: bool = True
) -> PromptPass:
    """Run a model over prompts, at least one token each.

    Args:
        model: Hugging Face causal language model in evaluation mode.
        prompts: Token ids.
        pad_id: Any id of the vocabulary; padding is masked.
        following: Most tokens that will be fed after a prompt.
        keep: Whether keys and values are needed later.
    """
    device = model.device
    start = common_beginning(prompts)
    if not _pays(start, prompts) or not _within_reach(model, prompts, following):
        start = ()
    # Padding on the left keeps a prompt and what follows adjacent, which sliding windows measure by.
    ids_BL, mask_BL = pad_batch([prompt[len(start) :] for prompt in prompts], pad_id, "left")
    ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
    cache = None
    if start:
        begun = torch.tensor([start], device=device)
        _, cache = cached_forward(model, None, input_ids=begun, logits_to_keep=1)
        cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
        mask_BL = torch.cat([mask_BL.new_ones(len(prompts), len(start)), mask_BL], dim=1)
    positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
    logits, cache = cached_forward(
        model,
        cache,
        keep=keep,
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=positions_BL,
        logits_to_keep=1,
    )
    return PromptPass(logits[:, -1], mask_BL, cache)


def common_beginning(prompts: Sequence[Tokens]) -> tuple[int, ...]:
    """Return the tokens with which all prompts begin, and after which each has at least one more."""
    # Of all texts in order, the first and the last differ earliest.
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)
    most = min(map(len, prompts)) - 1
    pairs = zip(first[:most], last[:most], strict=False)
    length = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    return tuple(first[:length])


def _pays(start: Tokens, prompts: Sequence[Tokens]) -> bool:
    return len(start) * (len(prompts) - 1) > _WORTHWHILE_SAVING * sum(map(len, prompts))


def _within_reach(model: Any, prompts: Sequence[Tokens], following: int) -> bool:
    """Tell whether padding between beginning and rest is harmless.

    Windows count columns, so it would move the beginning out of a window that the text reaches the end of.
    """
    longest = max(map(len, prompts))
    if longest == min(map(len, prompts)):
        return True
    config = model.config.get_text_config()
    reaches = [reach for name in _REACHES if (reach := getattr(config, name, None)) is not None]
    return all(longest + following <= reach for reach in reaches)
