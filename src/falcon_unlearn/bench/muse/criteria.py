"""What one model says about the texts and questions of MUSE: C1, C2 and C4, one record per sample.

C1 VerbMem: the greedy continuation of a passage. C2 and C4 KnowMem: greedy answers after ten shots, and the
log-probability of the true answer. Probabilities are geometric means over tokens, log-probabilities in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.bench.muse.data import QuestionAnswer, VerbatimSample
from falcon_unlearn.bench.muse.prefix import continue_prompts, shared_beginning
from falcon_unlearn.bench.muse.verbatim import Locator
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from falcon_unlearn.metrics.rouge import RougeScores, rouge_scores

VERBATIM_TOKENS = 128
ANSWER_TOKENS = 32
CUTS = ("\n\n", "\nQuestion", "Question:")
"""What ends an answer: the model goes on with a question of its own."""


@dataclass(frozen=True)
class Generated:
    """Hold one greedy continuation and its likeness to the truth."""

    prompt: str
    truth: str
    generation: str
    rouge: RougeScores


@dataclass(frozen=True)
class VerbatimScore:
    """Hold C1 of one passage, generated and read out token by token."""

    generated: Generated
    exact_memorisation: float
    extraction_strength: float
    mean_log_probability: float


@dataclass(frozen=True)
class AnswerScore:
    """Hold KnowMem of one question."""

    generated: Generated
    mean_log_probability: float
    """Of the true answer, per token."""

    @property
    def probability(self) -> float:
        """Geometric mean of the token probabilities of the true answer."""
        return math.exp(self.mean_log_probability)


def verbatim_scores(
    subject: Subject,
    samples: Sequence[VerbatimSample],
    locator: Locator,
    *,
    use_stemmer: bool,
    maximum_new_tokens: int = VERBATIM_TOKENS,
) -> list[VerbatimScore]:
    """Continue each passage and compare with its first tokens (C1).

    Raises:
        DataError: A prompt and its continuation exceed what the model reads.
    """
    if not samples:
        return []
    truths = [_first_tokens(subject, sample.continuation, maximum_new_tokens) for sample in samples]
    pairs = []
    for sample, truth in zip(samples, truths, strict=True):
        prompt, (completion,) = subject.encode_completions(sample.prompt, [locator.joint(sample) + truth])
        pairs.append((prompt, completion))
    scores = subject.score(pairs)
    prompts = [subject.encode(sample.prompt) for sample in samples]
    # What scoring has shown to be greedy is not generated again, unless the border moved the prompt.
    begun = [
        completion[: score.num_greedy] if list(prompt) == list(whole) else []
        for (prompt, completion), whole, score in zip(pairs, prompts, scores, strict=True)
    ]
    texts = greedy_completions(subject, prompts, maximum_new_tokens=maximum_new_tokens, begun=begun)
    return [
        VerbatimScore(
            _generated(sample.prompt, truth, text, use_stemmer),
            exact_memorisation(score.argmax_matches),
            extraction_strength(score.argmax_matches),
            score.mean_log_probability,
        )
        for sample, truth, text, score in zip(samples, truths, texts, scores, strict=True)
    ]


def knowledge_scores(
    subject: Subject,
    questions: Sequence[QuestionAnswer],
    shots: Sequence[QuestionAnswer],
    *,
    use_stemmer: bool,
    maximum_new_tokens: int = ANSWER_TOKENS,
) -> list[AnswerScore]:
    """Answer each question after the shots, and score the true answer (C2, C4).

    The prompt ends in `Answer:` without the space of the original: most tokenizers would merge that space
    with the answer.

    Raises:
        DataError: A prompt and its answer exceed what the model reads.
    """
    if not questions:
        return []
    prompts = [knowledge_prompt(item, shots) for item in questions]
    log_probabilities = _answer_log_probabilities(subject, prompts, [item.answer for item in questions])
    texts = continue_prompts(
        subject,
        [subject.encode(prompt) for prompt in prompts],
        maximum_new_tokens=maximum_new_tokens,
        stops=CUTS,
    )
    return [
        AnswerScore(_generated(prompt, item.answer, cut_answer(text), use_stemmer), value)
        for prompt, item, text, value in zip(prompts, questions, texts, log_probabilities, strict=True)
    ]


def knowledge_prompt(item: QuestionAnswer, shots: Sequence[QuestionAnswer]) -> str:
    """Word the shots and one question."""
    worded = [f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots]
    return "".join(worded) + f"Question: {item.question}\nAnswer:"


def cut_answer(text: str) -> str:
    """Return a generated answer up to where the model starts something new."""
    for cut in CUTS:
        text = text.split(cut)[0]
    return text.strip()


def text_probabilities(subject: Subject, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the geometric mean of the token probabilities of each text, its first token being context."""
    scores = subject.score([(text[:1], text[1:]) for text in texts])
    return [math.exp(score.mean_log_probability) for score in scores]


def _answer_log_probabilities(
    subject: Subject, prompts: Sequence[str], answers: Sequence[str]
) -> list[float]:
    encoded = [
        subject.encode_completions(prompt, [f" {answer.lstrip()}"])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    # Scoring the question along with the answer makes the shots one prompt, read once for all.
    shared = max(1, shared_beginning([prompt for prompt, _ in encoded]))
    pairs = [(prompt[:shared], [*prompt[shared:], *completions[0]]) for prompt, completions in encoded]
    values = []
    for (_, (completion,)), score in zip(encoded, subject.score(pairs), strict=True):
        answer_part = score.token_log_probabilities[-len(completion) :]
        values.append(sum(answer_part) / len(answer_part))
    return values


def _generated(prompt: str, truth: str, generation: str, use_stemmer: bool) -> Generated:
    truth, generation = truth.strip(), generation.strip()
    return Generated(prompt, truth, generation, rouge_scores(truth, generation, use_stemmer=use_stemmer))


def _first_tokens(subject: Subject, text: str, count: int) -> str:
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= count else str(subject.tokenizer.decode(ids[:count]))
