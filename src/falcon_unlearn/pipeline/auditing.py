"""Audit models that lie in files, or those of a run while they are in memory."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from falcon_unlearn.audit.catalogue import chosen_attacks
from falcon_unlearn.audit.gathering import AuditSources, gather
from falcon_unlearn.audit.keeping import Memory
from falcon_unlearn.audit.models import AuditedModel, differing_tensors
from falcon_unlearn.audit.session import Audit, AuditInputs, run_audit
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.runtime import RuntimeSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import LoadedModel, load_model, pick_device
from falcon_unlearn.models.engine import tensors_replaced
from falcon_unlearn.pipeline.workspace import Workspace, seeded, timed_stage
from falcon_unlearn.report import render_audit, render_report
from falcon_unlearn.results import EnvironmentResult
from falcon_unlearn.results_audit import AUDIT_FILE, AuditResult, ItemRow, ModelRole
from falcon_unlearn.runs import (
    MANIFEST,
    RECORDS,
    Journal,
    capture_environment,
    public_name,
    write_json_atomic,
    write_text_atomic,
)

JOURNAL_FILE = "audit.journal.jsonl"
_LOCK_FILE = ".audit.lock"


@dataclass(frozen=True)
class AuditRequest:
    """Name the models and files of an audit."""

    original: str
    unlearned: str
    sources: AuditSources
    settings: AuditSettings
    model: ModelSettings
    """How the models are loaded; its name is replaced."""
    runtime: RuntimeSettings
    seed: int = 0
    """Decides samples and splits; seeds of attacks are in the settings."""


def audit_folder(unlearned: str, output: Path | None) -> Path:
    """Return where an audit is written: the folder given, else `falcon/` of the audited run.

    Raises:
        UsageError: Neither is there, or the folder holds a finished audit.
    """
    if output is not None:
        # With its journal beside it, the audit was killed before its page was written: it goes on.
        if (output / AUDIT_FILE).exists() and not (output / JOURNAL_FILE).exists():
            raise UsageError(
                f"output folder in use: {output} holds an audit", hint="choose a new folder with --output"
            )
        return output
    run = Path(unlearned).expanduser()
    if not (run / MANIFEST).is_file():
        raise UsageError(
            f"{public_name(unlearned)!r} is not the output folder of a run, so the audit has no place",
            hint="name a folder with --output",
        )
    return run / RECORDS


def audit_models(request: AuditRequest, folder: Path, *, sink: EventSink = ignore_events) -> AuditResult:
    """Audit models that lie in files, and write `audit.json` and `audit.items.jsonl` into a folder.

    A killed audit goes on where it was when it is started again with the same folder.

    Args:
        request: Models, files and settings.
        folder: Where results and journal go; it is created.
        sink: Receives progress.

    Raises:
        FalconError: A model or the facts cannot be used, or another process writes there.
    """
    seconds: dict[str, float] = {}
    with seeded(request.seed, request.runtime.threads), _locked(folder):
        with timed_stage("audit", "auditing what can still be got out", sink, seconds):
            journal = folder / JOURNAL_FILE
            inputs = _inputs(request)
            audit = run_audit(
                inputs, memory=Memory(Journal(journal, sink)), environment=_environment(request), sink=sink
            )
            write_audit(folder, audit)
            render_audit_page(folder)
            with suppress(OSError):
                journal.unlink(missing_ok=True)
    return audit.result


def render_audit_page(folder: Path) -> Path:
    """Show an audit where people look: in the report of its run, or on a page of its own."""
    run = folder.parent
    belongs_to_run = folder.name == RECORDS and (run / MANIFEST).is_file()
    return render_report(run) if belongs_to_run else render_audit(folder)


def write_audit(folder: Path, audit: Audit) -> None:
    """Write the record and one line per item."""
    write_text_atomic(folder / audit.result.items_file, items_text(audit.rows))
    write_json_atomic(folder / AUDIT_FILE, audit.result)


def items_text(rows: Sequence[ItemRow]) -> str:
    """Return one line of JSON per item."""
    lines = (
        json.dumps(row.model_dump(mode="json", exclude_defaults=False), ensure_ascii=False) for row in rows
    )
    return "".join(f"{line}\n" for line in lines)


def audit_in(
    workspace: Workspace,
    recipe: Recipe,
    original: Mapping[str, Tensor],
    *,
    sink: EventSink = ignore_events,
    journal: Journal | None = None,
) -> Audit:
    """Audit the model of a run, whose original tensors are at hand.

    Args:
        workspace: The changed model.
        recipe: Its `audit` section says what to do; facts come from the choice sets of the evaluation, and
            where a role has none, from the corpora.
        original: The tensors before the change, where they differ.
        sink: Receives progress.
        journal: Keeps finished work.
    """
    gathered = gather(recipe_sources(recipe), recipe.audit, seed=recipe.seed)
    loaded = workspace.loaded
    before = {name: tensor.detach().clone() for name, tensor in original.items()}
    models: dict[ModelRole, AuditedModel] = {
        "original": AuditedModel(
            "original", public_name(recipe.model.name), lambda: _swapped(loaded, before)
        ),
        "unlearned": AuditedModel("unlearned", "this run", lambda: _kept(loaded)),
    }
    device = loaded.model.device
    if recipe.audit.null_model is not None:
        models["null"] = _from_file("null", recipe.audit.null_model, recipe.model, device)
    inputs = AuditInputs(
        models=models,
        sets=gathered.sets,
        data=gathered.data,
        attacks=tuple(chosen_attacks(recipe.audit.attacks, recipe.audit.run_tier)),
        settings=recipe.audit,
        set_records=gathered.records,
        originals=_originals(models) | {"unlearned": lambda: before},
        batch_tokens=recipe.evaluation.batch_tokens,
    )

    def environment() -> EnvironmentResult:
        return capture_environment(str(device), torch.get_num_threads(), recipe.seed)

    return run_audit(inputs, memory=Memory(journal), environment=environment, sink=sink)


def recipe_sources(recipe: Recipe) -> AuditSources:
    """Return the files whose facts an audit of a run asks for.

    Raises:
        UsageError: There are no facts to keep.
    """
    corpora = {
        "forget": [entry for entry in recipe.data.forget if entry.path != "self"],
        "retain": [entry for entry in recipe.data.retain if entry.path != "self"],
        "neighbour": [],
    }
    found = {role: _choice_sources(recipe, role) or corpora[role] for role in corpora}
    if not found["retain"]:
        raise UsageError(
            "audit: there are no facts to keep, only texts sampled from the model",
            hint="add an evaluation set of kind choice and role retain, or set audit.tier to off",
        )
    return AuditSources(
        forget=tuple(found["forget"]),
        retain=tuple(found["retain"]),
        neighbour=tuple(found["neighbour"]),
        benign=tuple(corpora["retain"]),
    )


def _choice_sources(recipe: Recipe, role: str) -> list[CorpusSettings]:
    chosen = {
        entry.path: CorpusSettings(name=entry.name, path=entry.path)
        for entry in reversed(recipe.evaluation.sets)
        if entry.kind == "choice" and entry.role == role
    }
    return list(reversed(chosen.values()))


def _inputs(request: AuditRequest) -> AuditInputs:
    settings = request.settings
    attacks = chosen_attacks(settings.attacks, settings.run_tier)
    gathered = gather(request.sources, settings, seed=request.seed)
    device = pick_device(request.runtime.device)
    names: dict[ModelRole, str | None] = {
        "original": request.original,
        "unlearned": request.unlearned,
        "null": settings.null_model,
    }
    models = {
        role: _from_file(role, name, request.model, device)
        for role, name in names.items()
        if name is not None
    }
    return AuditInputs(
        models=models,
        sets=gathered.sets,
        data=gathered.data,
        attacks=tuple(attacks),
        settings=settings,
        set_records=gathered.records,
        originals=_originals(models),
    )


def _originals(
    models: Mapping[ModelRole, AuditedModel],
) -> dict[ModelRole, Callable[[], Mapping[str, Tensor]]]:
    """Compare with the original once per model, and only when an attack asks for it."""

    def giver(role: ModelRole) -> Callable[[], Mapping[str, Tensor]]:
        return lru_cache(maxsize=1)(lambda: differing_tensors(models["original"], models[role]))

    return {role: giver(role) for role in models if role != "original"}


def _from_file(role: ModelRole, name: str, settings: ModelSettings, device: torch.device) -> AuditedModel:
    chosen = settings.model_copy(update={"name": name, "revision": None})

    @contextmanager
    def load() -> Iterator[LoadedModel]:
        loaded = [load_model(chosen, device)]
        try:
            yield loaded[0]
        finally:
            loaded.clear()
            gc.collect()

    return AuditedModel(role, public_name(name), load)


@contextmanager
def _kept(loaded: LoadedModel) -> Iterator[LoadedModel]:
    yield loaded


@contextmanager
def _swapped(loaded: LoadedModel, original: Mapping[str, Tensor]) -> Iterator[LoadedModel]:
    with tensors_replaced(loaded.model, dict(original)):
        yield loaded


def _environment(request: AuditRequest) -> Callable[[], EnvironmentResult]:
    device = str(pick_device(request.runtime.device))
    return lambda: capture_environment(device, torch.get_num_threads(), request.seed)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"output folder in use: another audit writes into {folder}", hint="wait for it to finish"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / _LOCK_FILE).unlink()
        lock.release()
