"""Say what a run would do, from config and tokenizer alone: layers, tensors, memory, disk, work and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.models.access import DTYPES, build_without_weights, load_tokenizer, pick_device
from falcon_unlearn.models.architectures import (
    ModelStructure,
    coverage,
    find_structure,
    resolve_trained_parameters,
)
from falcon_unlearn.models.precision import matrix_product_speed, resolve_compute_dtype
from falcon_unlearn.pipeline.selecting import candidate_range
from falcon_unlearn.pipeline.workspace import check_layer, prepare_data
from falcon_unlearn.results import PlanResult
from falcon_unlearn.training.cost import cache_flops, train_flops
from falcon_unlearn.training.outputs.trainables import trained_names
from falcon_unlearn.training.session import count_parameters

LIBRARY_BYTES = 500 * 2**20
"""Resident memory of Python with torch and transformers imported (CPU build), measured."""
EFFICIENCY = 0.5
"""Share of the measured matrix-product peak that whole forward passes reach."""


def plan_run(recipe: Recipe) -> PlanResult:
    """Predict a run without loading weights; data and tokenizer are read to count tokens.

    Raises:
        FalconError: Config, tokenizer or data cannot be used, or the settings do not fit the model.
    """
    model = build_without_weights(recipe.model)
    structure = find_structure(model)
    check_layer(recipe, structure.num_blocks)
    layer = recipe.selection.layer
    window, trained = _window_and_tensors(recipe, model, structure)
    tokens, warnings = _count_tokens(recipe)
    shapes = _Shapes(model, structure, window, trained)
    device = pick_device(recipe.runtime.device)
    compute_dtype = resolve_compute_dtype(recipe.train.compute_dtype, device)
    flops = _flops(recipe, shapes, tokens)
    speed = matrix_product_speed(compute_dtype, device) * EFFICIENCY
    metrics, missing = _metrics(recipe)
    return PlanResult(
        model=recipe.model.name if not Path(recipe.model.name).exists() else Path(recipe.model.name).name,
        architecture=structure.model_type,
        blocks=structure.num_blocks,
        hidden_size=structure.hidden_size,
        total_parameters=shapes.total,
        coverage=coverage(model, structure),
        layer=layer,
        window=window,
        trained=list(trained),
        trained_parameters=shapes.trained,
        steps=recipe.train.steps,
        batch_size=recipe.train.batch_size,
        memory_bytes=_memory(recipe, shapes, tokens, compute_dtype),
        disk_bytes=_disk(shapes, tokens, compute_dtype),
        flops=flops,
        seconds={name: work / speed for name, work in flops.items()},
        metrics=metrics,
        not_computed=missing,
        warnings=warnings,
    )


def trains_whole_model(recipe: Recipe) -> bool:
    """Return True for methods on outputs that train more than a window: they need no layer."""
    return recipe.method_entry.acts_on == "outputs" and recipe.train.parameters != "window"


def _window_and_tensors(
    recipe: Recipe, model: Any, structure: ModelStructure
) -> tuple[tuple[int, int], dict[str, int]]:
    layer = recipe.selection.layer
    top = layer if layer is not None else candidate_range(recipe, structure.num_blocks)[1]
    if recipe.method_entry.acts_on == "outputs":
        return (0, structure.num_blocks - 1), trained_names(model, structure, recipe, top)
    window = (top - recipe.train.layers + 1, top)
    blocks = range(window[0], window[1] + 1)
    return window, resolve_trained_parameters(model, structure, recipe.train.modules, blocks)


class _Shapes:
    """Count parameters of the parts that matter."""

    def __init__(
        self, model: Any, structure: ModelStructure, window: tuple[int, int], trained: dict[str, int]
    ) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        prefix = structure.block_prefix(window[1])
        self.total = count_parameters(model)
        self.block = sum(p.numel() for name, p in parameters.items() if name.startswith(prefix))
        self.trained = sum(parameters[name].numel() for name in trained)
        self.window_blocks = window[1] - window[0] + 1
        self.top = window[1]
        self.hidden_size = structure.hidden_size
        self.num_blocks = structure.num_blocks
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.source_bytes = next(iter(parameters.values())).dtype.itemsize


class _Tokens:
    """Count the tokens of all corpora."""

    def __init__(self, training: int, longest: int, examples: int) -> None:
        self.training, self.longest, self.examples = training, longest, examples

    @property
    def mean(self) -> float:
        return self.training / max(1, self.examples)


def _count_tokens(recipe: Recipe) -> tuple[_Tokens, list[str]]:
    sampled = [corpus for corpus in recipe.data.retain if corpus.path == "self"]
    if sampled:
        count = recipe.data.self_samples
        per_text = recipe.data.self_tokens
        return _Tokens(2 * count * per_text, per_text, 2 * count), [
            "retain text `self` does not exist yet; token counts assume self_samples x self_tokens "
            "for both sides"
        ]
    data: PreparedData = prepare_data(recipe, load_tokenizer(recipe.model), None)
    lengths = [len(e.input_ids) for c in (*data.forget, *data.retain) for e in c.training]
    return _Tokens(sum(lengths), max(lengths), len(lengths)), list(data.result.warnings)


def _memory(recipe: Recipe, shapes: _Shapes, tokens: _Tokens, compute_dtype: torch.dtype) -> dict[str, int]:
    dtype = DTYPES.get(recipe.model.dtype)
    item = dtype.itemsize if dtype is not None else shapes.source_bytes
    batch = recipe.train.batch_size * tokens.longest
    forward = max(batch, min(recipe.runtime.cache_batch_tokens, tokens.training))
    outputs = recipe.method_entry.acts_on == "outputs"
    blocks = shapes.num_blocks if outputs else 1
    scored = max(min(recipe.evaluation.batch_tokens, 512), batch if outputs else 0)
    parts = {
        "libraries": LIBRARY_BYTES,
        "model": shapes.total * item,
        "window": shapes.window_blocks * shapes.block * compute_dtype.itemsize
        if compute_dtype.itemsize != item
        else 0,
        # Original and master copies, two gradients, two moments of AdamW, all in float32.
        "masters": shapes.trained * 4 * 6,
        "activations": int(forward * shapes.hidden_size * 4 * 12 * blocks),
        "logits": int(scored * shapes.vocabulary * 4 * 2),
    }
    return {**parts, "total": sum(parts.values())}


def _disk(shapes: _Shapes, tokens: _Tokens, compute_dtype: torch.dtype) -> dict[str, int]:
    return {
        "store": 2 * tokens.training * shapes.hidden_size * compute_dtype.itemsize,
        "output": shapes.total * shapes.source_bytes,
    }


def _flops(recipe: Recipe, shapes: _Shapes, tokens: _Tokens) -> dict[str, float]:
    per_step = 2 * recipe.train.batch_size * tokens.mean
    domains = len(recipe.data.forget) + 1
    selected = min(tokens.examples, domains * recipe.selection.samples) * tokens.mean
    evaluated = tokens.training * recipe.data.holdout_share * 2
    no_selection = recipe.selection.layer is not None or trains_whole_model(recipe)
    trained_tokens = int(per_step * recipe.train.steps)
    if recipe.method_entry.acts_on == "outputs":
        frozen = bool(recipe.method_entry.needs & {"log_probabilities", "distribution"})
        cache = 2.0 * shapes.total * tokens.training if frozen else 0.0
        train = 6.0 * shapes.total * trained_tokens
    else:
        cache = cache_flops(tokens.training, shapes.block, shapes.top)
        train = train_flops(trained_tokens, shapes.block, shapes.window_blocks, shapes.trained)
    return {
        "selection": 0.0 if no_selection else cache_flops(int(selected), shapes.block, shapes.num_blocks - 1),
        "cache": cache,
        "train": train,
        "evaluation": 2.0 * 2 * shapes.total * evaluated,
    }


def _metrics(recipe: Recipe) -> tuple[list[str], list[str]]:
    names = {
        "choice": ["accuracy_text"],
        "generation": ["accuracy_generation"],
        "perplexity": ["perplexity"],
        "divergence": ["divergence"],
    }
    computed: list[str] = []
    for entry in recipe.evaluation.sets:
        letters = entry.kind == "choice" and recipe.evaluation.scores_letters(entry)
        measured = [*names[entry.kind], *(["accuracy_letter", "letter_mass"] if letters else [])]
        computed += [f"{entry.name}: {name}" for name in measured]
    missing: list[str] = []
    corpora = [*recipe.data.forget, *recipe.data.retain]
    if recipe.evaluation.held_out and recipe.data.holdout_share > 0:
        computed += [f"{corpus.name} (held out): perplexity, divergence" for corpus in corpora]
    else:
        missing.append(
            "held-out perplexity and divergence: evaluation.held_out is off or data.holdout_share is 0"
        )
    if not any(entry.kind == "choice" for entry in recipe.evaluation.sets):
        missing.append("accuracy: no evaluation set of kind `choice` is given (evaluation.sets)")
    if not any(entry.kind == "generation" for entry in recipe.evaluation.sets):
        missing.append("free generation: no evaluation set of kind `generation` is given (evaluation.sets)")
    return computed, missing
