"""Decide what identifies a piece of work, and keep what is finished of it until all of it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import DataError, FalconError, ModelError, UsageError
from falcon_unlearn.evaluation.sets import EvaluationSet
from falcon_unlearn.events import EventSink
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.models.safety.files import refuse_changed
from falcon_unlearn.pipeline.workspace import Workspace
from falcon_unlearn.runs import (
    Resume,
    WorkFolder,
    code_identity,
    open_work,
    public_name,
    remembered_sha256,
    sha256_file,
    work_path,
    write_failure,
)

RESUMABLE = "finished work is kept in {path}"
"""Note of an exception after which the same command goes on where it ended."""
_HOPELESS = (UsageError, DataError, ModelError)
_SMALL = (".json", ".jinja", ".model", ".txt")
"""Endings of the files beside the weights that define a model: config, tokenizer, template."""
_IRRELEVANT = ("save_seconds", "rank_timeout", "shard")
"""Runtime settings that change no number."""


def work_identity(
    task: str, workspace: Workspace, recipe: Recipe, sets: Sequence[EvaluationSet], **further: Any
) -> dict[str, Any]:
    """Return what defines a piece of work: task, recipe, data, evaluation sets, weights, code and device."""
    return {
        "task": task,
        "recipe": _public_recipe(recipe),
        "data": {f"{c.role} {c.name}": c.sha256 for c in workspace.data.result.corpora},
        "evaluation_sets": {entry.settings.name: _hash_items(entry) for entry in sets},
        "weights": weight_hashes(workspace.loaded),
        "model_files": _small_files(workspace.loaded.folder),
        "code": code_identity(),
        "device": str(workspace.engine.device),
        **further,
    }


def weight_hashes(loaded: LoadedModel) -> dict[str, str]:
    """Return the sha256 of every weight file of the original model; empty for models that were in memory.

    Raises:
        ModelError: A file was changed since it was loaded.
    """
    path = Path(loaded.name).expanduser()
    if loaded.folder is not None:
        files = sorted(loaded.folder.glob("*.safetensors"))
    else:
        files = [path] if path.is_file() else []
    hashes = {file.name: remembered_sha256(file) for file in files}
    # Afterwards, so that a change during the hashing is seen too.
    refuse_changed(loaded.folder or path.parent, loaded.marks)
    return hashes


@contextmanager
def kept_on_failure(work: WorkFolder | None) -> Iterator[None]:
    """Leave finished work where it is when the block fails, and say so in a note of the exception.

    It is removed where it is of no use: nothing is finished, or the same command can never succeed. A refusal
    of the file system, whatever its words, may end.
    """
    try:
        yield
    except BaseException as error:
        hopeless = isinstance(error, _HOPELESS) and not isinstance(error.__cause__, OSError)
        if work is not None and (work.is_empty or hopeless):
            work.remove()
        elif work is not None:
            error.add_note(RESUMABLE.format(path=work.path))
        raise


@contextmanager
def told_on_commit(work_of: Callable[[], WorkFolder | None]) -> Iterator[None]:
    """Say in a note where finished work is kept, when the output could not be put in its place."""
    try:
        yield
    except FalconError as error:
        work = work_of()
        if work is not None and work.path.is_dir() and not getattr(error, "__notes__", []):
            error.add_note(RESUMABLE.format(path=work.path))
        raise


@contextmanager
def standalone_work(
    output: Path | None, identity: dict[str, Any], resume: Resume, sink: EventSink
) -> Iterator[WorkFolder | None]:
    """Open the work folder of a command with a result file; it is removed when the block succeeds.

    Args:
        output: The result file, which the block must deliver, or None to keep nothing.
        identity: See `work_identity`.
        resume: See `open_work`.
        sink: Receives notices.

    Raises:
        UsageError: Another process does the same work, or the folder belongs to other work.
    """
    if output is None:
        yield None
        return
    path = work_path(output)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{path}: another process is at the same work", hint="Wait for it.") from error
    except OSError as error:
        raise write_failure(path, error) from error
    try:
        work = open_work(path, identity, resume, sink)
        with kept_on_failure(work):
            yield work
        work.remove()
    finally:
        # Removed while held, as the lock of an output folder.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _public_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, paths cut to their names: the same files elsewhere are the same."""
    plain = recipe.model_dump(mode="json")
    plain["model"]["name"] = public_name(recipe.model.name)
    for corpus in (*plain["data"]["forget"], *plain["data"]["retain"], *plain["evaluation"]["sets"]):
        corpus["path"] = public_name(corpus["path"])
    for name in _IRRELEVANT:
        plain["runtime"].pop(name, None)
    return plain


def _hash_items(entry: EvaluationSet) -> str:
    def plain(value: Any) -> str:
        return value.pattern if isinstance(value, re.Pattern) else repr(value)

    text = json.dumps([asdict(item) for item in entry.items], default=plain, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _small_files(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    return {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in _SMALL}
