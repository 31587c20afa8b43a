"""Memorisation and membership: what losses betray about the forget answers. No recovery attack.

Scores are those of `metrics.membership`: higher means less likely learnt. Shapes: N texts.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.linalg.intervals import percentile_interval
from falcon_unlearn.metrics.auc import membership_auc, resampled_aucs
from falcon_unlearn.metrics.membership import (
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from falcon_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from falcon_unlearn.models.token_statistics import TokenStatistics, completion_statistics
from falcon_unlearn.results_audit import (
    Estimate,
    MembershipScore,
    MemorisationResult,
    ModelMemorisation,
    ModelRole,
)

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]
MIN_K = 0.2
WRONG_OPTIONS = "the same questions with one of their wrong options"
_FALSE_POSITIVES = 0.01
_RESAMPLES = 1000
_FOLDS = 5
_NAMES = ("loss", "zlib", "min_k", "min_k_plus_plus")


@dataclass(frozen=True)
class Sample:
    """Hold one text: what stands before it, and the part that is scored."""

    prompt: str
    answer: str
    cluster: str


@dataclass(frozen=True)
class Samples:
    """Hold texts that were learnt, and others of the same kind that were not."""

    members: tuple[Sample, ...]
    others: tuple[Sample, ...]
    description: str = WRONG_OPTIONS


@dataclass(frozen=True)
class TextScores:
    """Hold one model's numbers, text by text; members first, then the others."""

    scores: Mapping[str, FloatArray]
    """Name of a membership score to its values, N."""
    extraction_strength: FloatArray
    exact_memorisation: FloatArray


def fact_samples(facts: Sequence[Fact], *, seed: int, chat_template: bool, tokenizer: Any) -> Samples:
    """Ask each fact for its right option, and for one wrong option as the text that was not learnt."""
    prompting = Prompting(tokenizer, chat_template)
    members: list[Sample] = []
    others: list[Sample] = []
    for fact in facts:
        question = prompting.text_question(fact)
        wrong = random.Random(f"{seed}:membership:{fact.id}").choice(fact.distractors)
        for option, samples in ((fact.answer, members), (wrong, others)):
            completion = question.completions[fact.options.index(option)]
            samples.append(Sample(question.prompt, completion, fact.cluster))
    return Samples(tuple(members), tuple(others))


def score_texts(subject: Subject, samples: Samples) -> TextScores:
    """Run the model once over every text.

    Raises:
        DataError: A text is longer than the model reads.
        NumericalError: A log-probability is not finite.
    """
    texts = (*samples.members, *samples.others)
    pairs = []
    for text in texts:
        prompt, (answer,) = subject.encode_completions(text.prompt, [text.answer])
        pairs.append((prompt, answer))
    statistics = completion_statistics(
        subject.model, pairs, pad_id=subject.pad_id, batch_tokens=subject.batch_tokens
    )
    rows = [_scores(found, text.answer.strip()) for found, text in zip(statistics, texts, strict=True)]
    return TextScores(
        {name: np.array([row[name] for row in rows]) for name in _NAMES},
        np.array([extraction_strength(found.argmax_matches) for found in statistics]),
        np.array([exact_memorisation(found.argmax_matches) for found in statistics]),
    )


def _scores(found: TokenStatistics, text: str) -> dict[str, float]:
    values = found.token_log_probabilities
    loss = loss_score(values)
    return {
        "loss": loss,
        "zlib": zlib_score(loss, text),
        "min_k": min_k_score(values, share=MIN_K),
        "min_k_plus_plus": min_k_plus_plus_score(values, found.means, found.variances, share=MIN_K),
    }


def memorisation_result(
    samples: Samples, scores: Mapping[ModelRole, TextScores], *, seed: int
) -> MemorisationResult:
    """Summarise the models; intervals resample clusters, the same ones for all models.

    With a null model at hand its losses are the reference of the others (Carlini et al. 2022).
    """
    draws = _Draws(samples, seed)
    reference = scores.get("null")
    models = []
    for role, found in scores.items():
        values = dict(found.scores)
        if reference is not None and role != "null":
            pairs = zip(found.scores["loss"], reference.scores["loss"], strict=True)
            values["reference"] = np.array([reference_score(own, other) for own, other in pairs])
        models.append(_model(role, found, values, draws))
    return MemorisationResult(
        num_members=len(samples.members),
        num_others=len(samples.others),
        others=samples.description,
        blind=blind_baseline(samples, seed=seed),
        models=models,
    )


def _model(
    role: ModelRole, found: TextScores, values: Mapping[str, FloatArray], draws: _Draws
) -> ModelMemorisation:
    count = draws.num_members
    return ModelMemorisation(
        model=role,
        extraction_strength=draws.mean_of_members(found.extraction_strength),
        exact_memorisation=draws.mean_of_members(found.exact_memorisation),
        extraction_strength_others=draws.mean_of_others(found.extraction_strength),
        membership=[
            MembershipScore.model_validate(
                {
                    "name": name,
                    "auc": draws.auc(scores_N),
                    "true_positive_rate": true_positive_rate(scores_N[:count], scores_N[count:]),
                }
            )
            for name, scores_N in values.items()
        ],
    )


class _Draws:
    """Resample clusters: members and others of one cluster stay together."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.num_members = len(samples.members)
        clusters = [sample.cluster for sample in (*samples.members, *samples.others)]
        names = sorted(set(clusters))
        places = {name: np.flatnonzero(np.array([c == name for c in clusters])) for name in names}
        generator = np.random.default_rng([seed, len(names)])
        self._members: list[Rows] = []
        self._others: list[Rows] = []
        for _ in range(_RESAMPLES):
            chosen = generator.integers(0, len(names), size=len(names))
            rows = np.concatenate([places[names[index]] for index in chosen])
            mine, theirs = rows[rows < self.num_members], rows[rows >= self.num_members]
            if mine.size and theirs.size:
                self._members.append(mine)
                self._others.append(theirs - self.num_members)

    def auc(self, values_N: FloatArray) -> Estimate:
        """Return the AUC of members against others with its percentile interval."""
        members, others = values_N[: self.num_members], values_N[self.num_members :]
        draws = zip(self._members, self._others, strict=True)
        low, high = percentile_interval(resampled_aucs(members, others, draws))
        return Estimate(value=membership_auc(members, others), low=low, high=high)

    def mean_of_members(self, values_N: FloatArray) -> Estimate:
        """Return the mean of the members with its percentile interval."""
        return _mean(values_N[: self.num_members], self._members)

    def mean_of_others(self, values_N: FloatArray) -> Estimate:
        """Return the mean of the others with its percentile interval."""
        return _mean(values_N[self.num_members :], self._others)


def _mean(values_N: FloatArray, draws: Sequence[Rows]) -> Estimate:
    low, high = percentile_interval([float(values_N[rows].mean()) for rows in draws])
    return Estimate(value=float(values_N.mean()), low=low, high=high)


def true_positive_rate(
    members: Sequence[float] | FloatArray, others: Sequence[float] | FloatArray
) -> float | None:
    """Return the share of members found at a false positive rate of at most 1 %; low scores are members.

    None with fewer than 100 others: not one of them may then be mistaken, which is another question.
    """
    sorted_others = np.sort(np.asarray(others))
    allowed = int(_FALSE_POSITIVES * len(sorted_others))
    if allowed < 1:
        return None
    return float((np.asarray(members) < sorted_others[allowed]).mean())


def blind_baseline(samples: Samples, *, seed: int) -> Estimate:
    """Return the AUC of a bag-of-words classifier that never asks a model, out of fold by cluster.

    Source: Das, Zhang and Tramèr 2024, arXiv 2406.16201.
    """
    texts = [sample.answer for sample in (*samples.members, *samples.others)]
    clusters = [sample.cluster for sample in (*samples.members, *samples.others)]
    folds = min(_FOLDS, len(set(clusters)))
    try:
        text, linear, selection = (
            importlib.import_module(f"sklearn.{name}")
            for name in ("feature_extraction.text", "linear_model", "model_selection")
        )
    except ImportError:
        return Estimate(value=None, note="needs scikit-learn: pip install 'falcon-unlearn[audit]'")
    if folds < 2:
        return Estimate(value=None, note="needs two clusters")
    words = text.CountVectorizer(token_pattern=r"\S+").fit_transform(texts)
    labels = np.array([1] * len(samples.members) + [0] * len(samples.others))
    members_N = np.zeros(len(texts))
    for train, test in selection.GroupKFold(folds).split(words, labels, clusters):
        model = linear.LogisticRegression(max_iter=500).fit(words[train], labels[train])
        members_N[test] = model.predict_proba(words[test])[:, 1]
    return _Draws(samples, seed).auc(-members_N)
