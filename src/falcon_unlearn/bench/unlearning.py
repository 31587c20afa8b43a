"""Unlearn a prepared model with one method, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.sources import LoadedCorpus, make_corpus
from falcon_unlearn.events import EventSink
from falcon_unlearn.examples import Example
from falcon_unlearn.models.access import LoadedModel, load_model, pick_device
from falcon_unlearn.pipeline.running import train_in
from falcon_unlearn.pipeline.workspace import fill_workspace, seeded
from falcon_unlearn.training.session import Session


@dataclass(frozen=True)
class TrainingSets:
    """Hold what is to be forgotten and what is to be kept."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]


@dataclass(frozen=True)
class Unlearned:
    """Hold a model after unlearning, and what it took."""

    loaded: LoadedModel
    session: Session
    layer: int
    seconds: dict[str, float]
    """Wall time by stage."""

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Return what a table states: caching and training, and the selection where one ran."""
        return {stage: self.seconds[stage] for stage in ("select", "cache", "train") if stage in self.seconds}


def method_recipe(
    method: str, model: Path, seed: int, data: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Recipe:
    """Return the recipe of a table row: the method's defaults, the benchmark's wording, dotted overrides."""
    values: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "model": {"name": str(model)},
        "data": {
            "forget": [{"name": "forget", "path": "forget"}],
            "retain": [{"name": "retain", "path": "retain"}],
            "holdout_share": 0.0,
            "minimum_tokens": 2,
            "chat_template": False,
            # Both sides of a benchmark are alike by design; what is the same text on both is warned about.
            "overlap": "warn",
            **data,
        },
    }
    for dotted, value in overrides.items():
        place = values
        *parents, last = dotted.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return Recipe.model_validate(values)


def unlearn_examples(
    recipe: Recipe, sets: TrainingSets, sink: EventSink, loaded: LoadedModel | None = None
) -> Unlearned:
    """Unlearn the forget examples, keeping the retain examples.

    Args:
        recipe: All settings.
        sets: The examples.
        sink: Receives progress.
        loaded: The model, which is changed in place; loaded by the recipe if None.

    Raises:
        FalconError: The model cannot be loaded, or training diverged.
    """
    examples: dict[str, Sequence[Example]] = {"forget": sets.forget, "retain": sets.retain}

    def load(corpus: CorpusSettings) -> LoadedCorpus:
        return make_corpus(examples[corpus.name], corpus.name)

    seconds: dict[str, float] = {}
    with seeded(recipe.seed, recipe.runtime.threads), TemporaryDirectory() as scratch:
        if loaded is None:
            loaded = load_model(recipe.model, pick_device(recipe.runtime.device))
        workspace = fill_workspace(loaded, recipe, sink, seconds, load=load)
        selection, session = train_in(workspace, recipe, sink, seconds, Path(scratch))
    return Unlearned(loaded, session, selection.layer, seconds)
