"""Step 1 as a pure function: activations in, scores and a choice out.

Shapes: N samples, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from torch import Tensor

from falcon_unlearn.selection.estimators import score_layers
from falcon_unlearn.selection.rank import LayerChoice, LayerRanking, Rule, choose_layer, rank_layers
from falcon_unlearn.selection.score import LayerScores
from falcon_unlearn.selection.settings import InformationSettings

Activations = Mapping[int, Tensor]


class LayerSelection(NamedTuple):
    """Hold the chosen layer, how firm the ranking is, and the scores behind both."""

    choice: LayerChoice
    ranking: LayerRanking
    scores: LayerScores


def select_layers(
    forget: Activations | Mapping[str, Activations],
    retain: Activations,
    *,
    settings: InformationSettings | None = None,
    candidates: tuple[int, int] | None = None,
    rule: Rule = "earliest_tied",
) -> LayerSelection:
    """Choose the layer where forget and retain activations are least entangled (eq. 2, 3, 5 and 7).

    Args:
        forget: By layer, activations (N x D); with several domains, by domain name and layer.
        retain: By layer, activations (N x D; the number of samples may differ).
        settings: Estimator and its settings; the pooled information by default.
        candidates: First and last layer that may be chosen, both included; all by default.
        rule: `earliest_tied` or `best`, see `selection.rank.choose_layer`.

    Returns:
        Choice, ranking and scores in nats, with bootstrap intervals.

    Raises:
        DataError: No domain, fewer than 8 samples, or layers that differ.
        NumericalError: Activations that are constant or not finite.
        UsageError: A setting outside its range.
    """
    domains = {"forget": forget} if any(isinstance(key, int) for key in forget) else forget
    scores = score_layers(cast(Mapping[str, Activations], domains), retain, settings)
    return LayerSelection(
        choice=choose_layer(scores, candidates=candidates, rule=rule),
        ranking=rank_layers(scores, candidates=candidates),
        scores=scores,
    )
