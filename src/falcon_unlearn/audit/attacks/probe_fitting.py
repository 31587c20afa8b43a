"""Fit linear truth probes with splits by cluster. No model here.

Shapes: N examples (one per option of a fact), D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.errors import PrerequisiteError

FloatArray = NDArray[np.float64]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties C that are tried."""
_FOLDS = 3
_ITERATIONS = 300


@dataclass(frozen=True)
class Examples:
    """Hold what a probe learns from."""

    features_ND: FloatArray
    labels_N: NDArray[np.int64]
    """1 for the right option."""
    facts_N: NDArray[np.int64]
    """Which fact an option belongs to."""
    clusters: tuple[str, ...]
    """Cluster of every example; a cluster is never split."""


@dataclass(frozen=True)
class Probe:
    """Score features linearly: higher is more likely the right option."""

    weights_D: FloatArray
    bias: float
    strength: float
    accuracy: float | None
    """Share of facts of left-out clusters whose right option scores highest; None: too few clusters."""

    def scores(self, features_ND: FloatArray) -> FloatArray:
        """Return log-odds of being right, N."""
        found: FloatArray = features_ND @ self.weights_D + self.bias
        return found


def fit_probe(examples: Examples) -> Probe:
    """Fit logistic regression, its penalty chosen by the accuracy on left-out clusters.

    Raises:
        PrerequisiteError: scikit-learn is not installed.
    """
    folds = _folds(examples)
    accuracies = {c: _left_out_accuracy(examples, folds, c) for c in (STRENGTHS if folds else ())}
    # Ties go to the stronger penalty, which comes first.
    strength = max(accuracies, key=lambda c: accuracies[c]) if accuracies else STRENGTHS[1]
    weights_D, bias = _fit(examples, np.arange(len(examples.labels_N)), strength)
    return Probe(weights_D, bias, strength, accuracies.get(strength))


def fit_control(examples: Examples, strength: float, seed: int) -> Probe:
    """Fit the same probe to shuffled labels (the control task of Hewitt and Liang 2019).

    Its accuracy is that on the shuffled labels of left-out clusters: what the probe can do without knowledge.
    """
    labels_N = shuffled_labels(examples, seed)
    shuffled = Examples(examples.features_ND, labels_N, examples.facts_N, examples.clusters)
    folds = _folds(shuffled)
    weights_D, bias = _fit(shuffled, np.arange(len(labels_N)), strength)
    accuracy = _left_out_accuracy(shuffled, folds, strength) if folds else None
    return Probe(weights_D, bias, strength, accuracy)


def shuffled_labels(examples: Examples, seed: int) -> NDArray[np.int64]:
    """Draw a right option for every fact so that it is the true one as often as chance has it.

    Without this balance the draw leans to or against the truth, and where features tell the truth clearly a
    small lean is enough to answer all questions right, or all wrong.
    """
    chance = np.random.default_rng(seed)
    facts = np.unique(examples.facts_N)
    expected = sum(1.0 / int((examples.facts_N == fact).sum()) for fact in facts)
    num_true = int(expected + chance.random())
    true_facts = set(chance.permutation(facts)[:num_true].tolist())
    labels_N = np.zeros_like(examples.labels_N)
    for fact in facts:
        wanted = 1 if fact in true_facts else 0
        places = np.flatnonzero((examples.facts_N == fact) & (examples.labels_N == wanted))
        labels_N[chance.choice(places)] = 1
    return labels_N


def option_accuracy(
    scores_N: FloatArray, labels_N: NDArray[np.int64], facts_N: NDArray[np.int64]
) -> list[float]:
    """Return per fact 1 if its right option alone scores highest, else 0."""
    hits = []
    for fact in np.unique(facts_N):
        scores, labels = scores_N[facts_N == fact], labels_N[facts_N == fact]
        hits.append(float(labels[scores.argmax()] == 1 and np.sum(scores == scores.max()) == 1))
    return hits


def _folds(examples: Examples) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    model_selection = _sklearn("model_selection")
    count = min(_FOLDS, len(set(examples.clusters)))
    if count < 2:
        return []
    splitter = model_selection.GroupKFold(n_splits=count)
    return list(splitter.split(examples.features_ND, examples.labels_N, groups=examples.clusters))


def _left_out_accuracy(
    examples: Examples,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    strength: float,
) -> float:
    hits: list[float] = []
    for train, test in folds:
        weights_D, bias = _fit(examples, train, strength)
        scores = examples.features_ND[test] @ weights_D + bias
        hits += option_accuracy(scores, examples.labels_N[test], examples.facts_N[test])
    return float(np.mean(hits))


def _fit(examples: Examples, rows: NDArray[np.int64], strength: float) -> tuple[FloatArray, float]:
    """Fit on some rows, features standardised by them; return weights and bias for features as they are."""
    features_ND = examples.features_ND[rows]
    mean_D, spread_D = features_ND.mean(axis=0), features_ND.std(axis=0)
    spread_D = np.where(spread_D > 0, spread_D, 1.0)
    regression = _sklearn("linear_model").LogisticRegression(C=strength, max_iter=_ITERATIONS)
    regression.fit((features_ND - mean_D) / spread_D, examples.labels_N[rows])
    weights_D: FloatArray = regression.coef_[0] / spread_D
    return weights_D, float(regression.intercept_[0] - mean_D @ weights_D)


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise PrerequisiteError(
            "linear probes need scikit-learn, which is not installed",
            hint="pip install 'falcon-unlearn[audit]', or name other attacks",
        ) from error
