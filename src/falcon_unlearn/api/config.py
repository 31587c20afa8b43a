"""Settings of the trainer, named as in transformers' TrainingArguments where that has them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from falcon_unlearn.config.base import Settings
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.describe import PathParts
from falcon_unlearn.config.evaluation import EvaluationSetSettings, EvaluationSettings
from falcon_unlearn.config.explain import explain, show_value
from falcon_unlearn.config.merge import Change, Layers, plain, refuse_contradictions, split_key
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.selection import SelectionSettings
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.errors import UsageError

Corpora = Sequence[CorpusSettings | Mapping[str, Any]]
EvaluationSets = Sequence[EvaluationSetSettings | Mapping[str, Any]]

_RECIPE_KEYS = {
    "learning_rate": "train.learning_rate",
    "max_steps": "train.steps",
    "per_device_train_batch_size": "train.batch_size",
    "seed": "seed",
    "weight_decay": "train.weight_decay",
    "warmup_steps": "train.warmup_steps",
    "optim": "train.optimizer",
    "bf16": "train.compute_dtype",
    "max_length": "data.maximum_tokens",
    "completion_only_loss": "data.loss_on",
    "method": "method",
    "preset": "preset",
    "layer": "selection.layer",
    "num_layers": "train.layers",
    "modules": "train.modules",
    "max_retain_drift": "train.maximum_retain_drift",
    "selection": "selection",
    "objective": "objective",
    "evaluation": "evaluation",
    "recipe": "",
}
"""Where each field goes in the recipe; groups may hold any part of theirs."""

_OPTIMIZER_ALIASES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}
_PLACEHOLDER = "placeholder"


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig:
    """Set a run of `UnlearnTrainer`.

    A field left at None takes the recipe's default, or that of the preset. Wrong values raise UsageError
    here, before any model is loaded. Change one field with `dataclasses.replace`.
    """

    output_dir: str | Path | None = None
    """New folder for `save_model`; checked when the trainer is made."""
    learning_rate: float | Literal["auto"] | None = None
    """A number, or `auto` (the default), which scales with the trained weights."""
    max_steps: int | None = None
    """Optimisation steps."""
    per_device_train_batch_size: int | None = None
    """Forget samples and retain samples per step."""
    seed: int | None = None
    """One seed for everything random; 0 by default."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    warmup_steps: int | None = None
    """Linear warm-up."""
    optim: str | None = None
    """adamw (or adamw_torch, the default), sgd, sign_momentum or sophia_reference."""
    bf16: bool | None = None
    """Compute in bfloat16 (True) or float32 (False); None measures which is faster here."""
    logging_steps: int = 1
    """Hand every n-th training step, and the last, to the trainer's sink."""
    report_to: str | Sequence[str] | None = "none"
    """Nothing but `none`: progress goes to the trainer's sink."""
    max_length: int | None = None
    """Cut examples at this many tokens."""
    completion_only_loss: bool | None = None
    """Steer the states of answers and completions only; all tokens by default."""
    method: str | None = None
    """Unlearning method: falcon."""
    preset: str | None = None
    """Bundle of settings that fills what is not given: default, paper or reference."""
    layer: int | None = None
    """Fix the loss layer (0-based); None lets step 1 choose it."""
    num_layers: int | None = None
    """Trained blocks, ending at the loss layer."""
    modules: Sequence[str] | None = None
    """Roles of the trained matrices; mlp.down by default."""
    max_retain_drift: float | None = None
    """Utility budget: stop when the mean cosine distance of retain states exceeds this; None: no budget."""
    selection: SelectionSettings | Mapping[str, Any] | None = None
    """Settings of step 1, as in the recipe."""
    objective: ObjectiveSettings | Mapping[str, Any] | None = None
    """Settings of step 2, as in the recipe."""
    evaluation: EvaluationSettings | Mapping[str, Any] | None = None
    """Settings of the measurements, as in the recipe."""
    recipe: Mapping[str, Any] | None = None
    """Any other setting of the recipe, nested or by dotted path: {"train.relative_step": 0.02}."""

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            UsageError: One sentence per problem.
        """
        if self.report_to not in (None, "none", [], ["none"], (), ("none",)):
            raise UsageError(
                f"report_to: got {show_value(self.report_to)}, 'none' is needed",
                hint="Pass sink=FUNCTION to the trainer and forward its events to your tracker.",
            )
        if isinstance(self.logging_steps, bool) or not isinstance(self.logging_steps, int):
            raise UsageError(f"logging_steps: got {show_value(self.logging_steps)}, an integer is needed")
        if self.logging_steps < 1:
            raise UsageError(f"logging_steps: got {self.logging_steps}, an integer >= 1 is needed")
        if self.output_dir is not None and (
            not isinstance(self.output_dir, str | Path) or not self.output_dir
        ):
            raise UsageError(f"output_dir: got {show_value(self.output_dir)}, a path or None is needed")
        for name in ("selection", "objective", "evaluation", "recipe"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping | Settings):
                raise UsageError(f"{name}: got {show_value(value)}, a mapping of settings is needed")
        forget, retain = (
            {"name": _PLACEHOLDER, "path": f"{_PLACEHOLDER}-{role}"} for role in ("forget", "retain")
        )
        self.to_recipe(_PLACEHOLDER, forget=[forget], retain=[retain])

    def to_recipe(
        self, model_name: str, *, forget: Corpora, retain: Corpora, evaluation_sets: EvaluationSets = ()
    ) -> Recipe:
        """Return the recipe of a run with these settings.

        Args:
            model_name: Hub id, local folder or GGUF file.
            forget: Forget domains as in the recipe, at least name and path.
            retain: Retain sets.
            evaluation_sets: Evaluation sets, unless `evaluation` names them.

        Raises:
            UsageError: One sentence per setting that is unknown, out of range or given twice.
        """
        return _validate(self._layers(model_name, forget, retain, evaluation_sets))

    def typed_recipe(
        self, model_name: str, *, forget: Corpora, retain: Corpora, evaluation_sets: EvaluationSets = ()
    ) -> str:
        """Return what was asked for as YAML, defaults left out, without local folders or hub tokens."""
        tree = self._layers(model_name, forget, retain, evaluation_sets).tree
        return public_text(dump_yaml(_without_folders(tree)))

    def given(self) -> dict[str, Any]:
        """Return the settings of the recipe that were given."""
        values = {name: getattr(self, name) for name in _RECIPE_KEYS}
        return {name: value for name, value in values.items() if value is not None}

    def _layers(
        self, model_name: str, forget: Corpora, retain: Corpora, evaluation_sets: EvaluationSets
    ) -> Layers:
        changes = [
            Change(("model", "name"), plain(model_name), "model"),
            Change(("data", "forget"), plain(list(forget)), "forget_dataset"),
            Change(("data", "retain"), plain(list(retain)), "retain_dataset"),
        ]
        if evaluation_sets:
            changes.append(Change(("evaluation", "sets"), plain(list(evaluation_sets)), "eval_sets"))
        for name, value in self.given().items():
            prefix = split_key(_RECIPE_KEYS[name]) if _RECIPE_KEYS[name] else ()
            changes += _changes(prefix, _translated(name, value), f"UnlearnConfig.{name}")
        refuse_contradictions(changes)
        layers = Layers({})
        for change in changes:
            layers.assign(change)
        try:
            layers.tree = json.loads(json.dumps(layers.tree, default=_plain_number))
        except TypeError as error:
            raise UsageError(f"a setting is neither a number, a text nor a list: {error}") from error
        return layers


def _changes(prefix: PathParts, value: Any, origin: str) -> Iterator[Change]:
    """Yield one change per leaf; None is a value, and a list is a leaf."""
    value = plain(value)
    if not isinstance(value, dict):
        yield Change(prefix, value, origin)
        return
    for key, item in value.items():
        yield from _changes((*prefix, *split_key(key)), item, origin)


def _translated(name: str, value: Any) -> Any:
    """Turn a value of transformers' vocabulary into the recipe's; what is unknown passes and fails later."""
    if name == "bf16":
        return {True: "bfloat16", False: "float32"}[value] if isinstance(value, bool) else value
    if name == "completion_only_loss":
        return {True: "answer", False: "all"}[value] if isinstance(value, bool) else value
    if name == "optim":
        # Members of transformers' OptimizerNames are accepted by their value.
        text = getattr(value, "value", value)
        return _OPTIMIZER_ALIASES.get(text, text) if isinstance(text, str) else text
    return value


def _validate(layers: Layers) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(layers.tree), strict=True)
    except ValidationError as error:
        raise explain(error, layers) from None


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return public_name(value) if isinstance(value, str) and os.path.isabs(value) else value


def _plain_number(value: Any) -> Any:
    """Turn a number of NumPy or torch into one of Python."""
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} {show_value(value)}")
