"""Measure a model, alone or against its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import ModelError
from falcon_unlearn.evaluation.measures import HeldOutCorpus
from falcon_unlearn.evaluation.sets import EvaluationSet, load_sets
from falcon_unlearn.evaluation.suite import evaluate
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import LoadedModel, load_model
from falcon_unlearn.models.engine import tensors_replaced
from falcon_unlearn.pipeline.resuming import standalone_work, weight_hashes, work_identity
from falcon_unlearn.pipeline.workspace import Workspace, open_workspace, seeded, timed_stage
from falcon_unlearn.results import EvaluationResult, SetResult
from falcon_unlearn.runs import Resume, WorkFolder, public_name

OriginalWeights = Callable[[], AbstractContextManager[None]]


def evaluate_model(
    recipe: Recipe,
    *,
    sink: EventSink = ignore_events,
    original: str | None = None,
    work: Path | None = None,
    resume: Resume = "auto",
) -> EvaluationResult:
    """Load the recipe's model and measure it on the evaluation sets and the held-out texts.

    Args:
        recipe: Model, data and evaluation settings.
        sink: Receives progress.
        original: Model before unlearning; with it the divergence is measured.
        work: Folder that keeps finished sets until all are: after a kill, the same call goes on from there.
        resume: Go on with unfinished work if there is any, insist on it (`must`), or start again (`never`).

    Raises:
        FalconError: A model or the data cannot be used.
    """
    seconds: dict[str, float] = {}
    with seeded(recipe.seed, recipe.runtime.threads):
        sets = load_sets(recipe.evaluation, seed=recipe.seed)
        workspace = open_workspace(recipe, sink, seconds)
        other = None if original is None else _load_original(recipe.model, original, workspace.loaded)
        swap = None if other is None else swap_to_original(workspace.loaded, other)
        further = {"original": None if other is None else weight_hashes(other)}
        identity = work_identity("evaluate", workspace, recipe, sets, **further)
        with standalone_work(work, identity, resume, sink) as kept:
            return evaluate_in(workspace, recipe, "single", sets, swap, sink, seconds, kept)


def _load_original(settings: ModelSettings, original: str, loaded: LoadedModel) -> LoadedModel:
    return load_model(settings.model_copy(update={"name": original, "revision": None}), loaded.model.device)


def swap_to_original(loaded: LoadedModel, other: LoadedModel) -> OriginalWeights:
    """Return a factory of contexts in which `loaded` holds the original's weights; keeps only what differs.

    Raises:
        ModelError: The two models differ in more than the values of their tensors.
    """
    own = dict(loaded.model.named_parameters())
    theirs = dict(other.model.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ModelError(
            f"--original {public_name(other.name)!r} has other tensors than the model",
            hint="Give the model before unlearning.",
        )
    differing = {
        n: p.data.to(own[n].dtype)
        for n, p in theirs.items()
        if not p.data.to(own[n].dtype).equal(own[n].data)
    }
    return lambda: tensors_replaced(loaded.model, differing)


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

    with timed_stage("evaluate", f"measuring ({label})", sink, seconds):
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
        )


def held_out_corpora(workspace: Workspace) -> list[HeldOutCorpus]:
    """Return what every corpus holds out, as the evaluation takes it."""
    forget = [HeldOutCorpus(c.name, "forget", tuple(c.held_out)) for c in workspace.data.forget if c.held_out]
    retain = [HeldOutCorpus(c.name, "retain", tuple(c.held_out)) for c in workspace.data.retain if c.held_out]
    return [*forget, *retain]
