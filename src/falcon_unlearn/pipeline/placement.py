"""Decide where the model lives during a run: in memory, or on disk with one block in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.models.architectures import ModelStructure, resolve_trained_parameters
from falcon_unlearn.pipeline.candidates import candidate_range
from falcon_unlearn.pipeline.costs import Shapes, Tokens, resident_memory, streamed_memory
from falcon_unlearn.runs import format_bytes
from falcon_unlearn.training.outputs.trainables import trained_names

COMFORTABLE_SHARE = 0.4
"""A model whose weights take less of the free memory is loaded without further questions."""


@dataclass(frozen=True)
class Placement:
    """Say how the model is held, and what that takes."""

    streamed: bool
    recompute: bool
    """Run blocks again in the backward pass rather than keep their activations."""
    memory: dict[str, int]
    """Predicted peak by part, and `total`."""
    limit: int | None
    """Bytes allowed; None when the user set no limit."""
    reason: str


def window_and_tensors(
    recipe: Recipe, model: Any, structure: ModelStructure
) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the trained window, the costliest one while the layer is open, and its trained tensors."""
    layer = recipe.selection.layer
    top = layer if layer is not None else candidate_range(recipe, structure.num_blocks)[1]
    if recipe.method_entry.acts_on == "outputs":
        return (0, structure.num_blocks - 1), trained_names(model, structure, recipe, top)
    window = (top - recipe.train.layers + 1, top)
    blocks = range(window[0], window[1] + 1)
    return window, resolve_trained_parameters(model, structure, recipe.train.modules, blocks)


def needs_no_placement(recipe: Recipe, num_bytes: int, device: torch.device) -> bool:
    """Tell whether a model of `num_bytes` is small enough to be loaded without a prediction."""
    runtime = recipe.runtime
    if runtime.streaming == "never" and runtime.memory_limit is None:
        return True
    if runtime.streaming == "always" or runtime.memory_limit is not None:
        return False
    return num_bytes < COMFORTABLE_SHARE * free_memory(device)


def place(
    recipe: Recipe,
    shapes: Shapes,
    tokens: Tokens,
    compute_dtype: torch.dtype,
    *,
    device: torch.device,
    is_folder: bool,
) -> Placement:
    """Choose the fastest placement that fits the limit, or the free memory where there is no limit.

    Raises:
        PrerequisiteError: None fits, with the prediction and the reason.
    """
    runtime = recipe.runtime
    limit = runtime.memory_limit_bytes
    allowed = free_memory(device) if limit is None else limit
    what = "free" if limit is None else "the memory limit"
    resident = resident_memory(recipe, shapes, tokens, compute_dtype)
    obstacle = _obstacle(recipe, is_folder=is_folder)
    if runtime.streaming != "always" or obstacle is not None:
        if runtime.streaming == "always":
            raise PrerequisiteError(f"runtime.streaming=always: {obstacle}", hint="Set it to auto or never.")
        if resident["total"] <= allowed:
            return Placement(False, False, resident, limit, "the model fits into memory")
        if limit is None:
            # A prediction is no proof, and there is no other way: the user set no limit to keep.
            reason = f"the model is loaded, though {format_bytes(allowed)} are free"
            if obstacle is not None or runtime.streaming == "never":
                return Placement(False, False, resident, None, reason)
        elif runtime.streaming == "never" or obstacle is not None:
            raise _refusal(resident, allowed, what, obstacle or "runtime.streaming is never")
    options = [
        streamed_memory(recipe, shapes, tokens, compute_dtype, recompute=recompute)
        for recompute in (False, True)
    ]
    for recompute, memory in zip((False, True), options, strict=True):
        if memory["total"] <= allowed:
            return Placement(
                True, recompute, memory, limit, "the model stays on disk and is read block by block"
            )
    raise _refusal(options[1], allowed, what, "the window alone takes that much, read block by block")


def free_memory(device: torch.device) -> int:
    """Return the free bytes of the device, or this process's share of those of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // current_team().place.local_size


def _obstacle(recipe: Recipe, *, is_folder: bool) -> str | None:
    """Say why a run cannot be streamed, None when it can."""
    if recipe.method_entry.acts_on == "outputs":
        return f"method {recipe.method} acts on the outputs of the whole model"
    if any(corpus.path == "self" for corpus in recipe.data.retain):
        return "retain text `self` is sampled from the whole model"
    if recipe.train.maximum_utility_loss is not None:
        return "train.maximum_utility_loss runs the whole model between steps"
    if recipe.audit.tier != "off":
        return "audit.tier attacks the whole model; audit the written folder with `falcon-unlearn audit`"
    if recipe.runtime.shard == "window" and current_team().size > 1:
        return "runtime.shard=window splits blocks that are in memory"
    return None if is_folder else "a GGUF file cannot be read block by block"


def _refusal(memory: dict[str, int], allowed: int, what: str, reason: str) -> PrerequisiteError:
    parts = sorted((size, name) for name, size in memory.items() if name != "total")
    largest = ", ".join(f"{name} {format_bytes(size)}" for size, name in reversed(parts[-3:]))
    return PrerequisiteError(
        f"the run needs {format_bytes(memory['total'])} of memory ({largest}), "
        f"{format_bytes(allowed)} are {what}: {reason}",
        hint="Lower train.layers, train.batch_size or data.maximum_tokens, or allow more memory.",
    )


def is_gguf(settings: ModelSettings) -> bool:
    """Tell whether the model is one GGUF file."""
    return Path(settings.name).expanduser().is_file()


def local_folder(settings: ModelSettings) -> Path | None:
    """Return the folder of a model that is here already, else None: a GGUF file, or still on the hub."""
    path = Path(settings.name).expanduser()
    return path if path.is_dir() else None


def weight_bytes(folder: Path | None, settings: ModelSettings) -> int:
    """Return the bytes of a model's weight files."""
    files = [Path(settings.name).expanduser()] if folder is None else folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)
