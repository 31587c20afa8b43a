"""One measurement at a time: items in, the record of one evaluation set out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from falcon_unlearn.config.evaluation import EvaluationSettings, SetRole
from falcon_unlearn.evaluation.answers import AnswerScores, answer_scores, has_answer
from falcon_unlearn.evaluation.choice import chance_level, letter_scores, text_accuracies
from falcon_unlearn.evaluation.divergence import text_divergences
from falcon_unlearn.evaluation.generation import greedy_completions, is_correct
from falcon_unlearn.evaluation.perplexity import text_scores
from falcon_unlearn.evaluation.sets import AnyItem, ChoiceItem, EvaluationSet, GenerationItem
from falcon_unlearn.evaluation.subject import OriginalWeights, Subject
from falcon_unlearn.evaluation.summary import ItemValue, Summariser, Unit, exponential, item_records
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.results import EvaluationItem, GenerationSample, Metric, SetResult

Label = Literal["before", "after", "single"]
Kind = Literal["choice", "generation", "perplexity", "divergence", "answer"]

_ANSWER_METRICS = {
    "answer_probability": "probability",
    "rouge_l": "rouge_l",
    "extraction_strength": "extraction_strength",
    "exact_memorisation": "exact_memorisation",
}


@dataclass(frozen=True)
class HeldOutCorpus:
    """Hold the share of one corpus that training did not see."""

    name: str
    role: Literal["forget", "retain"]
    texts: tuple[EncodedExample, ...]


@dataclass(frozen=True)
class Context:
    """Hold what every measurement of one evaluation shares."""

    subject: Subject
    settings: EvaluationSettings
    label: Label
    seed: int
    original: OriginalWeights | None

    def summariser(self, name: str, role: SetRole) -> Summariser:
        """Return the maker of metrics for the set `name`."""
        return Summariser(name, role, self.seed, self.settings.confidence, self.settings.resamples)


@dataclass(frozen=True)
class Texts:
    """Name the texts of one perplexity or divergence measurement."""

    name: str
    role: SetRole
    ids: list[str]
    clusters: list[str]
    tokens: list[tuple[int, ...]]


def measure_choice(context: Context, entry: EvaluationSet) -> SetResult:
    """Measure accuracy by option text and by letter."""
    items = [item for item in entry.items if isinstance(item, ChoiceItem)]
    summary = context.summariser(entry.settings.name, entry.settings.role)
    chance = chance_level(items)
    by_text = _values(items, text_accuracies(context.subject, items))
    metrics = [summary.share("accuracy_text", by_text, chance=chance)]
    records = item_records("accuracy_text", by_text)
    if context.settings.scores_letters(entry.settings):
        scores = letter_scores(context.subject, items)
        by_letter = _values(items, [score.accuracy for score in scores])
        metrics.append(summary.share("accuracy_letter", by_letter, chance=chance))
        records += item_records("accuracy_letter", by_letter)
        masses = _values(items, [score.mass for score in scores])
        metrics.append(summary.ratio("letter_mass", masses, unit="share"))
    return SetResult(
        name=summary.set_name,
        role=summary.role,
        kind="choice",
        num_items=len(items),
        metrics=metrics,
        items=records,
    )


def measure_generation(context: Context, entry: EvaluationSet) -> SetResult:
    """Measure the share of free answers that patterns accept."""
    items = [item for item in entry.items if isinstance(item, GenerationItem)]
    summary = context.summariser(entry.settings.name, entry.settings.role)
    completions = greedy_completions(
        context.subject,
        [context.subject.encode(item.prompt) for item in items],
        maximum_new_tokens=context.settings.maximum_new_tokens,
    )
    correct = [is_correct(item, completion) for item, completion in zip(items, completions, strict=True)]
    values = _values(items, [float(value) for value in correct])
    samples = [
        GenerationSample(prompt=item.prompt, completion=completion, expected=item.answer, correct=right)
        for item, completion, right in zip(items, completions, correct, strict=True)
    ]
    return SetResult(
        name=summary.set_name,
        role=summary.role,
        kind="generation",
        num_items=len(items),
        metrics=[summary.share("accuracy_generation", values)],
        samples=_spread(samples, context.settings.sample_generations),
        items=item_records("accuracy_generation", values),
    )


def measure_perplexity(context: Context, texts: Texts) -> SetResult:
    """Measure perplexity per token, per word and per byte."""
    summary = context.summariser(texts.name, texts.role)
    scores = text_scores(context.subject, texts.tokens)

    def metric(name: str, unit: Unit, counts: list[int]) -> Metric:
        values = _ratios(texts, [score.negative_log_likelihood for score in scores], counts)
        return summary.ratio(name, values, unit=unit, transform=exponential)

    per_token = [score.num_tokens for score in scores]
    losses = _ratios(texts, [score.negative_log_likelihood for score in scores], per_token)
    return SetResult(
        name=texts.name,
        role=texts.role,
        kind="perplexity",
        num_items=len(scores),
        metrics=[
            metric("perplexity", "per token", per_token),
            metric("perplexity_word", "ratio", [score.num_words for score in scores]),
            metric("perplexity_byte", "ratio", [score.num_bytes for score in scores]),
        ],
        items=item_records("perplexity", losses, transform=exponential),
    )


def measure_divergence(context: Context, texts: Texts) -> SetResult:
    """Measure KL(original || changed) per token; without an original both are the same model, so it is 0."""
    summary = context.summariser(texts.name, texts.role)
    if context.original is None:
        metric = summary.fixed("divergence", 0.0, unit="nats per token", num_items=len(texts.ids))
        return SetResult(
            name=texts.name, role=texts.role, kind="divergence", num_items=len(texts.ids), metrics=[metric]
        )
    scores = text_divergences(
        context.subject,
        texts.tokens,
        original=context.original,
        maximum_tokens=context.settings.maximum_divergence_tokens,
    )
    values = _ratios(texts, [score.total for score in scores], [score.num_tokens for score in scores])
    return SetResult(
        name=texts.name,
        role=texts.role,
        kind="divergence",
        num_items=len(values),
        metrics=[summary.ratio("divergence", values, unit="nats per token")],
        items=item_records("divergence", values),
    )


def measure_answers(context: Context, corpus: HeldOutCorpus, name: str) -> SetResult:
    """Measure how well the true answers of held-out questions are known."""
    chosen = [(number, text) for number, text in enumerate(corpus.texts, start=1) if has_answer(text)]
    scores = answer_scores(
        context.subject,
        [text for _, text in chosen],
        maximum_new_tokens=context.settings.maximum_new_tokens,
    )
    summary = context.summariser(name, corpus.role)
    metrics: list[Metric] = []
    records: list[EvaluationItem] = []
    for metric_name, attribute in _ANSWER_METRICS.items():
        values = [
            ItemValue(f"held-out-{number}", "", getattr(score, attribute))
            for (number, _), score in zip(chosen, scores, strict=True)
        ]
        metrics.append(summary.share(metric_name, values))
        records += item_records(metric_name, values)
    return SetResult(
        name=name,
        role=corpus.role,
        kind="answer",
        num_items=len(chosen),
        metrics=metrics,
        samples=_spread([_sample(score) for score in scores], context.settings.sample_generations),
        items=records,
    )


def _sample(score: AnswerScores) -> GenerationSample:
    return GenerationSample(
        prompt=score.prompt,
        completion=score.completion,
        expected=score.expected,
        correct=score.rouge_l == 1.0,
    )


def _values(items: Sequence[AnyItem], values: Sequence[float]) -> list[ItemValue]:
    return [ItemValue(item.id, item.cluster, value) for item, value in zip(items, values, strict=True)]


def _ratios(texts: Texts, totals: Sequence[float], counts: Sequence[int]) -> list[ItemValue]:
    """Pair texts with their sums; texts after the token limit of the divergence have none."""
    return [
        ItemValue(identity, cluster, total, float(count))
        for identity, cluster, total, count in zip(texts.ids, texts.clusters, totals, counts, strict=False)
    ]


def _spread(samples: list[GenerationSample], count: int) -> list[GenerationSample]:
    """Choose `count` samples evenly over the set, so that files sorted by topic are shown whole."""
    if count >= len(samples):
        return samples
    return [samples[(index * len(samples)) // count] for index in range(count)]
