"""Records of layer scores and how they are read. No torch here.

Shapes: W bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from falcon_unlearn.errors import UsageError

Estimator = Literal["paired", "pooled", "gradient_conflict"]
Direction = Literal["lowest", "highest"]

RANDOM_PAIRING = "random-pairing"
"""The pairs are random: the value estimates no information, it only shows the estimator's bias."""
COMPONENTS_CAPPED = "components-capped"
"""The PCA keeps less variance than asked, because there are too few samples for more dimensions."""
SUBSAMPLED = "subsampled"
"""Samples were left out to give both sides of the pairs equal numbers."""
FEW_SAMPLES = "few-samples"
"""Fewer than 64 samples on some side: expect wide intervals."""
INSIDE_NULL = "inside-null"
"""The value lies inside the permutation interval: not distinguishable from no information."""
SATURATED = "saturated"
"""The value is within 1 % of its bound: domains are separated perfectly, layers cannot be told apart."""
ZERO_GRADIENT = "zero-gradient"
"""Some batches were left out because one of the two gradients was zero."""


@dataclass(frozen=True)
class LayerScore:
    """Hold the score of one layer.

    Attributes:
        layer: block index, 0-based.
        value: nats (`paired`, `pooled`) or mean cosine (`gradient_conflict`).
        low: lower end of the bootstrap interval.
        high: upper end of the bootstrap interval.
        null_mean: mean under the permutation null, None where there is none.
        null_low: lower end of the permutation interval.
        null_high: upper end of the permutation interval.
        num_components: PCA components used, None where there is no PCA.
        explained_share: variance share these components carry.
        flags: remarks, the constants of this module.
        replicates: bootstrap replicates (W), centred on the value. Replicate w of all layers rests on the
            same resample, so differences between layers can be taken replicate by replicate.
    """

    layer: int
    value: float
    low: float
    high: float
    null_mean: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    num_components: int | None = None
    explained_share: float | None = None
    flags: tuple[str, ...] = ()
    replicates: tuple[float, ...] = field(default=(), repr=False)

    @property
    def excess(self) -> float | None:
        """Return the value minus the null mean, which removes the estimator's bias to first order."""
        return None if self.null_mean is None else self.value - self.null_mean


@dataclass(frozen=True)
class LayerScores:
    """Hold the scores of all layers under one estimator.

    Attributes:
        estimator: how they were made.
        scores: one per scored layer, ascending layer index.
        missing: why a layer has no score, by layer index; never replaced by a number.
        num_samples: samples used, by domain name and "retain" (batches for `gradient_conflict`).
    """

    estimator: Estimator
    scores: tuple[LayerScore, ...]
    missing: Mapping[int, str] = field(default_factory=dict)
    num_samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def direction(self) -> Direction:
        """Return which end is preferred."""
        return preferred_direction(self.estimator)


def preferred_direction(estimator: Estimator) -> Direction:
    """Return `lowest` for information (eq. 3) and `highest` for the gradient cosine.

    Information between forget and retain activations is entanglement, so less is better. A cosine near +1
    means that a step that forgets does not cost retention, so the layer with the least conflict has the
    highest cosine.

    Raises:
        UsageError: unknown estimator.
    """
    if estimator not in get_args(Estimator):
        raise UsageError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}.")
    return "highest" if estimator == "gradient_conflict" else "lowest"
