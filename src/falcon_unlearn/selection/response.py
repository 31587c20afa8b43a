"""Test the choice of a layer by what a short unlearning does to the model's output. No torch here.

Shapes: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from falcon_unlearn.errors import UsageError


@dataclass(frozen=True)
class LayerResponse:
    """Hold what a short unlearning at one layer does to the log-probability of other forget text.

    Attributes:
        layer: block index, 0-based.
        fall: mean fall over samples, nats per token; negative where the text became more probable.
        standard_error: of the mean, 0 for a single sample.
    """

    layer: int
    fall: float
    standard_error: float


@dataclass(frozen=True)
class ConfirmedChoice:
    """Hold the layer that stands the test.

    Attributes:
        layer: the choice.
        strongest: the layer with the largest fall.
        reason: one sentence for people.
    """

    layer: int
    strongest: int
    reason: str


def summarise_response(layer: int, falls_N: Sequence[float]) -> LayerResponse:
    """Summarise the falls of N samples, one or more."""
    count = len(falls_N)
    mean = math.fsum(falls_N) / count
    squares = math.fsum((fall - mean) ** 2 for fall in falls_N)
    return LayerResponse(layer, mean, math.sqrt(squares / max(1, count - 1) / count))


def confirm_choice(
    responses: Sequence[LayerResponse], proposed: Collection[int], share: float
) -> ConfirmedChoice | None:
    """Take the lowest proposed layer whose fall reaches a share of the largest, else the lowest that does.

    Information proposes, the trial vetoes. The share is relative, so the rule knows neither the model nor the
    scale of its log-probabilities.

    Args:
        responses: what was measured at some of the candidates.
        proposed: layers that the data cannot tell from the best one by their scores.
        share: above 0, at most 1; 1 takes the layer with the largest fall.

    Returns:
        None where no layer lowers the log-probability beyond two standard errors: there is no evidence.

    Raises:
        UsageError: a share outside its range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share must lie in (0, 1], got {share}.")
    ordered = sorted(responses, key=lambda response: response.layer)
    strongest = max(ordered, key=lambda response: response.fall, default=None)
    if strongest is None or strongest.fall <= 2 * strongest.standard_error:
        return None
    able = [response.layer for response in ordered if response.fall >= share * strongest.fall]
    stand = [layer for layer in able if layer in proposed]
    layer = (stand or able)[0]
    return ConfirmedChoice(layer, strongest.layer, _reason(layer, ordered, share, stands=bool(stand)))


def _reason(layer: int, ordered: Sequence[LayerResponse], share: float, *, stands: bool) -> str:
    falls = ", ".join(f"{response.fall:.2g} at layer {response.layer}" for response in ordered)
    whose = "the lowest with such a score" if stands else "no layer with such a score does, it is the lowest"
    return (
        "A short trial of unlearning lowered the log-probability of forget text in other words, in nats per "
        f"token, by {falls}. Layer {layer} was taken: {whose} that reaches {share:.0%} of the largest fall."
    )
