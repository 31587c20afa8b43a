"""How to choose the layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from falcon_unlearn.config.base import Settings


class SelectionSettings(Settings):
    """Choose the estimator of step 1, or fix the layer."""

    layer: int | None = Field(default=None, ge=0)
    """Fix the loss layer (0-based block index) and skip the selection."""
    estimator: Literal["paired", "pooled", "gradient_conflict"] = "pooled"
    """`paired`: the paper's form over random pairings; `pooled`: information between activation and domain
    label; `gradient_conflict`: cosine of the two gradients."""
    samples: int = Field(default=256, ge=8)
    """Examples per domain and of the retain set."""
    pooling: Literal["last", "mean"] = "last"
    """Token position: the last token, or the mean over tokens that are not attention sinks."""
    explained_variance: float = Field(default=0.95, gt=0, le=1)
    """Variance share that the shared PCA keeps (eq. 7)."""
    maximum_components: int | None = Field(default=64, ge=1)
    """Upper bound on PCA components: a KDE in more dimensions than samples says nothing."""
    eta: float = 0.0
    """Weight of the information between forget domains (eq. 5). The paper leaves its sign open."""
    candidates: tuple[float, float] = (0.22, 0.6)
    """Depth range, as shares of the number of blocks, in which a layer may be chosen."""
    rule: Literal["earliest_tied", "best"] = "earliest_tied"
    """`earliest_tied`: the lowest layer not distinguishable from the best; `best`: the bare optimum."""
    margin: float = Field(default=0.01, ge=0)
    """Differences below this (nats, or cosine) count as ties: too small to matter, even when certain."""
    resamples: int = Field(default=50, ge=10, le=2000)
    """Bootstrap resamples and permutations."""

    @model_validator(mode="after")
    def _ordered(self) -> SelectionSettings:
        low, high = self.candidates
        if not 0 <= low < high <= 1:
            raise ValueError(f"candidates must satisfy 0 <= low < high <= 1, got {self.candidates}")
        return self
