"""Held-out questions with answers: how probable the true answer is, and how much of it is produced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.memorisation import exact_memorisation, extraction_strength
from falcon_unlearn.evaluation.rouge import rouge_l_recall
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.examples import EncodedExample

# Enough for nearly all reference answers; a cut answer can only lower the recall.
_LONGEST_GENERATION = 96


@dataclass(frozen=True)
class AnswerScores:
    """Hold the measurements of one question; each lies between 0 and 1."""

    prompt: str
    expected: str
    completion: str
    probability: float
    """Geometric mean of the token probabilities of the true answer, its end token included."""
    rouge_l: float
    """ROUGE-L recall of the greedy answer."""
    extraction_strength: float
    """Without the end token, as below."""
    exact_memorisation: float


def has_answer(text: EncodedExample) -> bool:
    """Tell whether `text` is a prompt followed by an answer; plain text is not."""
    return True in text.answer_mask and not text.answer_mask[0]


def split_answer(text: EncodedExample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens before the first answer, and those of the first answer."""
    start = text.answer_mask.index(True)
    stop = start
    while stop < len(text.answer_mask) and text.answer_mask[stop]:
        stop += 1
    return text.input_ids[:start], text.input_ids[start:stop]


def answer_scores(
    subject: Subject, texts: Sequence[EncodedExample], *, maximum_new_tokens: int
) -> list[AnswerScores]:
    """Measure the first answer of each text; all texts must have one (`has_answer`).

    Greedy answers are at most as long as the longest true answer or `maximum_new_tokens`, whichever is more,
    within a fixed bound.
    """
    pairs = [split_answer(text) for text in texts]
    scores = subject.score(pairs)
    longest = max((len(answer) for _, answer in pairs), default=0)
    room = min(subject.maximum_tokens - len(prompt) for prompt, _ in pairs)
    limit = min(max(maximum_new_tokens, min(longest, _LONGEST_GENERATION)), room)
    completions = greedy_completions(subject, [prompt for prompt, _ in pairs], maximum_new_tokens=limit)
    results = []
    for (prompt, answer), score, completion in zip(pairs, scores, completions, strict=True):
        ends = len(answer) > 1 and answer[-1] in subject.end_ids
        matches = score.argmax_matches[:-1] if ends else score.argmax_matches
        expected = subject.tokenizer.decode(list(answer), skip_special_tokens=True).strip()
        results.append(
            AnswerScores(
                prompt=subject.tokenizer.decode(list(prompt), skip_special_tokens=True),
                expected=expected,
                completion=completion,
                probability=math.exp(score.mean_log_probability),
                rouge_l=rouge_l_recall(expected, completion),
                extraction_strength=extraction_strength(matches),
                exact_memorisation=exact_memorisation(matches),
            )
        )
    return results
