"""Keep numbered states of a computation as folders; a folder without a valid manifest does not count."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from falcon_unlearn.errors import DataError
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.results import FileHash, Record
from falcon_unlearn.runs.writing import sha256_file, sync_file, sync_folder, write_failure, write_json_atomic

MANIFEST_FILE = "MANIFEST.json"
FORMAT = 1
_NAME = re.compile(r"(?P<number>[0-9]{8,})-[0-9a-f]{8}")


class SnapshotManifest(Record):
    """List the files of one state; written last."""

    version: int = FORMAT
    fingerprint: str
    number: int
    files: list[FileHash]


@dataclass(frozen=True)
class Snapshot:
    """Point to one verified state."""

    number: int
    path: Path


class Snapshots:
    """Save states and find the newest sound one. The caller holds the lock of the folder."""

    def __init__(
        self, folder: Path, fingerprint: str, *, sink: EventSink = ignore_events, keep: int = 2
    ) -> None:
        """Name the folder; what a killed process left half-written in it is removed.

        Args:
            folder: Created by the first `save`.
            fingerprint: Identity of the run; states of another one are not used.
            sink: Receives a warning for every state that cannot be used.
            keep: Number of states kept; older ones are removed.
        """
        self.folder, self.fingerprint, self.keep = folder, fingerprint, keep
        self._sink = sink
        if folder.is_dir():
            for remains in folder.glob("*.tmp-*"):
                shutil.rmtree(remains, ignore_errors=True)

    def save(self, number: int, fill: Callable[[Path], None]) -> None:
        """Write a state: files first, manifest last, one rename; on failure the earlier states stay.

        Args:
            number: Position of the state; a higher one is newer.
            fill: Writes the files, none in a subfolder, into an empty folder.

        Raises:
            PrerequisiteError: The file system refused, for instance because the disk is full.
        """
        target = self.folder / f"{number:08d}-{uuid.uuid4().hex[:8]}"
        temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
        try:
            temporary.mkdir(parents=True)
            fill(temporary)
            self._close(temporary, number)
            os.rename(temporary, target)
            sync_folder(self.folder)
        except OSError as error:
            raise write_failure(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_old()

    def newest(self) -> Snapshot | None:
        """Return the newest state that verifies; a damaged one is told, skipped and kept."""
        for number, path in self._states():
            problem = self._problem(path, number)
            if problem is None:
                return Snapshot(number, path)
            self._sink(Notice(message=f"saved state {path.name} is not used: {problem}", level="warning"))
        return None

    def numbers(self) -> list[int]:
        """Return the numbers of all states that have a manifest, lowest first."""
        return sorted({number for number, path in self._states() if (path / MANIFEST_FILE).is_file()})

    def at(self, number: int) -> Snapshot | None:
        """Return the sound state with this number."""
        paths = [path for found, path in self._states() if found == number]
        return next((Snapshot(number, p) for p in paths if self._problem(p, number) is None), None)

    def _states(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match["number"]), path) for match, path in named), reverse=True)

    def _close(self, folder: Path, number: int) -> None:
        files = []
        for path in sorted(folder.iterdir()):
            sync_file(path)
            files.append(FileHash(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path)))
        manifest = SnapshotManifest(fingerprint=self.fingerprint, number=number, files=files)
        write_json_atomic(folder / MANIFEST_FILE, manifest)

    def _problem(self, folder: Path, number: int) -> str | None:
        path = folder / MANIFEST_FILE
        try:
            manifest = SnapshotManifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return "its manifest is missing"
        except (OSError, ValidationError):
            return "its manifest is damaged"
        if manifest.version > FORMAT:
            return f"it has format {manifest.version}, from a newer version of falcon-unlearn"
        if manifest.fingerprint != self.fingerprint or manifest.number != number:
            return "it belongs to another run"
        return next((words for file in manifest.files if (words := _compare(folder, file))), None)

    def _remove_old(self) -> None:
        """Remove all but the newest complete states; one without a manifest is damaged and stays."""
        complete = [path for _, path in self._states() if (path / MANIFEST_FILE).is_file()]
        for path in complete[self.keep :]:
            # Renamed first: a kill during the removal must not leave what looks like a damaged state.
            doomed = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
            with suppress(OSError):
                os.rename(path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _compare(folder: Path, file: FileHash) -> str | None:
    path = folder / Path(file.name).name
    if not path.is_file():
        return f"{file.name} is missing"
    if path.stat().st_size != file.bytes:
        return f"{file.name} has {path.stat().st_size} bytes instead of {file.bytes}"
    try:
        return None if sha256_file(path) == file.sha256 else f"{file.name} was changed"
    except DataError as error:
        return error.message
