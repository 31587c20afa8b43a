"""Load what a run needs: model, tokenizer, engine and corpora."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import PreparedData, prepare_corpora
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.events import EventSink, Notice, StageFinished, StageStarted, ignore_events
from falcon_unlearn.models.access import (
    LoadedModel,
    build_without_weights,
    load_model,
    load_tokenizer,
    pick_device,
    resolve_folder,
)
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.models.sampling import sample_texts
from falcon_unlearn.models.streaming import build_engine, load_streamed
from falcon_unlearn.models.text import TextEncoder, refuse_unknown_tokens
from falcon_unlearn.pipeline.costs import Shapes
from falcon_unlearn.pipeline.counting import assume_tokens, count_tokens, samples_itself
from falcon_unlearn.pipeline.placement import (
    Placement,
    needs_no_placement,
    place,
    weight_bytes,
    window_and_tensors,
)
from falcon_unlearn.pipeline.separating import LoadCorpus, separate_sets
from falcon_unlearn.results import DataResult, FileHash
from falcon_unlearn.runs import format_bytes, public_name, sha256_file
from falcon_unlearn.stopping import current_stop

_REMOTE_CODE = "model.trust_remote_code is on: Python code that comes with {} runs with all your rights"


@dataclass(frozen=True)
class Workspace:
    """Hold the loaded model, its engine and the tokenised corpora."""

    loaded: LoadedModel
    engine: BlockEngine
    data: PreparedData


@contextmanager
def timed_stage(stage: str, message: str, sink: EventSink, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and add its wall time to `seconds`."""
    current_stop().check()
    sink(StageStarted(stage=stage, message=message))
    started = time.perf_counter()
    yield
    taken = time.perf_counter() - started
    seconds[stage] = seconds.get(stage, 0.0) + taken
    sink(StageFinished(stage=stage, seconds=taken))


@contextmanager
def seeded(seed: int, threads: int | None) -> Iterator[None]:
    """Seed Python, NumPy and torch and set the thread count, and restore all of it afterwards."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    num_threads = torch.get_num_threads()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        torch.set_num_threads(num_threads)


def open_workspace(
    recipe: Recipe, sink: EventSink, seconds: dict[str, float], remarks: Sequence[str] = ()
) -> Workspace:
    """Load model and data; `remarks` become warnings of the data.

    Raises:
        FalconError: The model or the data cannot be used.
    """
    if recipe.model.trust_remote_code:
        sink(Notice(message=_REMOTE_CODE.format(public_name(recipe.model.name)), level="warning"))
    device = pick_device(recipe.runtime.device)
    with timed_stage("prepare", f"loading {recipe.model.name}", sink, seconds):
        placement = current_team().from_leader(lambda: choose_placement(recipe, device))
        if placement is not None:
            need = format_bytes(placement.memory["total"])
            sink(Notice(message=f"{placement.reason}; {need} of memory are expected"))
        streamed = placement is not None and placement.streamed
        loaded = (load_streamed if streamed else load_model)(recipe.model, device)
    workspace = fill_workspace(loaded, recipe, sink, seconds, remarks=remarks)
    recompute = placement is not None and placement.recompute
    engine = build_engine(loaded, device, recompute=recompute)
    return replace(workspace, engine=engine)


def choose_placement(recipe: Recipe, device: torch.device) -> Placement | None:
    """Decide whether the model is loaded or read block by block; None: it is small, so it is loaded.

    Raises:
        PrerequisiteError: The memory limit, or the free memory, does not suffice either way.
        FalconError: Config, tokenizer or data cannot be used.
    """
    folder = resolve_folder(recipe.model)
    if needs_no_placement(recipe, weight_bytes(folder, recipe.model), device):
        return None
    model = build_without_weights(recipe.model)
    structure = find_structure(model)
    check_layer(recipe, structure.num_blocks)
    if samples_itself(recipe):
        tokens = assume_tokens(recipe)
    else:
        tokens = count_tokens(recipe, prepare_data(recipe, load_tokenizer(recipe.model), None))
    shapes = Shapes(model, structure, *window_and_tensors(recipe, model, structure))
    compute_dtype = resolve_compute_dtype(recipe.train.compute_dtype, device)
    return place(recipe, shapes, tokens, compute_dtype, device=device, is_folder=folder is not None)


def fill_workspace(
    loaded: LoadedModel,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    load: LoadCorpus = load_examples,
    remarks: Sequence[str] = (),
) -> Workspace:
    """Prepare the data for a model that is loaded already; a fixed layer is checked first.

    Args:
        loaded: The model.
        recipe: All settings.
        sink: Receives progress.
        seconds: Receives the wall time of the stage.
        load: Reads one set; replace it where the data are in memory.
        remarks: Further warnings of the data.

    Raises:
        UsageError: The fixed layer lies outside the model.
        DataError: The data cannot be used.
    """
    check_layer(recipe, loaded.structure.num_blocks)
    with timed_stage("data", "reading forget and retain text", sink, seconds):
        data = current_team().from_leader(lambda: prepare_data(recipe, loaded.tokenizer, loaded.model, load))
        _refuse_unknown_tokens(data, loaded)
        warnings = [*data.result.warnings, *remarks]
        further = {"evaluation_files": _evaluation_files(recipe), "warnings": warnings}
        data = replace(data, result=data.result.model_copy(update=further))
    for warning in data.result.warnings:
        sink(Notice(message=warning, level="warning"))
    return Workspace(loaded, build_engine(loaded), data)


def _refuse_unknown_tokens(data: PreparedData, loaded: LoadedModel) -> None:
    num_rows = loaded.model.config.get_text_config().vocab_size
    for corpus in (*data.forget, *data.retain):
        for example in (*corpus.training, *corpus.held_out):
            refuse_unknown_tokens(example.input_ids, num_rows, f"{corpus.name}: {example.text}")


def _evaluation_files(recipe: Recipe) -> dict[str, FileHash]:
    """Hash the files of the evaluation sets, so that a verification can tell whether it has the same ones."""
    files = {entry.name: Path(entry.path).expanduser() for entry in recipe.evaluation.sets}
    return {
        name: FileHash(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))
        for name, path in files.items()
        if path.is_file()
    }


def check_layer(recipe: Recipe, num_blocks: int) -> None:
    """Raise UsageError when the fixed layer is outside the model, or the window does not fit into it."""
    layer = recipe.selection.layer
    if layer is not None and layer >= num_blocks:
        raise UsageError(
            f"selection.layer: got {layer}, but the model has blocks 0 to {num_blocks - 1}",
            hint="Choose a block inside that range, or leave the layer out to let the selection choose.",
        )
    if recipe.train.layers > num_blocks:
        raise UsageError(f"train.layers: got {recipe.train.layers}, but the model has {num_blocks} blocks")


def prepare_data(
    recipe: Recipe, tokenizer: Any, model: Any | None, load: LoadCorpus = load_examples
) -> PreparedData:
    """Load, filter and tokenise all corpora; `model` is needed for `--retain self` only."""
    encoder = TextEncoder(
        tokenizer, chat_template=recipe.data.chat_template, maximum_tokens=recipe.data.maximum_tokens
    )
    return prepare_corpora(
        recipe.data,
        encoder.encode,
        seed=recipe.seed,
        sample_self=None
        if model is None
        else lambda count, tokens, seed: sample_texts(model, tokenizer, count, tokens, seed),
        load=load,
    )


def validate_data(recipe: Recipe, *, sink: EventSink = ignore_events) -> DataResult:
    """Load tokenizer, data and evaluation sets, and count; loads no weights.

    Raises:
        FalconError: The tokenizer or the data cannot be used, or a kept evaluation set overlaps forget text.
    """
    with timed_stage("data", "reading forget and retain text", sink, {}):
        remarks = separate_sets(recipe, load_sets(recipe.evaluation, seed=recipe.seed))
        result = _count_data(recipe, load_tokenizer(recipe.model), sink)
        return result.model_copy(update={"warnings": [*result.warnings, *remarks]})


def _count_data(recipe: Recipe, tokenizer: Any, sink: EventSink) -> DataResult:
    """Count all sets but sampled ones, which do not exist yet."""
    sampled = [corpus for corpus in recipe.data.retain if corpus.path == "self"]
    if sampled:
        kept = tuple(corpus for corpus in recipe.data.retain if corpus.path != "self")
        sink(
            Notice(
                message="retain text `self` is sampled from the model when the run starts; not counted here"
            )
        )
        if not kept:
            return _count_forget_only(recipe, tokenizer)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"retain": kept})})
    return prepare_data(recipe, tokenizer, None).result


def _count_forget_only(recipe: Recipe, tokenizer: Any) -> DataResult:
    """Count the forget domains alone, with a stand-in for the retain text that does not exist yet."""
    encoder = TextEncoder(
        tokenizer, chat_template=recipe.data.chat_template, maximum_tokens=recipe.data.maximum_tokens
    )
    stand_in = " ".join(str(number) for number in range(64))
    texts = [f"{stand_in} {number}" for number in range(recipe.data.self_samples)]
    data = prepare_corpora(recipe.data, encoder.encode, seed=recipe.seed, sample_self=lambda *_: texts)
    forget = [count for count in data.result.corpora if count.role == "forget"]
    return DataResult(corpora=forget, warnings=data.result.warnings)
