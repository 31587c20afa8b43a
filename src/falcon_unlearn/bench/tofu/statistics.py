"""Per-question losses and memorisation, each answer in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from falcon_unlearn.bench.tofu.encoding import EncodedQuestion
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.scoring import CompletionScore
from falcon_unlearn.models.token_statistics import TokenStatistics, completion_statistics

# Questions scored together. A batch is as wide as its longest answer, so questions of one width go together;
# measured on TOFU: 12 % fewer tokens than by prompt length.
_CHUNK = 8
_ANSWER_CHUNK = 64

Done = Callable[[int], None]


@dataclass(frozen=True)
class AnswerLosses:
    """Hold the mean negative log-probability per token, in nats, of each answer to one question."""

    answer: float
    paraphrased: float | None
    perturbed: tuple[float, ...]
    num_greedy: int = 0
    """Tokens at the start of the right answer that greedy decoding would say too."""


def answer_statistics(
    subject: Subject, questions: Sequence[EncodedQuestion], done: Done
) -> list[TokenStatistics]:
    """Score the right answers with what membership attacks need; `done` receives the questions finished."""
    results: dict[int, TokenStatistics] = {}
    lengths = [len(question.prompt) + len(question.answer) for question in questions]
    for part in _chunks(lengths, _ANSWER_CHUNK):
        pairs = [(questions[index].prompt, questions[index].answer) for index in part]
        scores = completion_statistics(
            subject.model, pairs, pad_id=subject.pad_id, batch_tokens=subject.batch_tokens
        )
        results.update(zip(part, scores, strict=True))
        done(len(part))
    return [results[index] for index in range(len(questions))]


def answer_losses(
    subject: Subject,
    questions: Sequence[EncodedQuestion],
    done: Done,
    answers: Sequence[TokenStatistics] | None = None,
) -> list[AnswerLosses]:
    """Score all answers of each question; `answers` are right answers already scored."""
    results: dict[int, AnswerLosses] = {}
    for part in _chunks([max(map(len, question.completions)) for question in questions], _CHUNK):
        asked = [questions[index].completions[0 if answers is None else 1 :] for index in part]
        pairs = [
            (questions[index].prompt, completion)
            for index, completions in zip(part, asked, strict=True)
            for completion in completions
        ]
        scores = iter(subject.score(pairs))
        for index, completions in zip(part, asked, strict=True):
            found = [next(scores) for _ in completions]
            if answers is not None:
                found.insert(0, answers[index])
            results[index] = _named(questions[index], found)
        done(len(part))
    return [results[index] for index in range(len(questions))]


def _named(question: EncodedQuestion, scores: Sequence[CompletionScore]) -> AnswerLosses:
    losses = [_loss(score) for score in scores]
    num_right = len(losses) - len(question.perturbed)
    paraphrased = losses[1] if question.paraphrased is not None else None
    return AnswerLosses(losses[0], paraphrased, tuple(losses[num_right:]), scores[0].num_greedy)


def _loss(score: CompletionScore) -> float:
    return -score.mean_log_probability


def _chunks(widths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield indices by falling width, `size` at a time."""
    order = sorted(range(len(widths)), key=lambda index: (-widths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]
