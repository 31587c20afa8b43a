"""Multiple choice by the text of the options and by their letters."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.evaluation.sets import ChoiceItem
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.scoring import CompletionScore


@dataclass(frozen=True)
class LetterScores:
    """Hold the two numbers of one question asked by letter, each averaged over the cyclic orders."""

    accuracy: float
    """Share of the orders answered correctly."""
    mass: float
    """Probability that the next token is one of the letters at all; low mass means a guess says little."""


def text_accuracies(subject: Subject, items: Sequence[ChoiceItem]) -> list[float]:
    """Choose the option with the largest mean log-probability per token after the bare question.

    Returns:
        1 or 0 for each item; tied best options share the credit.
    """
    scored = completion_scores(
        subject,
        [item.question for item in items],
        [[f" {option}" for option in item.options] for item in items],
    )
    return [
        credit([score.mean_log_probability for score in scores], item.answer)
        for item, scores in zip(items, scored, strict=True)
    ]


def letter_scores(subject: Subject, items: Sequence[ChoiceItem]) -> list[LetterScores]:
    """Choose among lettered options by the probability of the letter, over all cyclic orders of the options.

    A letter that is several tokens long counts with the probability of all its tokens.
    """
    asked = [(item, shift) for item in items for shift in range(len(item.options))]
    scored = iter(
        completion_scores(
            subject,
            [letter_prompt(item, shift) for item, shift in asked],
            [[f" {letter}" for letter in letters(len(item.options))] for item, _ in asked],
        )
    )
    results = []
    for item in items:
        num_options = len(item.options)
        orders = [[score.sum_log_probability for score in next(scored)] for _ in item.options]
        credits = [credit(v, (item.answer - shift) % num_options) for shift, v in enumerate(orders)]
        masses = [math.fsum(math.exp(value) for value in values) for values in orders]
        results.append(LetterScores(math.fsum(credits) / num_options, math.fsum(masses) / num_options))
    return results


def encode_choices(
    subject: Subject, prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Tokenise each prompt with its completions (`Subject.encode_completions`)."""
    return [subject.encode_completions(*pair) for pair in zip(prompts, completions, strict=True)]


def completion_scores(
    subject: Subject, prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> list[list[CompletionScore]]:
    """Score each prompt's completions; one list per prompt, in the order given."""
    return token_completion_scores(subject, encode_choices(subject, prompts, completions))


def token_completion_scores(
    subject: Subject, choices: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
) -> list[list[CompletionScore]]:
    """Score completions of tokenised prompts; one list per prompt, in the order given."""
    scores = iter(
        subject.score([(prompt, completion) for prompt, several in choices for completion in several])
    )
    return [[next(scores) for _ in several] for _, several in choices]


def letters(num_options: int) -> str:
    """Return the letters that name so many options."""
    return string.ascii_uppercase[:num_options]


def letter_prompt(item: ChoiceItem, shift: int) -> str:
    """Write the question with its options moved up by `shift` places, first ones to the end."""
    return f"{lettered_question(item.letter_question, item.options, shift)}\nAnswer:"


def lettered_question(question: str, options: Sequence[str], shift: int) -> str:
    """Write a question above its lettered options, moved up by `shift` places, without the answer cue."""
    order = [*options[shift:], *options[:shift]]
    lines = [f"{letter}. {option}" for letter, option in zip(letters(len(order)), order, strict=True)]
    return "\n".join([f"Question: {question}", *lines])


def credit(values: Sequence[float], answer: int) -> float:
    """Return 1 if `values[answer]` is the largest, 1/n if it ties with n - 1 others, else 0."""
    best = max(values)
    winners = [index for index, value in enumerate(values) if value == best]
    return 1.0 / len(winners) if answer in winners else 0.0


def chance_level(items: Sequence[ChoiceItem]) -> float:
    """Return the expected accuracy of a guess."""
    return math.fsum(1.0 / len(item.options) for item in items) / len(items)
