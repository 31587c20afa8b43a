"""Rank layers with their uncertainty and choose one. No torch here.

Shapes: L layers, W bootstrap replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.linalg.intervals import percentile_interval
from falcon_unlearn.selection.score import LayerScore, LayerScores

Rule = Literal["earliest_tied", "best"]
Quantity = Literal["value", "excess"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRanking:
    """Hold the order of layers and how firm it is.

    Attributes:
        order: layer indices, best first.
        probability_best: share of bootstrap replicates in which a layer is the best, by layer.
        kendall: mean Kendall tau-b between the ranking and the rankings of the replicates, -1 to 1.
        spearman: the same with Spearman's correlation.
    """

    order: tuple[int, ...]
    probability_best: dict[int, float]
    kendall: float
    spearman: float


@dataclass(frozen=True)
class LayerChoice:
    """Hold the chosen layer and why.

    Attributes:
        layer: the choice.
        best_layer: the bare optimum among the candidates (eq. 3).
        tied_layers: candidates that the data cannot tell from the optimum, itself included, ascending.
        candidates: layers that could be chosen, ascending.
        rule: how the choice was made.
        reason: one sentence for people.
    """

    layer: int
    best_layer: int
    tied_layers: tuple[int, ...]
    candidates: tuple[int, ...]
    rule: Rule
    reason: str


def rank_layers(
    scores: LayerScores, *, candidates: tuple[int, int] | None = None, quantity: Quantity = "value"
) -> LayerRanking:
    """Rank layers, best first, with bootstrap probabilities and rank stability.

    Args:
        scores: what to rank.
        candidates: first and last layer to rank, both included; all layers by default.
        quantity: `value` (eq. 3) or `excess` over the permutation null.

    Raises:
        DataError: no layer is left, or no bootstrap replicates are there.
        UsageError: `excess` without a null.
    """
    chosen = _candidate_scores(scores, candidates)
    loss_L, replicates_LW = _losses(scores, chosen, quantity)
    layers = [score.layer for score in chosen]
    # A stable sort puts the lower layer first among equals.
    order = tuple(layers[index] for index in np.argsort(loss_L, kind="stable"))
    winners_W = np.argmin(replicates_LW, axis=0)
    shares_L = np.bincount(winners_W, minlength=len(layers)) / winners_W.size
    return LayerRanking(
        order=order,
        probability_best={layer: float(share) for layer, share in zip(layers, shares_L, strict=True)},
        kendall=float(np.mean([kendall_tau(loss_L, column) for column in replicates_LW.T])),
        spearman=float(np.mean([spearman_correlation(loss_L, column) for column in replicates_LW.T])),
    )


def choose_layer(
    scores: LayerScores,
    *,
    candidates: tuple[int, int] | None = None,
    rule: Rule = "earliest_tied",
    quantity: Quantity = "value",
    confidence: float = 0.95,
    margin: float = 0.0,
) -> LayerChoice:
    """Choose a layer among the candidates.

    `earliest_tied` takes the lowest layer that is not shown to be worse than the best one by more than the
    margin: its difference to the best has a bootstrap interval that begins at or below it. Where the data
    cannot tell, the lowest layer is the cheapest, since training runs only up to the loss layer. `best` takes
    the bare optimum (eq. 3).

    Args:
        scores: what to choose from.
        candidates: first and last layer that may be chosen, both included; all layers by default.
        rule: see above.
        quantity: `value` or `excess` over the permutation null.
        confidence: of the interval of the difference.
        margin: difference, in the unit of the scores, that is too small to matter.

    Raises:
        DataError: no candidate has a score, or no bootstrap replicates are there.
        UsageError: unknown rule, or `excess` without a null.
    """
    if rule not in get_args(Rule):
        raise UsageError(f"selection rule must be one of {', '.join(get_args(Rule))}, got {rule!r}.")
    chosen = _candidate_scores(scores, candidates)
    loss_L, replicates_LW = _losses(scores, chosen, quantity)
    best = int(np.argmin(loss_L))
    tied = [
        score.layer
        for index, score in enumerate(chosen)
        if index == best
        or percentile_interval(replicates_LW[index] - replicates_LW[best], confidence).low <= margin
    ]
    best_layer = chosen[best].layer
    layer = min(tied) if rule == "earliest_tied" else best_layer
    return LayerChoice(
        layer=layer,
        best_layer=best_layer,
        tied_layers=tuple(tied),
        candidates=tuple(score.layer for score in chosen),
        rule=rule,
        reason=_reason(scores, layer, chosen[best], tied, rule, confidence, margin),
    )


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's tau-b of two lists, -1 to 1; 0 where one of them is constant."""
    differences = [np.sign(np.subtract.outer(values, values)) for values in map(_vector, (first, second))]
    norm = np.sqrt(float(np.square(differences[0]).sum()) * float(np.square(differences[1]).sum()))
    return float((differences[0] * differences[1]).sum() / norm) if norm else 0.0


def spearman_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation of two lists, -1 to 1; 0 where one of them is constant."""
    ranks = [_average_ranks(values) - (values.size + 1) / 2 for values in map(_vector, (first, second))]
    norm = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1] / norm) if norm else 0.0


def _vector(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _average_ranks(values: FloatArray) -> FloatArray:
    smaller = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    ranks: FloatArray = smaller + (equal + 1) / 2
    return ranks


def _candidate_scores(scores: LayerScores, candidates: tuple[int, int] | None) -> list[LayerScore]:
    low, high = (
        candidates if candidates is not None else (0, max((s.layer for s in scores.scores), default=0))
    )
    chosen = [score for score in scores.scores if low <= score.layer <= high]
    if not chosen:
        missing = [layer for layer in scores.missing if low <= layer <= high]
        raise DataError(
            f"no layer from {low} to {high} has a score"
            + (f"; {len(missing)} failed, first: {scores.missing[missing[0]]}" if missing else "."),
            hint="Widen selection.candidates, or fix the layer with selection.layer.",
        )
    if any(len(score.replicates) != len(chosen[0].replicates) or not score.replicates for score in chosen):
        raise DataError("every layer needs the same number of bootstrap replicates, and at least one.")
    return chosen


def _losses(
    scores: LayerScores, chosen: list[LayerScore], quantity: Quantity
) -> tuple[FloatArray, FloatArray]:
    """Return values (L) and replicates (L x W) with the sign that makes lower better."""
    shifts = [0.0] * len(chosen)
    if quantity == "excess":
        nulls = [score.null_mean for score in chosen if score.null_mean is not None]
        if len(nulls) != len(chosen):
            raise UsageError(f"quantity 'excess' needs a permutation null, {scores.estimator!r} has none.")
        shifts = nulls
    elif quantity != "value":
        raise UsageError(f"quantity must be one of {', '.join(get_args(Quantity))}, got {quantity!r}.")
    sign = 1.0 if scores.direction == "lowest" else -1.0
    shift_L = np.asarray(shifts)
    value_L = np.asarray([score.value for score in chosen]) - shift_L
    replicates_LW = np.asarray([score.replicates for score in chosen]) - shift_L[:, None]
    return sign * value_L, sign * replicates_LW


def _reason(
    scores: LayerScores,
    layer: int,
    best: LayerScore,
    tied: list[int],
    rule: Rule,
    confidence: float,
    margin: float,
) -> str:
    unit = "mean gradient cosine" if scores.estimator == "gradient_conflict" else "information in nats"
    optimum = (
        f"Layer {best.layer} has the {scores.direction} {unit} ({scores.estimator}: {best.value:.3g}, "
        f"interval {best.low:.3g} to {best.high:.3g})"
    )
    if rule == "best":
        return f"{optimum} and was taken as it is."
    apart = f"at {confidence:.0%} confidence" + (f" and a margin of {margin:g}" if margin else "")
    if layer == best.layer:
        return f"{optimum}, and no lower candidate is indistinguishable from it {apart}."
    return (
        f"{optimum}, but {len(tied)} candidates cannot be told from it {apart}; "
        f"of these, layer {layer} is the lowest and so the cheapest to train."
    )
