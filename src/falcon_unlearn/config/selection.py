"""How to choose the layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from falcon_unlearn.config.base import Settings


class TrialSettings(Settings):
    """Confirm the layer by a short unlearning at some candidates, which is then undone."""

    when: Literal["in_memory", "always", "never"] = "in_memory"
    """Try where the rule is `earliest_tied` and there are several candidates; `in_memory`: not with a model
    read block by block, where every trial reads all of it again."""
    tried: int = Field(default=4, ge=2)
    """Candidates that are tried, evenly spaced, first and last among them, and the one chosen by scores."""
    updates: int = Field(default=30, ge=1)
    """Optimisation steps at each layer."""
    speed: float = Field(default=4.0, gt=0)
    """Learning rate of the trial, as a multiple of that of the run: it has fewer steps to get as far."""
    texts: int = Field(default=48, ge=2)
    """Texts per forget domain and per retain set that the trial trains on."""
    measured: int = Field(default=24, ge=1)
    """Other forget texts per domain on which its effect is measured, worded unlike the trained ones."""
    share: float = Field(default=0.4, gt=0, le=1)
    """A layer is taken only if its fall of log-probability reaches this share of the largest fall."""


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
    trial: TrialSettings = Field(default_factory=TrialSettings)
    """Confirms the layer, or takes another."""

    @model_validator(mode="after")
    def _ordered(self) -> SelectionSettings:
        low, high = self.candidates
        if not 0 <= low < high <= 1:
            raise ValueError(f"candidates must satisfy 0 <= low < high <= 1, got {self.candidates}")
        return self
