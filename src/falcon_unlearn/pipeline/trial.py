"""Test the choice of a layer: unlearn briefly at some candidates, measure, and put the model back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.data.wordings import split_by_wording
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import EventSink, Notice, Progress, ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.arithmetic import fast_arithmetic
from falcon_unlearn.pipeline.candidates import spread_layers, tries_layers, wants_trial
from falcon_unlearn.pipeline.evaluating import streamed_subject
from falcon_unlearn.pipeline.workspace import Workspace, timed_stage
from falcon_unlearn.results import SelectionResult, TrialRecord
from falcon_unlearn.runs import WorkFolder
from falcon_unlearn.selection.response import LayerResponse, confirm_choice, summarise_response
from falcon_unlearn.training.session import trial_window

NOT_STREAMED = (
    "the model is read block by block, and every trial would read all of it again "
    "(selection.trial.when=always does it)"
)
MEASURED_SHARE = 1 / 3
"""Share of a forget domain that is kept from the trial's training."""


def confirm_by_trial(
    selection: SelectionResult,
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path | None,
    work: WorkFolder | None,
) -> SelectionResult:
    """Return the selection with a layer at which a trial works; as it is where there is nothing to try.

    All ranks of a job train, the leader measures. `work` keeps what every finished layer gave, in a job of
    one process.
    """
    candidates = [value.layer for value in selection.layers if value.candidate]
    if not wants_trial(recipe) or len(candidates) < 2:
        return selection
    if not tries_layers(recipe, streamed=workspace.engine.is_streamed):
        return _without_evidence(selection, NOT_STREAMED, sink)
    measured, data = divide_data(workspace.data, recipe)
    if not measured:
        return _without_evidence(selection, "too few forget texts to measure on", sink)
    layers = sorted({selection.layer, *spread_layers(candidates, recipe.selection.trial.tried)})
    started = time.perf_counter()
    kept = work if current_team().size == 1 else None
    with timed_stage("trial", f"unlearning briefly at {len(layers)} layers", sink, seconds):
        responses = _try_layers(layers, measured, data, workspace, recipe, sink, scratch, kept)
    return _confirm(selection, responses, len(measured), recipe, sink, time.perf_counter() - started)


def divide_data(data: PreparedData, recipe: Recipe) -> tuple[list[EncodedExample], PreparedData]:
    """Return forget texts to measure on, and small corpora to train on that hold none of their wordings."""
    settings = recipe.selection.trial
    measured: list[EncodedExample] = []
    forget: list[Corpus] = []
    for corpus in data.forget:
        rows = [example.input_ids for example in corpus.training]
        split = split_by_wording(rows, MEASURED_SHARE, f"{recipe.seed}:{corpus.name}")
        held_out = [corpus.training[i] for i in split.held_out]
        measured += [text for text in held_out if any(text.answer_mask[1:])][: settings.measured]
        trained = tuple(corpus.training[i] for i in split.trained[: settings.texts])
        forget.append(replace(corpus, training=trained))
    retain = tuple(replace(corpus, training=corpus.training[: settings.texts]) for corpus in data.retain)
    return measured, replace(data, forget=tuple(forget), retain=retain)


def trial_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the trial: few and long steps, no budget that would stop it."""
    settings, train = recipe.selection.trial, recipe.train
    changes: dict[str, Any] = {
        "steps": settings.updates,
        "warmup_steps": 0,
        "relative_step": train.relative_step * settings.speed,
        "maximum_retain_drift": None,
        "maximum_utility_loss": None,
    }
    if isinstance(train.learning_rate, float):
        changes["learning_rate"] = train.learning_rate * settings.speed
    return recipe.model_copy(update={"train": train.model_copy(update=changes)})


def _try_layers(
    layers: Sequence[int],
    measured: list[EncodedExample],
    data: PreparedData,
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    scratch: Path | None,
    work: WorkFolder | None,
) -> list[LayerResponse]:
    """Return the response of every layer whose trial did not diverge."""
    before = _kept(work, "trial before", lambda: _scores(workspace, recipe, measured, {}))
    responses = []
    for done, layer in enumerate(layers):
        sink(Progress(stage="trial", done=done, total=len(layers), message=f"layer {layer}"))

        def compute(layer: int = layer) -> list[float]:
            with TemporaryDirectory(dir=scratch) as folder:
                changed = trial_window(
                    workspace.engine, data, trial_recipe(recipe), layer, Path(folder), ignore_events
                )
            return _scores(workspace, recipe, measured, changed)

        try:
            after = _kept(work, f"trial at layer {layer}", compute)
        except NumericalError as error:
            sink(Notice(message=f"the trial at layer {layer} is left out: {error.message}", level="warning"))
            continue
        falls = [old - new for old, new in zip(before, after, strict=True)]
        responses.append(summarise_response(layer, falls))
    sink(Progress(stage="trial", done=len(layers), total=len(layers)))
    return responses


def _kept(work: WorkFolder | None, key: str, compute: Callable[[], list[float]]) -> list[float]:
    found = None if work is None else work.get(key)
    if found is not None:
        return list(found["scores"])
    scores = compute()
    if work is not None:
        work.put(key, {"scores": scores})
    return scores


def _scores(
    workspace: Workspace, recipe: Recipe, texts: list[EncodedExample], changed: dict[str, Tensor]
) -> list[float]:
    """Return every text's mean log-probability per answer token, in nats, with tensors changed."""
    return current_team().from_leader(lambda: _score_alone(workspace, recipe, texts, changed))


def _score_alone(
    workspace: Workspace, recipe: Recipe, texts: list[EncodedExample], changed: dict[str, Tensor]
) -> list[float]:
    loaded, engine = workspace.loaded, workspace.engine
    pairs = [(text.input_ids[:1], text.input_ids[1:]) for text in texts]
    with (
        fast_arithmetic(loaded.model),
        engine.replaced(changed),
        streamed_subject(workspace, recipe) as streamed,
    ):
        subject = streamed or Subject(loaded.model, loaded.tokenizer, recipe.evaluation.batch_tokens)
        scores = subject.score(pairs)
    means = []
    for text, score in zip(texts, scores, strict=True):
        logs = zip(score.token_log_probabilities, text.answer_mask[1:], strict=True)
        chosen = [value for value, answers in logs if answers]
        means.append(sum(chosen) / len(chosen))
    return means


def _confirm(
    selection: SelectionResult,
    responses: list[LayerResponse],
    num_measured: int,
    recipe: Recipe,
    sink: EventSink,
    seconds: float,
) -> SelectionResult:
    settings = recipe.selection.trial
    confirmed = confirm_choice(responses, selection.tied_layers, settings.share)
    record = TrialRecord(
        updates=settings.updates,
        speed=settings.speed,
        measured=num_measured,
        share=settings.share,
        strongest_layer=None if confirmed is None else confirmed.strongest,
        seconds=seconds,
    )
    figures = {r.layer: {"fall": r.fall, "fall_error": r.standard_error} for r in responses}
    rows = [value.model_copy(update=figures.get(value.layer, {})) for value in selection.layers]
    tried = selection.model_copy(update={"layers": rows, "trial": record})
    if confirmed is None:
        return _without_evidence(tried, "it lowered the log-probability of the forget text nowhere", sink)
    words = f"{selection.explanation} {confirmed.reason}"
    return tried.model_copy(update={"layer": confirmed.layer, "explanation": words})


def _without_evidence(selection: SelectionResult, why: str, sink: EventSink) -> SelectionResult:
    sink(Notice(message=f"no trial confirms the layer: {why}", level="warning"))
    words = f"{selection.explanation} No trial confirmed it: {why}."
    return selection.model_copy(update={"explanation": words})
