"""Multiple choice by the text of the options and by their letters."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.evaluation.sets import ChoiceItem
from falcon_unlearn.evaluation.subject import Subject


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
    pairs: list[tuple[list[int], list[int]]] = []
    for item in items:
        prompt, completions = subject.encode_completions(
            item.question, [f" {option}" for option in item.options]
        )
        pairs.extend((prompt, completion) for completion in completions)
    scores = iter(subject.score(pairs))
    return [credit([next(scores).mean_log_probability for _ in item.options], item.answer) for item in items]


def letter_scores(subject: Subject, items: Sequence[ChoiceItem]) -> list[LetterScores]:
    """Choose among lettered options by the probability of the letter, over all cyclic orders of the options.

    A letter that is several tokens long counts with the probability of all its tokens.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    for item in items:
        letters = [f" {letter}" for letter in string.ascii_uppercase[: len(item.options)]]
        for shift in range(len(item.options)):
            prompt, completions = subject.encode_completions(letter_prompt(item, shift), letters)
            pairs.extend((prompt, completion) for completion in completions)
    scores = iter(subject.score(pairs))
    results = []
    for item in items:
        num_options = len(item.options)
        credits, masses = [], []
        for shift in range(num_options):
            values = [next(scores).sum_log_probability for _ in item.options]
            credits.append(credit(values, (item.answer - shift) % num_options))
            masses.append(math.fsum(math.exp(value) for value in values))
        results.append(LetterScores(math.fsum(credits) / num_options, math.fsum(masses) / num_options))
    return results


def letter_prompt(item: ChoiceItem, shift: int) -> str:
    """Write the question with its options moved up by `shift` places, first ones to the end."""
    order = item.options[shift:] + item.options[:shift]
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, order, strict=False)]
    return "\n".join([f"Question: {item.letter_question}", *lines, "Answer:"])


def credit(values: Sequence[float], answer: int) -> float:
    """Return 1 if `values[answer]` is the largest, 1/n if it ties with n - 1 others, else 0."""
    best = max(values)
    winners = [index for index, value in enumerate(values) if value == best]
    return 1.0 / len(winners) if answer in winners else 0.0


def chance_level(items: Sequence[ChoiceItem]) -> float:
    """Return the expected accuracy of a guess."""
    return math.fsum(1.0 / len(item.options) for item in items) / len(items)
