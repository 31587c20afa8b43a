"""Free generation, greedy or sampled, and its judgement by patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.patterns import MAXIMUM_TEXT
from falcon_unlearn.evaluation.sets import GenerationItem
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.decoding import continued, greedy_tokens, nucleus_tokens
from falcon_unlearn.models.prompts import read_prompts
from falcon_unlearn.models.scoring import CompletionScore, check_lengths, scores_after_prompts
from falcon_unlearn.models.text import length_buckets


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


def chosen_and_greedy(
    subject: Subject,
    choices: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    maximum_new_tokens: int,
) -> tuple[list[list[CompletionScore]], list[str]]:
    """Score completions of prompts, and continue the same prompts greedily for one line; each is read once.

    Args:
        subject: Model and tokenizer.
        choices: Token ids of each prompt with those of its completions.
        maximum_new_tokens: Longest greedy answer.

    Returns:
        The scores of every prompt's completions, and its greedy answer.

    Raises:
        DataError: a prompt with its answer or a completion exceeds what the model reads.
        NumericalError: a log-probability is not finite.
    """
    _check_lengths(subject, [prompt for prompt, _ in choices], maximum_new_tokens)
    check_lengths(subject.model, [(prompt, one) for prompt, several in choices for one in several])
    scores: dict[int, list[CompletionScore]] = {}
    answers: dict[int, str] = {}
    sizes = [
        (len(prompt) + max(maximum_new_tokens, *map(len, several))) * (len(several) + 1)
        for prompt, several in choices
    ]
    with torch.inference_mode():
        for batch in length_buckets(sizes, subject.batch_tokens):
            asked = [choices[index] for index in batch]
            found, texts = _chosen_and_greedy(subject, asked, maximum_new_tokens)
            scores.update(zip(batch, found, strict=True))
            answers.update(zip(batch, texts, strict=True))
    return [scores[index] for index in range(len(choices))], [answers[i] for i in range(len(choices))]


def _chosen_and_greedy(
    subject: Subject, asked: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], limit: int
) -> tuple[list[list[CompletionScore]], list[str]]:
    model, pad_id = subject.model, subject.pad_id
    following = max(limit, *(len(completion) for _, several in asked for completion in several))
    read = read_prompts(model, [prompt for prompt, _ in asked], pad_id=pad_id, following=following)
    scores = scores_after_prompts(model, read, asked, pad_id=pad_id)
    ids = continued(
        model,
        read,
        [limit] * len(asked),
        end_ids=subject.end_ids,
        is_complete=partial(_ends_a_line, subject.tokenizer),
    )
    return scores, [_text(subject, answer) for answer in ids]


def sampled_completions(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    maximum_new_tokens: int,
    num_samples: int,
    temperature: float,
    top_p: float,
    seed: int,
    first_line: bool = False,
) -> list[list[str]]:
    """Draw several continuations of each prompt, which is read once; the global random state is not touched.

    Args:
        subject: Model and tokenizer.
        prompts: Token ids of each prompt.
        maximum_new_tokens: Longest continuation.
        num_samples: Continuations of each prompt.
        temperature: Divides the logits.
        top_p: Draw among the likeliest tokens that together have this probability.
        seed: Seed of the draws. They also depend on which prompts share a batch.
        first_line: Stop where the first line with content ends; `judged_text` is the same.

    Raises:
        DataError: a prompt and its answer exceed what the model reads.
    """
    _check_lengths(subject, prompts, maximum_new_tokens)
    generator = torch.Generator(device=subject.model.device).manual_seed(seed)
    pick = partial(nucleus_tokens, temperature=temperature, top_p=top_p, generator=generator)
    completions: list[list[str]] = [[] for _ in prompts]
    lengths = [(len(prompt) + maximum_new_tokens) * num_samples for prompt in prompts]
    with torch.inference_mode():
        for batch in length_buckets(lengths, subject.batch_tokens):
            asked = [prompts[index] for index in batch]
            read = read_prompts(
                subject.model, asked, pad_id=subject.pad_id, following=maximum_new_tokens
            ).repeated(num_samples)
            drawn = continued(
                subject.model,
                read,
                [maximum_new_tokens] * (len(batch) * num_samples),
                end_ids=subject.end_ids,
                is_complete=partial(_ends_a_line, subject.tokenizer) if first_line else None,
                pick=pick,
            )
            for row, ids in enumerate(drawn):
                completions[batch[row // num_samples]].append(_text(subject, ids))
    return completions


def _ends_a_line(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Tell whether a line break follows content: decoded only where the newest token holds a line break."""
    if "\n" not in tokenizer.decode([ids[-1]]):
        return False
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)).lstrip()
    return "\n" in text


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
