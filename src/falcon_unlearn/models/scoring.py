"""Log-probabilities of given tokens under a whole causal language model, in length-sorted batches.

The only place where evaluation runs a full forward pass (greedy generation aside). Three things keep it
cheap: the vocabulary projection runs only at positions whose prediction is scored, the last token of a
completion is never fed, and completions of one prompt share the prompt's keys and values, as prompts of one
batch share those of their common beginning.

Shapes: B batch, L tokens, N scored positions, V vocabulary. Log-probabilities are in nats and float32,
whatever the dtype of the model; the logits themselves have the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.models.keys_values import cached_forward
from falcon_unlearn.models.prompts import PromptPass, read_prompts
from falcon_unlearn.models.text import pad_batch

Tokens = Sequence[int]

# Logits held at a time, 128 MB in float32; with 50 k words that is about 680 positions.
_LOGIT_BUDGET = 2**25
_SOFTMAX_ROWS = 128
# A shared prompt costs a second, smaller forward pass; below this share of saved tokens it does not pay.
_WORTHWHILE_SAVING = 0.2


@dataclass(frozen=True)
class CompletionScore:
    """Hold what a model says about one completion, token by token."""

    token_log_probabilities: tuple[float, ...]
    """log p(token | everything before it), in nats."""
    argmax_matches: tuple[bool, ...]
    """Whether the token is the most probable one (teacher forced)."""

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens."""
        return len(self.token_log_probabilities)

    @property
    def sum_log_probability(self) -> float:
        """Log-probability of the whole completion, in nats."""
        return sum(self.token_log_probabilities)

    @property
    def mean_log_probability(self) -> float:
        """Log-probability per token, in nats."""
        return self.sum_log_probability / self.num_tokens

    @property
    def num_greedy(self) -> int:
        """Number of tokens at the start that greedy decoding would say too."""
        return next(
            (place for place, match in enumerate(self.argmax_matches) if not match), len(self.argmax_matches)
        )


@dataclass(frozen=True)
class _PromptGroup:
    prompt: tuple[int, ...]
    rows: tuple[int, ...]
    """Indices into the pairs."""
    width: int
    """Tokens fed after the prompt: longest completion less its last token."""


def completion_log_probabilities(
    model: Any, pairs: Sequence[tuple[Tokens, Tokens]], *, pad_id: int, batch_tokens: int
) -> list[CompletionScore]:
    """Score each completion given its prompt.

    Args:
        model: Hugging Face causal language model in evaluation mode.
        pairs: prompt ids and completion ids, both at least one token.
        pad_id: any id of the vocabulary; padding is masked.
        batch_tokens: tokens per forward pass, padding included.

    Returns:
        One score per pair, in the order given.

    Raises:
        DataError: an empty prompt or completion, or more tokens than the model reads.
        NumericalError: a log-probability is not finite.
    """
    check_lengths(model, pairs)
    grouped: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        grouped.setdefault(tuple(prompt), []).append(index)
    alone: list[int] = []
    groups: list[_PromptGroup] = []
    for prompt, rows in grouped.items():
        if _sharing_pays(prompt, [pairs[row][1] for row in rows]):
            groups.extend(_split_group(prompt, rows, pairs, batch_tokens))
        else:
            alone.extend(rows)
    scores: dict[int, CompletionScore] = {}
    with torch.inference_mode():
        for batch in _plan_alone(model, pairs, alone, batch_tokens):
            scores.update(zip(batch, _score_alone(model, [pairs[i] for i in batch], pad_id), strict=True))
        for group_batch in _plan_groups(model, groups, batch_tokens):
            scores.update(_score_groups(model, pairs, group_batch, pad_id))
    return [scores[index] for index in range(len(pairs))]


def token_scores(
    model: Any, texts: Sequence[Tokens], *, pad_id: int, batch_tokens: int
) -> list[CompletionScore]:
    """Score every token of each text but the first, which is context only. Texts need two tokens or more."""
    pairs = [(text[:1], text[1:]) for text in texts]
    return completion_log_probabilities(model, pairs, pad_id=pad_id, batch_tokens=batch_tokens)


def text_batches(model: Any, texts: Sequence[Tokens], *, batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of text indices whose full distributions fit the logit budget; longest texts first."""
    pairs = [(text[:1], text[1:]) for text in texts]
    check_lengths(model, pairs)
    yield from _plan_alone(model, pairs, range(len(texts)), batch_tokens)


def full_log_probabilities(model: Any, texts: Sequence[Tokens], *, pad_id: int) -> Tensor:
    """Return log-probabilities over the vocabulary for every token of `texts` but their first.

    Runs as one batch: take it from `text_batches`, so that memory stays bounded.

    Returns:
        [N, V] float32, texts one after the other in the order given.
    """
    with torch.inference_mode():
        logits_NV = _logits_after_prompt(model, [(text[:1], text[1:]) for text in texts], pad_id)
        return torch.log_softmax(logits_NV.float(), dim=-1)


def check_lengths(model: Any, pairs: Sequence[tuple[Tokens, Tokens]]) -> None:
    """Raise DataError for an empty prompt or completion, or for more tokens than the model reads."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, (prompt, completion) in enumerate(pairs):
        if not prompt or not completion:
            raise DataError(
                f"text {index} has {len(prompt)} prompt and {len(completion)} completion tokens; "
                "each needs at least one."
            )
        if limit is not None and len(prompt) + len(completion) - 1 > limit:
            raise DataError(
                f"text {index} has {len(prompt) + len(completion)} tokens, the model reads at most {limit}",
                hint="shorten the text or split it",
            )


def _sharing_pays(prompt: Tokens, completions: Sequence[Tokens]) -> bool:
    separate = sum(len(prompt) + len(completion) - 1 for completion in completions)
    return len(prompt) * (len(completions) - 1) > _WORTHWHILE_SAVING * separate


def _split_group(
    prompt: tuple[int, ...], rows: list[int], pairs: Sequence[tuple[Tokens, Tokens]], batch_tokens: int
) -> Iterator[_PromptGroup]:
    width = max(len(pairs[row][1]) for row in rows) - 1
    num_rows = max(1, batch_tokens // (len(prompt) + width))
    for start in range(0, len(rows), num_rows):
        yield _PromptGroup(prompt, tuple(rows[start : start + num_rows]), width)


def _max_positions(model: Any) -> int:
    return max(1, _LOGIT_BUDGET // int(model.config.get_text_config().vocab_size))


def _plan_alone(
    model: Any, pairs: Sequence[tuple[Tokens, Tokens]], indices: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Yield indices by falling length, as many as fit both the tokens and the logits of one pass."""
    max_positions = _max_positions(model)
    batch: list[int] = []
    longest = positions = 0
    for index in sorted(indices, key=lambda i: (-len(pairs[i][0]) - len(pairs[i][1]), i)):
        completion = len(pairs[index][1])
        full = (len(batch) + 1) * longest > batch_tokens or positions + completion > max_positions
        if batch and full:
            yield batch
            batch, positions = [], 0
        if not batch:
            longest = len(pairs[index][0]) + completion - 1
        batch.append(index)
        positions += completion
    if batch:
        yield batch


def _plan_groups(model: Any, groups: list[_PromptGroup], batch_tokens: int) -> Iterator[list[_PromptGroup]]:
    """Yield groups by falling prompt length, so that keys and values of all rows fit `batch_tokens`."""
    max_positions = _max_positions(model)
    batch: list[_PromptGroup] = []
    for group in sorted(groups, key=lambda g: (-len(g.prompt), g.rows)):
        candidate = [*batch, group]
        num_rows = sum(len(member.rows) for member in candidate)
        width = max(member.width for member in candidate)
        full = num_rows * (len(candidate[0].prompt) + width) > batch_tokens
        if batch and (full or num_rows * max(1, width) > max_positions):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def completion_batches(
    model: Any, pairs: Sequence[tuple[Tokens, Tokens]], *, batch_tokens: int
) -> Iterator[list[int]]:
    """Yield batches of pair indices whose logits fit the budget; longest first.

    Raises:
        DataError: an empty prompt or completion, or more tokens than the model reads.
    """
    check_lengths(model, pairs)
    yield from _plan_alone(model, pairs, range(len(pairs)), batch_tokens)


def _score_alone(model: Any, pairs: list[tuple[Tokens, Tokens]], pad_id: int) -> list[CompletionScore]:
    return scores_from_logits(_logits_after_prompt(model, pairs, pad_id), pairs)


def scores_from_logits(logits_NV: Tensor, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[CompletionScore]:
    """Score completions from the logits that predict their tokens, pair after pair.

    Raises:
        NumericalError: a log-probability is not finite.
    """
    targets = [token for _, completion in pairs for token in completion]
    values, matches = _target_scores(logits_NV, targets)
    scores, start = [], 0
    for _, completion in pairs:
        stop = start + len(completion)
        scores.append(CompletionScore(tuple(values[start:stop]), tuple(matches[start:stop])))
        start = stop
    return scores


def _logits_after_prompt(model: Any, pairs: Sequence[tuple[Tokens, Tokens]], pad_id: int) -> Tensor:
    """Return logits [N, V] that predict the completions' tokens, pair after pair."""
    fed = [[*prompt, *completion][:-1] for prompt, completion in pairs]
    ids_BL, mask_BL = _pad(fed, pad_id, model.device)
    keep_BL = torch.zeros_like(mask_BL)
    for row, (prompt, completion) in enumerate(pairs):
        keep_BL[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    # Padding sits on the right, where a causal model cannot see it; positions are then the default ones.
    output = model(input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False, logits_to_keep=keep_BL)
    return _as_rows(output.logits)


def _score_groups(
    model: Any, pairs: Sequence[tuple[Tokens, Tokens]], groups: list[_PromptGroup], pad_id: int
) -> dict[int, CompletionScore]:
    """Run the prompts once, then every completion on its prompt's keys and values."""
    rows = [(row, position) for position, group in enumerate(groups) for row in group.rows]
    read = read_prompts(
        model,
        [group.prompt for group in groups],
        pad_id=pad_id,
        following=max(group.width for group in groups),
        keep=any(len(pairs[row][1]) > 1 for row, _ in rows),
    )
    return _scores_after(model, pairs, rows, read, pad_id)


def scores_after_prompts(
    model: Any, read: PromptPass, choices: Sequence[tuple[Tokens, Sequence[Tokens]]], *, pad_id: int
) -> list[list[CompletionScore]]:
    """Score completions of prompts that were read; their keys and values stay as they are.

    Args:
        model: The model that read them.
        read: One row per prompt, keys and values kept.
        choices: Each prompt with its completions, at least one token each.
        pad_id: Any id of the vocabulary; padding is masked.

    Raises:
        NumericalError: a log-probability is not finite.
    """
    pairs = [(prompt, completion) for prompt, several in choices for completion in several]
    owners = [position for position, (_, several) in enumerate(choices) for _ in several]
    width = max(1, *(len(completion) - 1 for _, completion in pairs))
    most = max(1, _max_positions(model) // width)
    scores: dict[int, CompletionScore] = {}
    for start in range(0, len(pairs), most):
        rows = list(enumerate(owners))[start : start + most]
        scores |= _scores_after(model, pairs, rows, replace(read, cache=deepcopy(read.cache)), pad_id)
    found = iter(scores[row] for row in range(len(pairs)))
    return [[next(found) for _ in several] for _, several in choices]


def _scores_after(
    model: Any,
    pairs: Sequence[tuple[Tokens, Tokens]],
    rows: list[tuple[int, int]],
    read: PromptPass,
    pad_id: int,
) -> dict[int, CompletionScore]:
    """Score some pairs; `rows` holds (pair, prompt row)."""
    prompt_rows = torch.tensor([position for _, position in rows], device=model.device)
    firsts, first_matches = _target_scores(read.logits_BV, [pairs[row][1][0] for row, _ in rows], prompt_rows)
    continued = [(row, position) for row, position in rows if len(pairs[row][1]) > 1]
    later = _score_continuations(model, pairs, continued, read.mask_BL, read.cache, pad_id)
    scores = {}
    for (row, _), value, match in zip(rows, firsts, first_matches, strict=True):
        values, matches = later.get(row, ([], []))
        scores[row] = CompletionScore((value, *values), (match, *matches))
    return scores


def _score_continuations(
    model: Any,
    pairs: Sequence[tuple[Tokens, Tokens]],
    continued: list[tuple[int, int]],
    mask_BL: Tensor,
    cache: Any,
    pad_id: int,
) -> dict[int, tuple[list[float], list[bool]]]:
    """Score the tokens after the first of each completion; `continued` holds (pair, prompt row)."""
    if not continued:
        return {}
    prompt_rows = torch.tensor([position for _, position in continued], device=model.device)
    cache.batch_select_indices(prompt_rows)
    prompt_mask = mask_BL[prompt_rows]
    ids, mask = _pad([pairs[row][1][:-1] for row, _ in continued], pad_id, model.device)
    steps = torch.arange(ids.shape[1], device=model.device)
    logits, _ = cached_forward(
        model,
        cache,
        input_ids=ids,
        attention_mask=torch.cat([prompt_mask, mask], dim=1).long(),
        position_ids=prompt_mask.sum(dim=1, keepdim=True) + steps,
        logits_to_keep=mask,
    )
    targets = [token for row, _ in continued for token in pairs[row][1][1:]]
    values, matches = _target_scores(_as_rows(logits), targets)
    results, start = {}, 0
    for row, _ in continued:
        stop = start + len(pairs[row][1]) - 1
        results[row] = (values[start:stop], matches[start:stop])
        start = stop
    return results


def _target_scores(
    logits_NV: Tensor, targets: list[int], rows: Tensor | None = None
) -> tuple[list[float], list[bool]]:
    """Return log p and argmax agreement of `targets`; target i reads row `rows[i]`, by default row i."""
    targets_N = torch.tensor(targets, device=logits_NV.device)
    rows_N = torch.arange(len(targets), device=logits_NV.device) if rows is None else rows
    normalizers, best = [], []
    # The float32 copy of all rows would be the largest tensor of an evaluation.
    for part in torch.split(logits_NV, _SOFTMAX_ROWS):
        normalizers.append(torch.logsumexp(part.float(), dim=-1))
        best.append(part.argmax(dim=-1))
    values = logits_NV[rows_N, targets_N].float() - torch.cat(normalizers)[rows_N]
    if not torch.isfinite(values).all():
        raise NumericalError(
            "the model gives log-probabilities that are not finite",
            hint="its weights are damaged, or the learning rate was too high; try float32",
        )
    return values.tolist(), (torch.cat(best)[rows_N] == targets_N).tolist()


def _as_rows(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def _pad(sequences: Sequence[Tokens], pad_id: int, device: Any) -> tuple[Tensor, Tensor]:
    ids_BL, mask_BL = pad_batch(sequences, pad_id)
    return ids_BL.to(device), mask_BL.to(device)
