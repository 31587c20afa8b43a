"""Say what a run would do, from config and tokenizer alone: layers, tensors, memory, disk, work and time."""

from __future__ import annotations

from pathlib import Path

import torch

from falcon_unlearn.checkpoints.writer import shards_of
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.evaluation.streamed import NO_GENERATION
from falcon_unlearn.models.access import build_without_weights, load_tokenizer, pick_device
from falcon_unlearn.models.architectures import coverage, find_structure
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.pipeline.candidates import tries_layers, wants_trial
from falcon_unlearn.pipeline.costs import Shapes, Tokens, bytes_read, flops, store_bytes
from falcon_unlearn.pipeline.counting import assume_tokens, count_tokens, samples_itself
from falcon_unlearn.pipeline.pace import Pace, measure_pace
from falcon_unlearn.pipeline.placement import Placement, is_gguf, local_folder, place, window_and_tensors
from falcon_unlearn.pipeline.separating import separate_sets
from falcon_unlearn.pipeline.trial import NOT_STREAMED
from falcon_unlearn.pipeline.workspace import check_layer, prepare_data
from falcon_unlearn.results import PlanResult
from falcon_unlearn.runs import format_bytes

READ_SPEED = 2**29
"""Bytes per second at which weights are read, checked and converted; half a GiB is a plain disk's pace."""


def plan_run(recipe: Recipe) -> PlanResult:
    """Predict a run without loading weights; data, evaluation sets and tokenizer are read.

    Raises:
        FalconError: Config, tokenizer or data cannot be used, or the settings do not fit the model.
    """
    remarks = separate_sets(recipe, load_sets(recipe.evaluation, seed=recipe.seed))
    model = build_without_weights(recipe.model, real_buffers=True)
    structure = find_structure(model)
    check_layer(recipe, structure.num_blocks)
    window, trained = window_and_tensors(recipe, model, structure)
    tokens, warnings = _tokens(recipe)
    shapes = Shapes(model, structure, window, trained)
    device = pick_device(recipe.runtime.device)
    compute_dtype = resolve_compute_dtype(recipe.train.compute_dtype, device)
    folder = local_folder(recipe.model)
    placement = place(
        recipe, shapes, tokens, compute_dtype, device=device, is_folder=not is_gguf(recipe.model)
    )
    work = flops(recipe, shapes, tokens, selects=_selects(recipe), streamed=placement.streamed)
    engine = BlockEngine(model, structure)
    pace = measure_pace(recipe, model, engine, shapes, list(trained), compute_dtype, device)
    metrics, missing = _metrics(recipe, streamed=placement.streamed)
    if _selects(recipe) and wants_trial(recipe) and not tries_layers(recipe, streamed=placement.streamed):
        warnings = [*warnings, f"no trial will confirm the layer: {NOT_STREAMED}"]
    return PlanResult(
        model=recipe.model.name if not Path(recipe.model.name).exists() else Path(recipe.model.name).name,
        architecture=structure.model_type,
        blocks=structure.num_blocks,
        hidden_size=structure.hidden_size,
        total_parameters=shapes.total,
        coverage=coverage(model, structure),
        layer=recipe.selection.layer,
        window=window,
        trained=list(trained),
        trained_parameters=shapes.trained,
        steps=recipe.train.steps,
        batch_size=recipe.train.batch_size,
        streamed=placement.streamed,
        placement=placement.reason + _limit_words(placement),
        memory_bytes=placement.memory,
        disk_bytes=_disk(recipe, shapes, tokens, compute_dtype, list(trained), folder),
        flops=work,
        seconds=_seconds(recipe, shapes, placement, work, pace),
        metrics=metrics,
        not_computed=missing,
        warnings=[*warnings, *remarks],
    )


def trains_whole_model(recipe: Recipe) -> bool:
    """Return True for methods on outputs that train more than a window: they need no layer."""
    return recipe.method_entry.acts_on == "outputs" and recipe.train.parameters != "window"


def _selects(recipe: Recipe) -> bool:
    return recipe.selection.layer is None and not trains_whole_model(recipe)


def _tokens(recipe: Recipe) -> tuple[Tokens, list[str]]:
    if samples_itself(recipe):
        return assume_tokens(recipe), [
            "retain text `self` does not exist yet; token counts assume self_samples x self_tokens "
            "for both sides"
        ]
    data: PreparedData = prepare_data(recipe, load_tokenizer(recipe.model), None)
    return count_tokens(recipe, data), list(data.result.warnings)


def _limit_words(placement: Placement) -> str:
    return "" if placement.limit is None else f" (limit {format_bytes(placement.limit)})"


def _seconds(
    recipe: Recipe, shapes: Shapes, placement: Placement, work: dict[str, float], pace: Pace
) -> dict[str, float]:
    """Estimate wall times at the measured pace; streamed runs read and widen weights as well."""
    extra = dict.fromkeys(work, 0.0)
    if placement.streamed:
        read = bytes_read(recipe, shapes, selects=_selects(recipe))
        extra = {name: read[name] / READ_SPEED for name in work}
    again = 4 / 3 if placement.recompute else 1.0
    update = shapes.trained * pace.update
    if placement.streamed:
        # Forward and backward pass of both losses convert every frozen matrix, and recomputing once more.
        frozen = shapes.window_blocks * shapes.block - shapes.trained
        update += (6 if placement.recompute else 4) * frozen * pace.widen
    seconds = {name: flop / pace.forward + extra[name] for name, flop in work.items()}
    train = work["train"] / pace.training * again + extra["train"] + recipe.train.steps * update
    return seconds | {"train": train}


def _disk(
    recipe: Recipe,
    shapes: Shapes,
    tokens: Tokens,
    compute_dtype: torch.dtype,
    trained: list[str],
    folder: Path | None,
) -> dict[str, int]:
    """Predict the bytes of the stores, of the finished folder, and of what is really written for it."""
    store_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        recipe.train.store_dtype, compute_dtype
    )
    output = shapes.total * shapes.source_bytes
    written = output
    if recipe.runtime.output_format == "delta":
        output = written = shapes.trained * shapes.source_bytes
    elif folder is not None and recipe.runtime.copies != "copy":
        written = sum((folder / shard).stat().st_size for shard in shards_of(folder, trained))
    return {"store": store_bytes(shapes, tokens, store_dtype.itemsize), "output": output, "written": written}


def _metrics(recipe: Recipe, *, streamed: bool) -> tuple[list[str], list[str]]:
    names = {
        "choice": ["accuracy_text"],
        "generation": ["accuracy_generation"],
        "perplexity": ["perplexity"],
        "divergence": ["divergence"],
    }
    computed: list[str] = []
    missing: list[str] = []
    for entry in recipe.evaluation.sets:
        if streamed and entry.kind == "generation":
            missing.append(f"{entry.name}: {NO_GENERATION}")
            continue
        letters = entry.kind == "choice" and recipe.evaluation.scores_letters(entry)
        measured = [*names[entry.kind], *(["accuracy_letter", "letter_mass"] if letters else [])]
        computed += [f"{entry.name}: {name}" for name in measured]
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
