"""Predict memory, disk and work of a run from shapes and token counts alone.

Every figure is bytes or FLOP. `resident` keeps the model in memory; `streamed` holds one block at a time
while states are cached, and the window alone in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.models.access import DTYPES
from falcon_unlearn.models.architectures import ModelStructure
from falcon_unlearn.pipeline.candidates import candidate_range, spread_layers, tries_layers
from falcon_unlearn.training.cost import cache_flops, train_flops
from falcon_unlearn.training.session import count_parameters

LIBRARY_BYTES = 500 * 2**20
"""Resident memory of Python with torch and transformers imported and warm (CPU build), measured."""
ALLOCATOR = 0.05
"""Share of what is allocated and freed that the C library holds on to, measured on a 7B shape."""
STORE_PAGES = 2**27
"""Pages of the stores that stay mapped: see `activations.store.RELEASE_BYTES`."""
LOGIT_BYTES = 2**28
"""Logits of one scoring batch with their float32 copy, as `models.scoring` bounds them."""
_MOMENTS = {"adamw": 2, "sgd": 0, "sign_momentum": 1, "sophia_reference": 2}
"""Float32 tensors that each optimizer keeps per trained tensor."""


@dataclass(frozen=True)
class Tokens:
    """Count the tokens of all corpora."""

    training: int
    longest: int
    examples: int
    stepped: int
    """Tokens that all training steps process, forget and retain."""

    @property
    def mean(self) -> float:
        """Return the mean length of a sample."""
        return self.training / max(1, self.examples)


class Shapes:
    """Count parameters of the parts that matter."""

    def __init__(
        self, model: Any, structure: ModelStructure, window: tuple[int, int], trained: dict[str, int]
    ) -> None:
        """Count on a model of any device, the meta device included."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        prefix = structure.block_prefix(window[1])
        block = model.get_submodule(prefix.rstrip("."))
        self.total = count_parameters(model)
        self.block = sum(p.numel() for p in block.parameters())
        self.trained = sum(parameters[name].numel() for name in trained)
        self.largest_trained = max(parameters[name].numel() for name in trained)
        linears = [m for m in block.modules() if type(m) is nn.Linear]
        self.largest_linear = max((m.weight.numel() for m in linears), default=0)
        self.widest = max((m.out_features for m in linears), default=4 * structure.hidden_size)
        self.window_blocks = window[1] - window[0] + 1
        self.first, self.top = window
        self.hidden_size = structure.hidden_size
        self.num_blocks = structure.num_blocks
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.source_bytes = next(iter(parameters.values())).dtype.itemsize

    @property
    def kept_activations(self) -> int:
        """Return the elements that a block keeps per token for the backward pass."""
        return 8 * self.hidden_size + 4 * self.widest


def source_item(recipe: Recipe, shapes: Shapes) -> int:
    """Return the bytes of one weight as loaded."""
    dtype = DTYPES.get(recipe.model.dtype)
    return shapes.source_bytes if dtype is None else dtype.itemsize


def resident_memory(
    recipe: Recipe, shapes: Shapes, tokens: Tokens, compute_dtype: torch.dtype
) -> dict[str, int]:
    """Predict the peak of a run with the whole model in memory, by part and in `total`."""
    item = source_item(recipe, shapes)
    outputs = recipe.method_entry.acts_on == "outputs"
    batch = recipe.train.batch_size * tokens.longest
    scored = max(min(recipe.evaluation.batch_tokens, 512), batch if outputs else 0)
    converted = shapes.window_blocks * shapes.block if compute_dtype.itemsize != item else 0
    training = _training_parts(recipe, shapes, tokens, compute_dtype, recompute=False)
    parts = {
        "libraries": LIBRARY_BYTES,
        "store": min(STORE_PAGES, store_bytes(shapes, tokens, compute_dtype.itemsize)),
        "model": shapes.total * item,
        "window": converted * compute_dtype.itemsize,
        "masters": shapes.trained * (0 if converted and compute_dtype == torch.float32 else 4),
        **training,
        "activations": max(training["activations"], _passing(recipe, shapes, tokens, compute_dtype)),
        "logits": int(scored * shapes.vocabulary * 4 * 2),
    }
    return _totalled(parts)


def streamed_memory(
    recipe: Recipe, shapes: Shapes, tokens: Tokens, compute_dtype: torch.dtype, *, recompute: bool
) -> dict[str, int]:
    """Predict the peak of a run that reads the model block by block, by part of its largest stage."""
    item = source_item(recipe, shapes)
    wide = compute_dtype.itemsize
    converted = wide if wide != item else 0
    widened = shapes.largest_linear * converted
    passing = _passing(recipe, shapes, tokens, compute_dtype)
    frozen = shapes.window_blocks * shapes.block - shapes.trained
    stages = {
        "prefix": {"block": shapes.block * (item + converted), "activations": passing},
        "window": {"window": shapes.window_blocks * shapes.block * item + widened, "activations": passing},
        "train": {
            "window": frozen * item + widened,
            # The tensors as stored (mapped), and the masters: in float32 the window computes with these.
            "masters": shapes.trained * (item + 4 + (0 if compute_dtype == torch.float32 else wide)),
            **_training_parts(recipe, shapes, tokens, compute_dtype, recompute=recompute),
        },
    }
    tries = recipe.selection.layer is None and tried_layers(recipe, shapes.num_blocks, streamed=True)
    if tries or recipe.evaluation.sets or (recipe.evaluation.held_out and recipe.data.holdout_share > 0):
        stages["evaluation"] = {
            "head": shapes.vocabulary * shapes.hidden_size * (item + converted),
            "logits": min(LOGIT_BYTES, 8 * shapes.vocabulary * recipe.evaluation.batch_tokens),
        }
    largest = max(stages.values(), key=lambda parts: sum(parts.values()))
    parts = {
        "libraries": LIBRARY_BYTES,
        "store": min(STORE_PAGES, store_bytes(shapes, tokens, wide)),
        **largest,
    }
    return _totalled(parts)


def _totalled(parts: dict[str, int]) -> dict[str, int]:
    moving = ("masters", "gradients", "optimizer", "activations", "logits")
    found = {**parts, "allocator": int(ALLOCATOR * sum(parts.get(name, 0) for name in moving))}
    return {**found, "total": sum(found.values())}


def _passing(recipe: Recipe, shapes: Shapes, tokens: Tokens, compute_dtype: torch.dtype) -> int:
    """Return the bytes of one caching batch on its way through a block."""
    batch = min(max(recipe.runtime.cache_batch_tokens, tokens.longest), tokens.training)
    return batch * (3 * shapes.widest + 6 * shapes.hidden_size) * compute_dtype.itemsize


def _training_parts(
    recipe: Recipe, shapes: Shapes, tokens: Tokens, compute_dtype: torch.dtype, *, recompute: bool
) -> dict[str, int]:
    outputs = recipe.method_entry.acts_on == "outputs"
    batch = recipe.train.batch_size * tokens.longest
    blocks = shapes.num_blocks if outputs else shapes.window_blocks
    kept = (1 if recompute else blocks) * shapes.kept_activations
    boundary = blocks * shapes.hidden_size if recompute else 0
    backward = 3 * shapes.widest
    return {
        "gradients": 2 * 4 * shapes.trained,
        "optimizer": 4 * shapes.trained * _MOMENTS[recipe.train.optimizer],
        "activations": int(batch * (kept + boundary + backward) * compute_dtype.itemsize),
    }


def store_bytes(shapes: Shapes, tokens: Tokens, item: int) -> int:
    """Return the bytes of the cached states: two per token."""
    return 2 * tokens.training * shapes.hidden_size * item


def flops(
    recipe: Recipe, shapes: Shapes, tokens: Tokens, *, selects: bool, streamed: bool
) -> dict[str, float]:
    """Count the work of each stage: selection, trial, cache, train, evaluation."""
    domains = len(recipe.data.forget) + 1
    selected = min(tokens.examples, domains * recipe.selection.samples) * tokens.mean
    tried = trial_flops(recipe, shapes, tokens, streamed=streamed) if selects else 0.0
    evaluated = tokens.training * recipe.data.holdout_share * 2
    if recipe.method_entry.acts_on == "outputs":
        frozen = bool(recipe.method_entry.needs & {"log_probabilities", "distribution"})
        cache = 2.0 * shapes.total * tokens.training if frozen else 0.0
        train = 6.0 * shapes.total * tokens.stepped
    else:
        cache = cache_flops(tokens.training, shapes.block, shapes.top)
        train = train_flops(tokens.stepped, shapes.block, shapes.window_blocks, shapes.trained)
    return {
        "selection": cache_flops(int(selected), shapes.block, shapes.num_blocks - 1) if selects else 0.0,
        "trial": tried,
        "cache": cache,
        "train": train,
        "evaluation": 2.0 * 2 * shapes.total * evaluated,
    }


def tried_layers(recipe: Recipe, num_blocks: int, *, streamed: bool) -> list[int]:
    """Return the layers of the trial; none where no trial runs."""
    low, high = candidate_range(recipe, num_blocks)
    layers = spread_layers(range(low, high + 1), recipe.selection.trial.tried)
    return layers if tries_layers(recipe, streamed=streamed) and len(layers) > 1 else []


def trial_flops(recipe: Recipe, shapes: Shapes, tokens: Tokens, *, streamed: bool) -> float:
    """Count the work of the trial: caching, steps, and scoring around each."""
    settings = recipe.selection.trial
    layers = tried_layers(recipe, shapes.num_blocks, streamed=streamed)
    corpora = len(recipe.data.forget) + len(recipe.data.retain)
    cached = int(min(tokens.examples, corpora * settings.texts) * tokens.mean)
    stepped = int(tokens.stepped * settings.updates / recipe.train.steps)
    scored = min(tokens.examples, len(recipe.data.forget) * settings.measured) * tokens.mean
    training = sum(
        cache_flops(cached, shapes.block, layer)
        + train_flops(stepped, shapes.block, shapes.window_blocks, shapes.trained)
        for layer in layers
    )
    return training + 2.0 * shapes.total * scored * (len(layers) + 1 if layers else 0)


def bytes_read(recipe: Recipe, shapes: Shapes, *, selects: bool) -> dict[str, float]:
    """Count the bytes of weights that each stage of a streamed run reads from disk."""
    item = source_item(recipe, shapes)
    window = shapes.window_blocks * shapes.block * item
    blocks = float(shapes.num_blocks * shapes.block * item)
    head = float(shapes.vocabulary * shapes.hidden_size * item)
    layers = tried_layers(recipe, shapes.num_blocks, streamed=True) if selects else []
    below = sum(layer + 1 for layer in layers) * shapes.block * item
    scored = (len(layers) + 1) * (blocks + head) if layers else 0.0
    return {
        "selection": blocks if selects else 0.0,
        "trial": float(below + len(layers) * window) + scored,
        "cache": float((shapes.top + 1) * shapes.block * item),
        "train": float(window),
        "evaluation": 0.0,
    }
