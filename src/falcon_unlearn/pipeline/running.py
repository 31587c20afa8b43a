"""Run all stages and write the output folder in one step at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor

from falcon_unlearn._version import __version__
from falcon_unlearn.audit.session import Audit
from falcon_unlearn.checkpoints.delta import write_delta
from falcon_unlearn.checkpoints.writer import write_checkpoint
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.runtime import RuntimeSettings
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.collapse import find_collapse
from falcon_unlearn.evaluation.sets import EvaluationSet, load_sets
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.pipeline.auditing import audit_in, recipe_sources, write_audit
from falcon_unlearn.pipeline.evaluating import evaluate_in
from falcon_unlearn.pipeline.resuming import kept_on_failure, told_on_commit, weight_hashes, work_identity
from falcon_unlearn.pipeline.selecting import no_selection, select_in
from falcon_unlearn.pipeline.separating import separate_sets
from falcon_unlearn.pipeline.workspace import Workspace, fill_workspace, open_workspace, seeded, timed_stage
from falcon_unlearn.report import model_card, render_report
from falcon_unlearn.results import EvaluationResult, RunSummary, SelectionResult
from falcon_unlearn.runs import (
    RECORDS,
    Journal,
    Resume,
    WorkFolder,
    capture_environment,
    check_output,
    fingerprint,
    open_work,
    public_name,
    staged_folder,
    weight_file_words,
    work_path,
    write_json_atomic,
    write_manifest,
    write_text_atomic,
)
from falcon_unlearn.training.outputs import unlearn_outputs
from falcon_unlearn.training.session import Session, unlearn_window

_MAXIMUM_CARD_CHARACTERS = 1 << 20
"""Of the original model's card, which is copied into ours."""


def run_pipeline(
    recipe: Recipe,
    output: Path,
    *,
    typed_recipe: str,
    command: str,
    sink: EventSink = ignore_events,
    resume: Resume = "auto",
) -> RunSummary:
    """Load, measure, select, unlearn, measure again, write and report.

    What is finished is kept in `.NAME.work` beside the output until all is: after a kill, the same call goes
    on from there.

    Args:
        recipe: The validated recipe.
        output: New folder for the model and `falcon/`.
        typed_recipe: The recipe as the user wrote it.
        command: A command that repeats the run.
        sink: Receives progress.
        resume: Go on with unfinished work if there is any, insist on it (`must`), or start again (`never`).

    Raises:
        FalconError: Something cannot be used or went wrong; `output` does not exist then.
    """
    return _run(recipe, output, typed_recipe, command, sink, resume, evaluate=True)


def unlearn(
    recipe: Recipe,
    output: Path,
    *,
    typed_recipe: str,
    command: str,
    sink: EventSink = ignore_events,
    resume: Resume = "auto",
) -> RunSummary:
    """Run without evaluation: select unless the layer is fixed, unlearn, write, report."""
    return _run(recipe, output, typed_recipe, command, sink, resume, evaluate=False)


def _run(
    recipe: Recipe,
    output: Path,
    typed: str,
    command: str,
    sink: EventSink,
    resume: Resume,
    *,
    evaluate: bool,
) -> RunSummary:
    seconds: dict[str, float] = {}
    work = None
    with (
        told_on_commit(lambda: work),
        seeded(recipe.seed, recipe.runtime.threads),
        staged_folder(output) as staging,
    ):
        sets = load_sets(recipe.evaluation, seed=recipe.seed) if evaluate else []
        if evaluate and recipe.audit.tier != "off":
            recipe_sources(recipe)  # refuses before any work is done
        workspace = open_workspace(recipe, sink, seconds, separate_sets(recipe, sets))
        identity = work_identity("run" if evaluate else "unlearn", workspace, recipe, sets)
        work = open_work(work_path(check_output(output)), identity, resume, sink)
        with kept_on_failure(work):
            chosen = sets if evaluate else None
            summary = _finish(workspace, recipe, output, staging, typed, command, sink, seconds, chosen, work)
            work.announce(staging)
    # The output is in place; until then a kill must find the work.
    work.remove()
    return summary


def run_loaded(
    loaded: LoadedModel,
    recipe: Recipe,
    output: Path,
    *,
    typed_recipe: str = "",
    command: str = "",
    sink: EventSink = ignore_events,
) -> RunSummary:
    """Run all stages on a model that is in memory; the model is changed in place."""
    seconds: dict[str, float] = {}
    with seeded(recipe.seed, recipe.runtime.threads), staged_folder(output) as staging:
        sets = load_sets(recipe.evaluation, seed=recipe.seed)
        remarks = separate_sets(recipe, sets)
        workspace = fill_workspace(loaded, recipe, sink, seconds, remarks=remarks)
        return _finish(workspace, recipe, output, staging, typed_recipe, command, sink, seconds, sets)


def _finish(
    workspace: Workspace,
    recipe: Recipe,
    output: Path,
    staging: Path,
    typed: str,
    command: str,
    sink: EventSink,
    seconds: dict[str, float],
    sets: list[EvaluationSet] | None,
    work: WorkFolder | None = None,
) -> RunSummary:
    before = after = None
    if sets is not None:
        before = evaluate_in(workspace, recipe, "before", sets, None, sink, seconds, work)
    with TemporaryDirectory(dir=staging, prefix="scratch-") as scratch:
        folder = Path(scratch) if work is None else work.folder("stores")
        selection, session = train_in(workspace, recipe, sink, seconds, folder, work=work)
    if sets is not None:
        original = original_weights(workspace, session)
        after = evaluate_in(workspace, recipe, "after", sets, original, sink, seconds, work)
    collapse = [] if before is None or after is None else find_collapse(before, after)
    for line in collapse:
        sink(Notice(message=f"the model has collapsed: {line}", level="warning"))
    audit = None
    if recipe.audit.tier != "off" and sets is not None:
        journal = None if work is None else Journal(work.path / "audit.jsonl", sink)
        with timed_stage("audit", "auditing what can still be got out", sink, seconds):
            audit = audit_in(workspace, recipe, session.original, sink=sink, journal=journal)
    with timed_stage("write", "writing the model", sink, seconds):
        write_model(staging, workspace, session, recipe.runtime, sink)
    stages = Stages(selection, session, before, after, audit)
    with timed_stage("report", "writing the report", sink, seconds):
        write_evidence(staging, workspace, recipe, stages, typed=typed, command=command, seconds=seconds)
    return RunSummary(
        output=public_name(output),
        report=str(output / RECORDS / "report.html"),
        data=workspace.data.result,
        selection=selection,
        training=session.result,
        before=before,
        after=after,
        collapse=collapse,
        seconds=seconds,
    )


@dataclass(frozen=True)
class Stages:
    """Hold what the stages of one run gave."""

    selection: SelectionResult
    session: Session
    before: EvaluationResult | None
    after: EvaluationResult | None
    audit: Audit | None = None


def train_in(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path,
    selection: SelectionResult | None = None,
    work: WorkFolder | None = None,
) -> tuple[SelectionResult, Session]:
    """Select, unless a selection is given, and unlearn; the loaded model holds the result.

    Args:
        workspace: Model and data.
        recipe: All settings.
        sink: Receives progress.
        seconds: Receives wall times by stage.
        scratch: Existing folder for the stores.
        selection: Result of an earlier step 1.
        work: Keeps what is finished; nothing is kept if None.

    Raises:
        FalconError: The run diverged; the model holds its original tensors again.
    """
    selection = selection or _select_for_method(workspace, recipe, sink, seconds, scratch, work)
    engine, data = workspace.engine, workspace.data
    if recipe.method_entry.acts_on == "outputs":
        refuse_several_ranks(recipe.method)
        tokenizer = workspace.loaded.tokenizer
        session = unlearn_outputs(engine, tokenizer, data, recipe, selection.layer, scratch, sink, work)
    else:
        session = unlearn_window(engine, data, recipe, selection.layer, scratch, sink, work)
    seconds |= {"cache": session.result.seconds_cache, "train": session.result.seconds_train}
    return selection, session


def refuse_several_ranks(method: str) -> None:
    """Raise UsageError where a method that acts on outputs is started on several ranks."""
    if (size := current_team().size) > 1:
        raise UsageError(
            f"method: {method} acts on outputs and runs in one process, this is a job of {size}",
            hint="Start it without torchrun, or take a method on states: falcon, rmu, circuit_breakers.",
        )


def _select_for_method(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path,
    work: WorkFolder | None,
) -> SelectionResult:
    """Run step 1 where the method needs a layer."""
    if recipe.method_entry.acts_on == "outputs" and recipe.train.parameters != "window":
        return no_selection(workspace.engine.structure.num_blocks - 1)
    return select_in(workspace, recipe, sink, seconds, scratch, work)


def write_model(
    staging: Path,
    workspace: Workspace,
    session: Session,
    runtime: RuntimeSettings,
    sink: EventSink = ignore_events,
) -> None:
    """Write the changed model and its tokenizer so that `from_pretrained` loads the folder, or a delta.

    Raises:
        UsageError: A delta was asked for, and there is no checkpoint folder that it could refer to.
    """
    loaded = workspace.loaded
    if runtime.output_format == "delta":
        if loaded.folder is None:
            raise UsageError(
                "runtime.output_format=delta needs a base in safetensors files", hint="Write the whole model."
            )
        hashes = weight_hashes(loaded)
        write_delta(staging, session.changed, source=loaded.folder, base_model=loaded.name, hashes=hashes)
        return
    made = write_checkpoint(
        staging,
        session.changed,
        source=loaded.folder,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        copies=runtime.copies,
    )
    if made:
        sink(Notice(message=f"weight files: {weight_file_words(made)}"))


def write_evidence(
    staging: Path,
    workspace: Workspace,
    recipe: Recipe,
    stages: Stages,
    *,
    typed: str,
    command: str,
    seconds: dict[str, float],
) -> None:
    """Write records, card and report beside the model, and close the folder with its manifest."""
    records = staging / RECORDS
    records.mkdir()
    _write_records(records, workspace, recipe, typed, stages)
    _write_manifest(staging, workspace, recipe, command, seconds)
    card = _base_card(workspace.loaded.folder)
    write_text_atomic(staging / "README.md", model_card(staging, card))
    render_report(staging)
    # The manifest comes again, and last: now it covers card and report.
    _write_manifest(staging, workspace, recipe, command, seconds)


def original_weights(workspace: Workspace, session: Session) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager factory that puts the original tensors back for a while."""
    original: dict[str, Tensor] = session.original
    return lambda: workspace.engine.replaced(original)


def _write_records(
    records: Path,
    workspace: Workspace,
    recipe: Recipe,
    typed: str,
    stages: Stages,
) -> None:
    resolved = resolved_recipe(recipe, stages.selection, stages.session)
    write_text_atomic(records / "recipe.yaml", typed)
    write_text_atomic(records / "recipe.resolved.yaml", yaml.safe_dump(resolved, sort_keys=False))
    write_json_atomic(records / "data.json", workspace.data.result)
    write_json_atomic(records / "selection.json", stages.selection)
    write_json_atomic(records / "training.json", stages.session.result)
    device = str(workspace.engine.device)
    write_json_atomic(
        records / "environment.json", capture_environment(device, torch.get_num_threads(), recipe.seed)
    )
    if stages.audit is not None:
        write_audit(records, stages.audit)
    for name, result in (("before", stages.before), ("after", stages.after)):
        if result is not None:
            write_json_atomic(records / f"evaluation.{name}.json", result)


def resolved_recipe(recipe: Recipe, selection: SelectionResult, session: Session) -> dict[str, Any]:
    """Return the recipe with every `auto` decided, so that repeating it decides nothing anew.

    Local paths are reduced to their names: a recipe in a published folder must not tell where files lay.
    """
    plain = recipe.model_dump(mode="json")
    plain["model"]["name"] = public_name(recipe.model.name)
    for corpus in (*plain["data"]["forget"], *plain["data"]["retain"], *plain["evaluation"]["sets"]):
        corpus["path"] = public_name(corpus["path"])
    if recipe.audit.null_model is not None:
        plain["audit"]["null_model"] = public_name(recipe.audit.null_model)
    plain["selection"]["layer"] = selection.layer
    plain["train"]["learning_rate"] = session.result.learning_rate
    plain["train"]["compute_dtype"] = session.result.compute_dtype
    if recipe.train.store_dtype == "auto":
        plain["train"]["store_dtype"] = session.result.compute_dtype
    plain["model"]["dtype"] = str(next(iter(session.original.values())).dtype).removeprefix("torch.")
    plain["objective"]["offset"]["granularity"] = recipe.objective.offset.resolved_granularity
    return plain


def _write_manifest(
    staging: Path, workspace: Workspace, recipe: Recipe, command: str, seconds: dict[str, float]
) -> None:
    weights = weight_hashes(workspace.loaded)
    write_manifest(
        staging,
        fingerprint=fingerprint(
            recipe=recipe, data=workspace.data.result, weights=weights, version=__version__
        ),
        base_model=public_name(recipe.model.name),
        base_weights_sha256=weights,
        command=command,
        seconds=seconds,
    )


def _base_card(folder: Path | None) -> str:
    card = folder / "README.md" if folder is not None else None
    if card is None or not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MAXIMUM_CARD_CHARACTERS)
