"""Step 2: what the forget and the retain activations are pushed towards, and how gradients are combined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from falcon_unlearn.config.base import Settings
from falcon_unlearn.config.methods import (
    AlternativeSettings,
    CircuitBreakerSettings,
    NpoSettings,
    PreferenceSettings,
    RmuSettings,
    ScrubSettings,
    SimNpoSettings,
    TaskVectorSettings,
    UndialSettings,
)


class OffsetSettings(Settings):
    """Build principal offset vectors (POVs), the targets of the forget loss (eq. 8)."""

    mode: Literal["paper", "reference"] = "paper"
    """`paper`: eq. 8; `reference`: what the released code computes."""
    granularity: Literal["auto", "domain", "batch", "sample", "token"] = "auto"
    """How many targets: per domain, batch, sample or token; `auto`: per sample (`reference` mode: batch)."""
    directions: int = Field(default=16, ge=1)
    """K, the number of principal directions to avoid (`reference` takes min(1000, rank) when set to 1000)."""
    suppression: float = 1.0
    """w of eq. 8; 1 removes the principal span exactly."""
    perturbation: float = Field(default=0.0, ge=0)
    """Scale of the optional Gaussian perturbation eps."""
    operator: Literal["identity", "tanh"] = "identity"
    """f of eq. 8."""
    principal: Literal["literal", "centred", "contrast"] = "literal"
    """Whose directions: of the raw states, of the states minus the retain mean, or what remains of those
    after the leading retain directions are removed."""
    exclude_sinks: bool = True
    """Leave attention sinks out of the principal directions and of the forget loss."""
    sink_factor: float = Field(default=5.0, gt=1)
    """A token is a sink when its norm exceeds this many times the median norm of its sequence."""

    @property
    def resolved_granularity(self) -> Literal["domain", "batch", "sample", "token"]:
        """Return the granularity with `auto` decided."""
        if self.granularity == "auto":
            return "batch" if self.mode == "reference" else "sample"
        return self.granularity

    @model_validator(mode="after")
    def _reference_has_one_target(self) -> OffsetSettings:
        if self.mode == "reference" and self.granularity in ("sample", "token", "domain"):
            raise ValueError(
                f"granularity {self.granularity!r} does not exist in reference mode: its start vector is "
                "fixed, so there is one target per batch; use auto or batch"
            )
        return self


class ConflictSettings(Settings):
    """Combine the forget and the retain gradient (eq. 12-14)."""

    rule: Literal["falcon", "sum", "pcgrad", "mgda"] = "falcon"
    """`falcon` projects the forget gradient only; `sum` ignores conflicts."""
    scope: Literal["tensor", "layer", "global"] = "tensor"
    """On what the conflict is decided."""
    conflict_weights: tuple[float, float] = (1.0, 1.0)
    """alpha and beta of eq. 14 where the gradients conflict."""
    aligned_weights: tuple[float, float] = (1.0, 1.0)
    """alpha and beta where they do not."""


class ObjectiveSettings(Settings):
    """Set the forget and the retain loss: FALCON's (eq. 9-11) first, then one group for each rival."""

    temperature: float = Field(default=0.7, gt=0)
    """tau of eq. 10."""
    negatives: int = Field(default=1, ge=1, le=256)
    """Z of eq. 10; the first is the frozen state of the same token, the others of random tokens."""
    retain_multiplier: float = Field(default=20.0, ge=0)
    """Factor on the retain loss before its gradient is taken (not the paper's alpha)."""
    mask_padding: bool = True
    """False reinstates the released code's averages over padding; a compatibility switch."""
    offset: OffsetSettings = Field(default_factory=OffsetSettings)
    """The targets."""
    conflict: ConflictSettings = Field(default_factory=ConflictSettings)
    """The combination of gradients."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """Methods on outputs: keep the likelihood of retain text, or the frozen model's distribution on it."""
    alternatives: AlternativeSettings = Field(default_factory=AlternativeSettings)
    """What IDK-NLL, IDK-DPO and AltPO answer instead."""
    rmu: RmuSettings = Field(default_factory=RmuSettings)
    """RMU and Adaptive RMU."""
    circuit_breakers: CircuitBreakerSettings = Field(default_factory=CircuitBreakerSettings)
    """Representation rerouting."""
    npo: NpoSettings = Field(default_factory=NpoSettings)
    """NPO."""
    simnpo: SimNpoSettings = Field(default_factory=SimNpoSettings)
    """SimNPO."""
    preference: PreferenceSettings = Field(default_factory=PreferenceSettings)
    """IDK-DPO and AltPO."""
    undial: UndialSettings = Field(default_factory=UndialSettings)
    """UNDIAL."""
    scrub: ScrubSettings = Field(default_factory=ScrubSettings)
    """SCRUB."""
    task_vector: TaskVectorSettings = Field(default_factory=TaskVectorSettings)
    """Task-vector negation."""
