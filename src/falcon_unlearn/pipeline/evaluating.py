"""Measure a model, alone or against its original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import ModelError
from falcon_unlearn.evaluation.measures import HeldOutCorpus
from falcon_unlearn.evaluation.sets import EvaluationSet, load_sets
from falcon_unlearn.evaluation.streamed import StreamedSubject
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluate
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import LoadedModel, load_model
from falcon_unlearn.models.engine import tensors_replaced
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.models.streaming import StreamedEngine, load_streamed
from falcon_unlearn.pipeline.resuming import standalone_work, weight_hashes, work_identity
from falcon_unlearn.pipeline.workspace import Workspace, open_workspace, seeded, timed_stage
from falcon_unlearn.results import EvaluationResult, SetResult
from falcon_unlearn.runs import Resume, WorkFolder, cache_folder, public_name

OriginalWeights = Callable[[], AbstractContextManager[None]]


def evaluate_model(
    recipe: Recipe,
    *,
    sink: EventSink = ignore_events,
    original: str | None = None,
    output: Path | None = None,
    resume: Resume = "auto",
) -> EvaluationResult:
    """Load the recipe's model and measure it on the evaluation sets and the held-out texts.

    Args:
        recipe: Model, data and evaluation settings.
        sink: Receives progress.
        original: Model before unlearning; with it the divergence is measured.
        output: Result file. Finished sets are kept in `.NAME.work` beside it until it is written: after a
            kill, the same call goes on from there.
        resume: Go on with unfinished work if there is any, insist on it (`must`), or start again (`never`).

    Raises:
        FalconError: A model or the data cannot be used.
    """
    seconds: dict[str, float] = {}
    with seeded(recipe.seed, recipe.runtime.threads):
        sets = load_sets(recipe.evaluation, seed=recipe.seed)
        workspace = open_workspace(recipe, sink, seconds)
        other = None if original is None else _load_original(recipe.model, original, workspace.loaded)
        swap = None if other is None else _swap(workspace, other)
        further = {"original": None if other is None else weight_hashes(other)}
        identity = work_identity("evaluate", workspace, recipe, sets, **further)
        with standalone_work(output, identity, resume, sink) as work:
            result = evaluate_in(workspace, recipe, "single", sets, swap, sink, seconds, work)
            if work is not None and output is not None:
                work.deliver(result, output)
        return result


def _load_original(settings: ModelSettings, original: str, loaded: LoadedModel) -> LoadedModel:
    chosen = settings.model_copy(update={"name": original, "revision": None})
    if loaded.tensors is not None:
        return load_streamed(chosen, torch.device("cpu"))
    return load_model(chosen, loaded.model.device)


def _swap(workspace: Workspace, other: LoadedModel) -> OriginalWeights:
    engine, tensors = workspace.engine, other.tensors
    if not isinstance(engine, StreamedEngine) or tensors is None:
        return swap_to_original(workspace.loaded, other)
    _refuse_other_shapes(workspace.loaded, other)
    return lambda: engine.reading_from(tensors)


def swap_to_original(loaded: LoadedModel, other: LoadedModel) -> OriginalWeights:
    """Return a factory of contexts in which `loaded` holds the original's weights; keeps only what differs.

    Raises:
        ModelError: The two models differ in more than the values of their tensors.
    """
    _refuse_other_shapes(loaded, other)
    own = dict(loaded.model.named_parameters())
    theirs = dict(other.model.named_parameters())
    differing = {
        n: p.data.to(own[n].dtype)
        for n, p in theirs.items()
        if not p.data.to(own[n].dtype).equal(own[n].data)
    }
    return lambda: tensors_replaced(loaded.model, differing)


def _refuse_other_shapes(loaded: LoadedModel, other: LoadedModel) -> None:
    own = dict(loaded.model.named_parameters())
    theirs = dict(other.model.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ModelError(
            f"--original {public_name(other.name)!r} has other tensors than the model",
            hint="Give the model before unlearning.",
        )


def evaluate_in(
    workspace: Workspace,
    recipe: Recipe,
    label: Literal["before", "after", "single"],
    sets: Sequence[EvaluationSet],
    original: OriginalWeights | None,
    sink: EventSink,
    seconds: dict[str, float],
    work: WorkFolder | None = None,
) -> EvaluationResult:
    """Measure the loaded model in its present state; `work` keeps every finished set."""

    def keep(name: str, measure: Callable[[], SetResult]) -> SetResult:
        key = f"evaluation {label} {name}"
        return measure() if work is None else work.record(key, SetResult, measure)

    with (
        timed_stage("evaluate", f"measuring ({label})", sink, seconds),
        streamed_subject(workspace, recipe) as subject,
    ):
        return evaluate(
            workspace.loaded.model,
            workspace.loaded.tokenizer,
            recipe.evaluation,
            held_out=held_out_corpora(workspace),
            label=label,
            model_name=public_name(workspace.loaded.name),
            seed=recipe.seed,
            original=original,
            sets=sets,
            sink=sink,
            keep=keep,
            subject=subject,
        )


@contextmanager
def streamed_subject(workspace: Workspace, recipe: Recipe) -> Iterator[Subject | None]:
    """Yield what scores a model that stays on disk, with room for its states; None for one in memory."""
    engine, loaded = workspace.engine, workspace.loaded
    if not isinstance(engine, StreamedEngine):
        yield None
        return
    dtype = loaded.dtype
    if dtype != torch.float32:
        dtype = resolve_compute_dtype(recipe.train.compute_dtype, engine.device)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as folder:
        yield StreamedSubject(
            loaded.model,
            loaded.tokenizer,
            recipe.evaluation.batch_tokens,
            engine=engine,
            dtype=dtype,
            folder=Path(folder),
        )


def held_out_corpora(workspace: Workspace) -> list[HeldOutCorpus]:
    """Return what every corpus holds out, as the evaluation takes it."""
    forget = [HeldOutCorpus(c.name, "forget", tuple(c.held_out)) for c in workspace.data.forget if c.held_out]
    retain = [HeldOutCorpus(c.name, "retain", tuple(c.held_out)) for c in workspace.data.retain if c.held_out]
    return [*forget, *retain]
