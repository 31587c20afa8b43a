"""The recipe: everything that defines a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.config.base import Settings
from falcon_unlearn.config.catalogue import METHODS, Method, MethodName
from falcon_unlearn.config.data import DataSettings
from falcon_unlearn.config.evaluation import EvaluationSettings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.config.presets import fill_from_preset
from falcon_unlearn.config.runtime import RuntimeSettings
from falcon_unlearn.config.selection import SelectionSettings
from falcon_unlearn.config.train import TrainSettings


class Recipe(Settings):
    """Hold all settings of one run."""

    version: Literal[1] = 1
    """Version of this file format."""
    method: MethodName = "falcon"
    """Unlearning method; `falcon-unlearn methods` lists them with their sources."""
    preset: Literal["default", "paper", "reference"] = "default"
    """Bundle that fills what is left unsaid: our defaults, eq. 8-14 literally, or the released code."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """One seed for Python, NumPy, torch, data order and targets."""
    model: ModelSettings
    """The model."""
    data: DataSettings
    """The corpora."""
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    """Step 1."""
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings)
    """Step 2."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """Step 3."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """Measurements."""
    audit: AuditSettings = Field(default_factory=AuditSettings)
    """Recovery audit after unlearning."""
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    """Resources."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        return fill_from_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _checkpointing_fits(self) -> Recipe:
        if self.train.gradient_checkpointing and self.method_entry.acts_on == "states":
            raise ValueError(
                f"train.gradient_checkpointing: {self.method} acts on states and runs a few blocks only; "
                "leave it out, or set train.micro_batch_tokens"
            )
        return self

    @property
    def method_entry(self) -> Method:
        """Return the catalogue's entry of the method."""
        return METHODS[self.method]

    @model_validator(mode="after")
    def _window_fits(self) -> Recipe:
        layer = self.selection.layer
        if layer is not None and layer + 1 < self.train.layers:
            raise ValueError(
                f"selection.layer={layer} leaves room for {layer + 1} trained blocks, "
                f"train.layers asks for {self.train.layers}"
            )
        return self
