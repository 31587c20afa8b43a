"""Greedy answers to TOFU questions, and how repetitive they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from falcon_unlearn.bench.tofu.encoding import EncodedQuestion
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.subject import Subject

_ROWS = 64


def greedy_answers(
    subject: Subject,
    questions: Sequence[EncodedQuestion],
    *,
    maximum_new_tokens: int,
    done: Callable[[int], None],
    num_greedy: Sequence[int] | None = None,
) -> list[str]:
    """Answer each prompt greedily up to an end token; without surrounding blanks.

    Where scoring has shown how far greedy decoding agrees with the right answer, it goes on from there: a
    model that knows an answer by heart generates nothing. Questions with similarly much left of their answers
    are generated together, since a batch runs until its last row ends.

    Args:
        subject: Model and tokenizer.
        questions: What is asked.
        maximum_new_tokens: Longest answer.
        done: Receives the questions finished.
        num_greedy: Tokens at the start of each right answer that greedy decoding would say too.

    Raises:
        DataError: prompt and answer exceed what the model reads.
    """
    agreed = num_greedy or [0] * len(questions)
    left = [len(question.answer) - count for question, count in zip(questions, agreed, strict=True)]
    order = sorted(range(len(questions)), key=lambda index: (-left[index], index))
    answers = [""] * len(questions)
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        prompts = [questions[index].prompt for index in part]
        room = len(part) * (max(map(len, prompts)) + maximum_new_tokens)
        batch = Subject(subject.model, subject.tokenizer, batch_tokens=room)
        begun = [questions[index].answer[: agreed[index]] for index in part]
        found = greedy_completions(batch, prompts, maximum_new_tokens=maximum_new_tokens, begun=begun)
        for index, text in zip(part, found, strict=True):
            answers[index] = text.strip()
        done(len(part))
    return answers


def distinct_share(text: str, size: int) -> float:
    """Return the share of different runs of `size` words; 0 without any such run.

    An empty or one-word answer is no fluent one, so it scores 0 rather than being left out.
    """
    words = text.lower().split()
    runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def repeated_share(text: str, size: int) -> float:
    """Return the share of runs of `size` words that occurred before in the same text; 0 without any."""
    return 1.0 - distinct_share(text, size) if len(text.split()) >= size else 0.0
