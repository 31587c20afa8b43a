"""Free generation, greedy or sampled, and its judgement by patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.patterns import MAXIMUM_TEXT
from falcon_unlearn.evaluation.sets import GenerationItem
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.decoding import greedy_tokens
from falcon_unlearn.models.text import length_buckets, pad_batch


def greedy_completions(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    maximum_new_tokens: int,
    begun: Sequence[Sequence[int]] | None = None,
    first_line: bool = False,
) -> list[str]:
    """Continue prompts greedily, whatever sampling settings the model carries, up to an end token.

    Args:
        subject: Model and tokenizer.
        prompts: Token ids.
        maximum_new_tokens: Longest completion.
        begun: First tokens of each completion, where scoring has shown that they are the most probable ones;
            they are not generated again.
        first_line: Stop where the first line with content ends; `judged_text` is the same.

    Raises:
        DataError: a prompt and its answer exceed what the model reads.
    """
    _check_lengths(subject, prompts, maximum_new_tokens)
    starts = [list(start)[:maximum_new_tokens] for start in begun or [()] * len(prompts)]
    ended = [any(token in subject.end_ids for token in start) for start in starts]
    answers = dict(enumerate(starts))
    going = [index for index in range(len(prompts)) if not ended[index]]
    lengths = [len(prompts[index]) + maximum_new_tokens for index in going]
    for bucket in length_buckets(lengths, subject.batch_tokens):
        batch = [going[place] for place in bucket]
        found = greedy_tokens(
            subject.model,
            [[*prompts[index], *starts[index]] for index in batch],
            [maximum_new_tokens - len(starts[index]) for index in batch],
            end_ids=subject.end_ids,
            pad_id=subject.pad_id,
            is_complete=partial(_ends_a_line, subject.tokenizer) if first_line else None,
        )
        answers.update({index: [*starts[index], *ids] for index, ids in zip(batch, found, strict=True)})
    return [_text(subject, answers[index]) for index in range(len(prompts))]


def sampled_completions(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    maximum_new_tokens: int,
    num_samples: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[str]]:
    """Draw several continuations of each prompt; the global random state is left as it was.

    Args:
        subject: Model and tokenizer.
        prompts: Token ids of each prompt.
        maximum_new_tokens: Longest continuation.
        num_samples: Continuations of each prompt.
        temperature: Divides the logits.
        top_p: Draw among the likeliest tokens that together have this probability.
        seed: Seed of the draws. They also depend on which prompts share a batch.

    Raises:
        DataError: a prompt and its answer exceed what the model reads.
    """
    config = _config(
        subject,
        maximum_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        num_return_sequences=num_samples,
    )
    device = subject.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _completions(subject, prompts, config)


def _ends_a_line(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Tell whether a line break follows content: decoded only where the newest token holds a line break."""
    if "\n" not in tokenizer.decode([ids[-1]]):
        return False
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)).lstrip()
    return "\n" in text


def _config(subject: Subject, maximum_new_tokens: int, **settings: Any) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=maximum_new_tokens,
        pad_token_id=subject.pad_id,
        eos_token_id=sorted(subject.end_ids) or None,
        **settings,
    )


def _completions(
    subject: Subject, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[list[str]]:
    limit, copies = config.max_new_tokens, config.num_return_sequences or 1
    _check_lengths(subject, prompts, limit)
    completions: list[list[str]] = [[] for _ in prompts]
    with _generation_config(subject.model, config):
        lengths = [(len(prompt) + limit) * copies for prompt in prompts]
        for batch in length_buckets(lengths, subject.batch_tokens):
            answers = _generate(subject, [prompts[index] for index in batch], config)
            for row, ids in enumerate(answers):
                completions[batch[row // copies]].append(_text(subject, ids))
    return completions


def _check_lengths(subject: Subject, prompts: Sequence[Sequence[int]], maximum_new_tokens: int) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt or len(prompt) + maximum_new_tokens > subject.maximum_tokens:
            raise DataError(
                f"prompt {index} has {len(prompt)} tokens; with {maximum_new_tokens} new ones it must stay "
                f"between 1 and {subject.maximum_tokens}",
                hint="shorten the prompt or lower evaluation.maximum_new_tokens",
            )


def _text(subject: Subject, ids: Sequence[int]) -> str:
    length = next((place for place, token in enumerate(ids) if token in subject.end_ids), len(ids))
    return str(subject.tokenizer.decode(list(ids[:length]), skip_special_tokens=True))


def judged_text(completion: str, *, first_line: bool = True) -> str:
    """Return the part of a completion that is judged: its first line with content, cut at a fixed length."""
    text = completion.strip()
    if first_line and text:
        text = text.splitlines()[0]
    return text[:MAXIMUM_TEXT]


def is_correct(item: GenerationItem, completion: str, *, first_line: bool = True) -> bool:
    """Tell whether an accepted pattern occurs before any rejected one."""
    return is_accepted(item.accept, item.reject, judged_text(completion, first_line=first_line))


def is_accepted(accept: Sequence[re.Pattern[str]], reject: Sequence[re.Pattern[str]], text: str) -> bool:
    """Tell whether one of `accept` occurs in `text` before any of `reject`."""
    accepted, rejected = _first_match(accept, text), _first_match(reject, text)
    return accepted is not None and (rejected is None or accepted < rejected)


def _first_match(patterns: Sequence[re.Pattern[str]], text: str) -> int | None:
    starts = [match.start() for pattern in patterns if (match := pattern.search(text))]
    return min(starts, default=None)


def _generate(subject: Subject, prompts: list[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    ids_BL, mask_BL = pad_batch(prompts, subject.pad_id, "left")
    device = subject.model.device
    with torch.inference_mode():
        output = subject.model.generate(
            input_ids=ids_BL.to(device), attention_mask=mask_BL.long().to(device), generation_config=config
        )
    answers: list[list[int]] = output[:, ids_BL.shape[1] :].tolist()
    return answers


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    # transformers fills every value left open, sampling and penalties included, from the model's own.
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept
