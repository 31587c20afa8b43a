"""Score layers by the conflict of the forget and the retain gradient.

Shapes: M batches, W bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from falcon_unlearn.conflict.gramian import Gramian, cosine
from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.linalg.intervals import percentile_interval
from falcon_unlearn.selection import score as flags
from falcon_unlearn.selection.score import LayerScore, LayerScores

_FEW_BATCHES = 8


def score_gradient_conflict(
    gramians: Mapping[int, Sequence[Gramian]],
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> LayerScores:
    """Score every layer by the mean cosine of both gradients over batches; higher means less conflict.

    Args:
        gramians: by layer, inner products of the two gradients on each batch (M). Batch m is the same data at
            every layer, so that layers are compared on equal resamples.
        num_resamples: bootstrap resamples over batches.
        confidence: of the interval.
        seed: of the resamples.

    Raises:
        DataError: no layers, fewer than two batches, or numbers of batches that differ between layers.
        NumericalError: non-finite products, or gradients that are zero on all but one batch.
    """
    num_batches = {len(batches) for batches in gramians.values()}
    if len(num_batches) != 1 or min(num_batches) < 2:
        raise DataError(
            f"every layer needs gradients on the same two or more batches, got {sorted(num_batches)}."
        )
    layers = sorted(gramians)
    cosines_LM = np.array([[_cosine(gramian) for gramian in gramians[layer]] for layer in layers])
    usable_M = ~np.isnan(cosines_LM).any(axis=0)
    num_usable = int(usable_M.sum())
    if num_usable < 2:
        raise NumericalError(
            f"a gradient is zero on {usable_M.size - num_usable} of {usable_M.size} batches.",
            hint="The retention loss has no gradient before the first step; use a loss that has one, "
            "for example the language-model loss on retain text.",
        )
    cosines_LM = cosines_LM[:, usable_M]
    weights_MW = np.random.default_rng(seed).dirichlet(np.ones(num_usable), size=num_resamples).T
    remarks = {
        flags.FEW_SAMPLES: num_usable < _FEW_BATCHES,
        flags.ZERO_GRADIENT: num_usable < usable_M.size,
    }
    scores = []
    for layer, cosines_M in zip(layers, cosines_LM, strict=True):
        replicates_W = cosines_M @ weights_MW
        interval = percentile_interval(replicates_W, confidence)
        scores.append(
            LayerScore(
                layer=layer,
                value=float(cosines_M.mean()),
                low=interval.low,
                high=interval.high,
                flags=tuple(name for name, applies in remarks.items() if applies),
                replicates=tuple(replicates_W.tolist()),
            )
        )
    return LayerScores("gradient_conflict", tuple(scores), num_samples={"batches": num_usable})


def _cosine(gramian: Gramian) -> float:
    if not np.isfinite(gramian).all():
        raise NumericalError(f"gradient inner products are not finite: {gramian}.")
    value = cosine(gramian)
    return np.nan if value is None else value
