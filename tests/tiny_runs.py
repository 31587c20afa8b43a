"""Corpora, recipes and sessions on pico models, shared by the tests of training and of the pipeline."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.events import ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.results import DataResult
from falcon_unlearn.training.session import unlearn_window
from pico import pico_model

LAYER = 3

BASE: dict[str, Any] = {
    "model": {"name": "pico"},
    "data": {"forget": [{"name": "f", "path": "f"}], "retain": [{"name": "r", "path": "r"}]},
    "objective": {"offset": {"directions": 4}, "retain_multiplier": 3.0},
    "train": {
        "steps": 6,
        "batch_size": 4,
        "layers": 2,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "compute_dtype": "float32",
        "divergence_factor": 1e6,
    },
}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` with nested `changes`."""
    merged = deepcopy(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def tiny_recipe(**changes: Any) -> Recipe:
    """Return the recipe of a short float32 run, with nested `changes`."""
    return Recipe.model_validate(merge(BASE, changes))


def tiny_corpus(
    name: str, count: int, lengths: tuple[int, int], seed: int, *, prompt_tokens: int = 0, weight: float = 1.0
) -> Corpus:
    """Return random token rows; the first `prompt_tokens` of each are no answer."""
    draw = random.Random(seed)
    rows = [tuple(draw.randrange(4, 128) for _ in range(draw.randint(*lengths))) for _ in range(count)]
    examples = tuple(
        EncodedExample(row, tuple(i >= prompt_tokens for i in range(len(row))), "", False) for row in rows
    )
    return Corpus(name, weight, examples, (), ())


def tiny_data(
    num_domains: int = 1, lengths: tuple[int, int] = (11, 16), *, prompt_tokens: int = 0
) -> PreparedData:
    """Return forget domains of 9 samples each and one retain set of 14."""
    forget = tuple(
        tiny_corpus(f"f{i}", 9, lengths, i, prompt_tokens=prompt_tokens) for i in range(num_domains)
    )
    return PreparedData(forget, (tiny_corpus("r", 14, lengths, 100),), DataResult(corpora=[]))


def tiny_engine(family: str = "llama", **overrides: Any) -> BlockEngine:
    """Return an engine over a fresh pico model."""
    return BlockEngine(pico_model(family, **overrides).requires_grad_(False))


def run_session(
    folder: Any, recipe: Recipe | None = None, data: PreparedData | None = None, **kwargs: Any
) -> Any:
    """Unlearn a fresh pico model and return the session."""
    engine = kwargs.pop("engine", None) or tiny_engine()
    layer = kwargs.pop("layer", LAYER)
    return unlearn_window(engine, data or tiny_data(), recipe or tiny_recipe(), layer, folder, ignore_events)


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
