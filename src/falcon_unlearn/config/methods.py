"""The settings of the rival methods, named as in the papers; other names in brackets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.config.base import Settings


class RmuSettings(Settings):
    """Set RMU and Adaptive RMU: forget states towards one fixed random vector."""

    coefficient: float = Field(default=20.0, gt=0)
    """c, the length of the target vector; with `adaptive`, times the norm of the frozen state."""
    adaptive: bool = False
    """Scale the target with the norm of each frozen forget state (Adaptive RMU)."""


class CircuitBreakerSettings(Settings):
    """Set representation rerouting (circuit breakers): forget states orthogonal to the frozen ones."""

    alpha: float = Field(default=10.0, gt=0)
    """Weight of both terms before the schedule."""
    displacement: Literal["relative", "absolute"] = "relative"
    """How far retain states moved: relative to their frozen norm, or absolute as published. An absolute
    distance outweighs the cosine of the forget term the more, the longer the states of a model are."""


class NpoSettings(Settings):
    """Set negative preference optimisation."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature; towards 0 the method becomes gradient ascent."""


class SimNpoSettings(Settings):
    """Set SimNPO, NPO without a reference and with length-normalised likelihoods."""

    beta: float = Field(default=4.5, gt=0)
    """Inverse temperature."""
    margin: float = 0.0
    """Reward margin (the paper's gamma, open-unlearning's delta)."""


class PreferenceSettings(Settings):
    """Set DPO towards refusals or alternative answers (IDK-DPO, AltPO)."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature."""


class UndialSettings(Settings):
    """Set UNDIAL: distil the frozen model with the logit of the true token lowered."""

    beta: float = Field(default=10.0, gt=0)
    """What is subtracted from the frozen logit of the true token."""


class ScrubSettings(Settings):
    """Set SCRUB: alternate away from the frozen model on forget data and towards it on retain data."""

    divergence_weight: float = Field(default=1.0, ge=0)
    """alpha, on the divergence from the frozen model on retain data."""
    likelihood_weight: float = Field(default=1.0, gt=0)
    """gamma, on the cross-entropy on retain data."""
    maximising_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the run, from its start, in which forget steps alternate with retain steps."""


class TaskVectorSettings(Settings):
    """Set task-vector negation: learn the forget data, then step the other way."""

    scale: float = Field(default=1.0, gt=0)
    """How many times the learnt change is subtracted from the original weights."""


class AlternativeSettings(Settings):
    """Say what is answered instead of the forget answers (IDK-NLL, IDK-DPO, AltPO)."""

    source: Literal["refusals", "file", "model"] = "refusals"
    """Built-in refusals, a file with one alternative per line or per forget example, or the model's own
    sampled answers (AltPO)."""
    path: str | None = None
    """The file: plain lines are drawn at random; JSON rows {question, answer} are matched by question."""
