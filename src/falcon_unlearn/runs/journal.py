"""Keep finished pieces of work, one line of JSON each: a killed process loses at most the last one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.events import EventSink, Notice, ignore_events
from falcon_unlearn.runs.writing import sync_folder, write_failure


class Journal:
    """Append records under keys to a file, and read the last record of every key.

    Each line carries the hash of its content and is on the disk before `append` returns. A line that a crash
    tore can only be the last one: it is dropped with a warning. Damage anywhere else is an error. Replaying
    an append changes nothing, because the last record of a key wins. One process may write at a time; the
    caller holds the lock of the folder.
    """

    def __init__(self, path: Path, sink: EventSink = ignore_events) -> None:
        """Name the file; it is created by the first `append`.

        Args:
            path: JSONL file in an existing folder.
            sink: Receives the warning about a torn last line.
        """
        self.path = path
        self._sink = sink
        self._checked = False
        self._told = False

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Add one record; it survives a crash once this returns, and leaves no trace if this raises.

        Raises:
            NumericalError: The record holds NaN or infinity.
            DataError: The file holds a damaged line.
            PrerequisiteError: The file system refused, for instance because the disk is full.
        """
        line = _encode(key, record)
        if not self._checked:
            self._drop_torn_line()
        try:
            with self.path.open("ab", buffering=0) as file:
                self._write_whole(file.fileno(), line)
            if not self._checked:
                sync_folder(self.path.parent)
        except OSError as error:
            raise write_failure(self.path, error) from error
        self._checked = True

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the last record of every key, in the order in which keys first came; empty without a file.

        Raises:
            DataError: A line before the last one is damaged; the line is named.
        """
        records, _ = self._load()
        return records

    def _load(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the records and the number of sound bytes at the start of the file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}, 0
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        records: dict[str, dict[str, Any]] = {}
        sound = 0
        lines = content.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                key, record = _decode(line)
            except ValueError as error:
                self._handle_damage(number, len(lines), error)
                break
            records[key] = record
            sound += len(line)
        return records, sound

    def _handle_damage(self, number: int, total: int, error: ValueError) -> None:
        if number < total:
            raise DataError(
                f"{self.path}, line {number}: damaged ({error})",
                hint="A crash cannot do this. Restore the file, or remove it to compute everything again.",
            ) from error
        if not self._told:
            words = f"{self.path.name}, line {number}: torn by a crash and dropped; its work is repeated"
            self._sink(Notice(message=words, level="warning"))
        self._told = True

    def _drop_torn_line(self) -> None:
        _, sound = self._load()
        try:
            if self.path.exists() and self.path.stat().st_size > sound:
                os.truncate(self.path, sound)
        except OSError as error:
            raise write_failure(self.path, error) from error

    def _write_whole(self, descriptor: int, line: bytes) -> None:
        start = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            # Half a line must not stay in front of a later one.
            with suppress(OSError):
                os.ftruncate(descriptor, start)
            self._checked = False
            raise


def _encode(key: str, record: Mapping[str, Any]) -> bytes:
    try:
        content = _canonical(key, record)
    except ValueError as error:
        raise NumericalError(f"{key}: not recorded, it holds a number that is not finite") from error
    return f'{{"sha256":"{_hash(content)}","entry":{content}}}\n'.encode()


def _decode(line: bytes) -> tuple[str, dict[str, Any]]:
    if not line.endswith(b"\n"):
        raise ValueError("the line has no end")
    try:
        row = json.loads(line)
        key, record = row["entry"]
        content = _canonical(key, record)
        stated = row["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("not a line of this journal") from error
    if _hash(content) != stated or not isinstance(key, str) or not isinstance(record, dict):
        raise ValueError("the content does not match its hash")
    return key, record


def _canonical(key: str, record: Mapping[str, Any]) -> str:
    return json.dumps([key, dict(record)], sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
