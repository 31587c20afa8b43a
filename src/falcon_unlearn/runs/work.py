"""Keep the finished pieces of a run beside its output, so that the same command goes on after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.runs.finishing import FINISHED, IDENTITY, announce, is_finished, remove_work, withdraw
from falcon_unlearn.runs.identity import differences, summarise
from falcon_unlearn.runs.journal import Journal
from falcon_unlearn.runs.manifest import fingerprint
from falcon_unlearn.runs.snapshots import MANIFEST_FILE, Snapshots
from falcon_unlearn.runs.writing import sync_folder, write_failure, write_json_atomic

RESULT = "result.json"
Resume = Literal["auto", "must", "never"]
"""Go on if there is something to go on from, insist on it, or start again."""
RecordT = TypeVar("RecordT", bound=BaseModel)


class WorkFolder:
    """Hold what is finished. The caller holds the lock of the output, so there is one writer."""

    def __init__(self, path: Path, identity: Mapping[str, Any], sink: EventSink) -> None:
        self.path = path
        self.fingerprint = fingerprint(**identity)
        self.saved_seconds = 0.0
        """Wall time of work that was taken over instead of being done again."""
        self._sink = sink
        self._journal = Journal(path / "finished.jsonl", sink)
        self._finished = self._journal.read()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was kept under a key."""
        return self._finished.get(key)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a value; it survives a kill from now on."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(value)))
        self._journal.append(key, plain)
        self._finished[key] = plain

    def record(self, key: str, kind: type[RecordT], compute: Callable[[], RecordT]) -> RecordT:
        """Return the record kept under a key, or compute and keep it."""
        kept = self.get(key)
        if kept is not None:
            try:
                result = kind.model_validate(kept["record"])
            except (ValidationError, KeyError) as error:
                self._sink(Notice(message=f"{key}: what was kept is not used ({error})", level="warning"))
            else:
                self.saved_seconds += kept["seconds"]
                return result
        started = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - started
        self.put(key, {"record": result.model_dump(mode="json"), "seconds": seconds})
        return result

    def value(self, key: str, compute: Callable[[], str]) -> str:
        """Return the text kept under a key, or compute and keep it: a measured choice is made once."""
        kept = self.get(key)
        if kept is None:
            self.put(key, {"value": compute()})
        return str(self._finished[key]["value"])

    def snapshots(self, name: str, *, keep: int = 2) -> Snapshots:
        """Return the states kept under a name."""
        return Snapshots(self.path / name, self.fingerprint, sink=self._sink, keep=keep)

    def folder(self, name: str) -> Path:
        """Return an existing subfolder."""
        path = self.path / name
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise write_failure(path, error) from error
        return path

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is finished yet."""
        return not self._finished and not any(self.path.glob(f"*/*/{MANIFEST_FILE}"))

    def announce(self, staging: Path) -> None:
        """Write that all is done but the rename of the staging folder: after it, the work is finished.

        Raises:
            PrerequisiteError: The disk refused.
        """
        announce(self.path, staging)

    def deliver(self, result: BaseModel, output: Path) -> None:
        """Write the result file of a finished piece of work, beside this folder, in one rename.

        Raises:
            PrerequisiteError: The disk refused; the work is kept.
        """
        prepared = self.path / RESULT
        write_json_atomic(prepared, result)
        announce(self.path, prepared)
        try:
            os.replace(prepared, output)
            sync_folder(output.parent)
        except OSError as error:
            raise write_failure(output, error) from error

    def remove(self) -> None:
        """Remove the folder; its work is in the output, or is not wanted."""
        remove_work(self.path)


def open_work(
    path: Path, identity: Mapping[str, Any], resume: Resume = "auto", sink: EventSink = ignore_events
) -> WorkFolder:
    """Open the work folder of a run, or create it.

    Args:
        path: Folder, see `work_path`.
        identity: Everything that defines the run, as plain values.
        resume: `auto` goes on where an earlier process ended, `must` insists on it, `never` starts again.
        sink: Receives a notice when work is taken over, or when left-overs of finished work are removed.

    Raises:
        UsageError: The folder belongs to a run with another identity, field by field; or `must` has nothing
            to go on from.
        PrerequisiteError: The folder cannot be written.
    """
    stored = None if resume == "never" else _stored_identity(path)
    if stored is None:
        if resume == "must":
            raise UsageError(
                f"--resume must: there is no unfinished work in {path}",
                hint="Leave the flag out to start.",
            )
        return _create(path, identity, sink)
    changed = differences(stored, json.loads(json.dumps(dict(identity))))
    if changed:
        if resume == "must" or not _is_of_no_use(path, stored):
            raise UsageError(
                f"{path} holds unfinished work of another run:\n{summarise(changed)}",
                hint="Repeat the command as it was to go on, or start again with --resume never.",
            )
        sink(Notice(message=f"{path.name} is removed: it holds no unfinished work"))
        return _create(path, identity, sink)
    withdraw(path)
    work = WorkFolder(path, identity, sink)
    if not work.is_empty:
        sink(Notice(message=f"going on with the unfinished work in {path.name}"))
    return work


def _is_of_no_use(path: Path, identity: Mapping[str, Any]) -> bool:
    return is_finished(path) or WorkFolder(path, identity, ignore_events).is_empty


def _create(path: Path, identity: Mapping[str, Any], sink: EventSink) -> WorkFolder:
    _clear(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise write_failure(path, error) from error
    write_json_atomic(path / IDENTITY, identity)
    return WorkFolder(path, identity, sink)


def _clear(path: Path) -> None:
    """Remove an earlier work folder, and nothing else."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"{path}: is needed for unfinished work, but is no folder", hint="Move it away.")
    if path.is_dir():
        # A kill before the identity was complete leaves its temporary file alone.
        names = [entry.name for entry in path.iterdir()]
        foreign = [name for name in names if name != FINISHED and not name.startswith(f".{IDENTITY}.")]
        if foreign and not (path / IDENTITY).is_file():
            raise UsageError(
                f"{path}: is needed for unfinished work, but holds {foreign[0]!r}", hint="Move it away."
            )
        remove_work(path)


def _stored_identity(path: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path / IDENTITY}: damaged, so the unfinished work cannot be trusted",
            hint="Start again with --resume never.",
        ) from error
    return stored if isinstance(stored, dict) else {}
