"""Continue many prompts that share a long beginning, computing its keys and values once.

Shapes: B prompts of equal length, L tokens after the shared part, V vocabulary.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.keys_values import cached_forward

Tokens = Sequence[int]


def shared_beginning(prompts: Sequence[Tokens]) -> int:
    """Return how many leading tokens all prompts share, leaving at least one token to each."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in columns), min(len(prompt) for prompt in prompts) - 1)


def continue_prompts(
    subject: Subject, prompts: Sequence[Tokens], *, maximum_new_tokens: int, stops: Sequence[str]
) -> list[str]:
    """Continue prompts greedily until an end token, a stop text or the limit.

    Args:
        subject: Model and tokenizer.
        prompts: Token ids.
        maximum_new_tokens: Longest continuation.
        stops: Texts that end a continuation; they may still stand in the result, with what follows.

    Raises:
        DataError: A prompt is empty, or longer than the model reads with its continuation.
    """
    for index, prompt in enumerate(prompts):
        if not prompt or len(prompt) + maximum_new_tokens > subject.maximum_tokens:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens; with {maximum_new_tokens} new ones it must stay "
                f"between 1 and {subject.maximum_tokens}",
                hint="use a model that reads longer texts, or fewer shots",
            )
    if not prompts:
        return []
    shared = shared_beginning(prompts)
    # Equal lengths need no padding, which would shift sliding windows between shared part and rest.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    texts = [""] * len(prompts)
    with torch.inference_mode():
        cache = _run(subject, torch.tensor([list(prompts[0][:shared])]), None)[1] if shared else None
        for length, indices in by_length.items():
            rows = max(1, subject.batch_tokens // (length + maximum_new_tokens))
            for start in range(0, len(indices), rows):
                batch = indices[start : start + rows]
                rest_BL = torch.tensor([list(prompts[index][shared:]) for index in batch])
                found = _continue(subject, rest_BL, cache, maximum_new_tokens, stops)
                for index, text in zip(batch, found, strict=True):
                    texts[index] = text
    return texts


def _continue(
    subject: Subject, rest_BL: Tensor, cache: Any, maximum_new_tokens: int, stops: Sequence[str]
) -> list[str]:
    if cache is not None:
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(rest_BL))
    answers: list[list[int]] = [[] for _ in rest_BL]
    open_rows = set(range(len(rest_BL)))
    fed_BL = rest_BL
    for step in range(maximum_new_tokens):
        best_B, cache = _run(subject, fed_BL, cache)
        for row in sorted(open_rows):
            token = int(best_B[row])
            if token in subject.end_ids:
                open_rows.discard(row)
                continue
            answers[row].append(token)
            if any(stop in _decode(subject, answers[row]) for stop in stops):
                open_rows.discard(row)
        if not open_rows or step + 1 == maximum_new_tokens:
            break
        fed_BL = best_B[:, None].cpu()
    return [_decode(subject, answer) for answer in answers]


def _run(subject: Subject, ids_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Feed tokens after what the cache holds; return the most probable next ones (B,) and the cache."""
    logits, cache = cached_forward(
        subject.model, cache, input_ids=ids_BL.to(subject.model.device), logits_to_keep=1
    )
    return logits[:, -1].argmax(dim=-1), cache


def _decode(subject: Subject, ids: list[int]) -> str:
    return str(subject.tokenizer.decode(ids, skip_special_tokens=True))
