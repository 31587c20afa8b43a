"""Read small files of a model folder as untrusted: regular, bounded, plain JSON."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from falcon_unlearn.errors import ModelError

MAXIMUM_CONFIG_BYTES = 4 << 20
"""Largest configuration read; published ones stay below 100 kB."""
MAXIMUM_TOKENIZER_BYTES = 256 << 20
"""Largest tokenizer file read; the largest published ones have about 40 MB."""
MAXIMUM_INDEX_BYTES = 32 << 20
"""Largest shard index read: about 250 000 tensors."""

FileMarks = Mapping[str, tuple[int, int]]
"""Size in bytes and time of change in nanoseconds, by file name."""


def file_size(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        ModelError: There is no such file, it is no regular file, or it cannot be read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path.name}: cannot be read ({reason_of(error)})") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"model: {path.name}: is no regular file")
    return status.st_size


def read_bounded(path: Path, maximum_bytes: int) -> bytes:
    """Read a regular file of at most `maximum_bytes`; a larger one is not read at all.

    Raises:
        ModelError: As `file_size`, or the file is too large.
    """
    size = file_size(path)
    if size > maximum_bytes:
        raise ModelError(
            f"model: {path.name}: has {size} bytes, at most {maximum_bytes} are read",
            hint="The file is damaged or no model file.",
        )
    try:
        with path.open("rb") as file:
            return file.read(maximum_bytes)
    except OSError as error:
        raise ModelError(f"model: {path.name}: cannot be read ({reason_of(error)})") from error


def read_json_object(path: Path, maximum_bytes: int) -> dict[str, Any]:
    """Read one JSON object from a bounded file.

    Raises:
        ModelError: As `read_bounded`, or the content is no JSON object.
    """
    return parse_json_object(read_bounded(path, maximum_bytes), path.name)


def parse_json_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse UTF-8 JSON that holds one object, without repeated keys.

    Raises:
        ModelError: Naming the file `name` and what is wrong.
    """

    def refuse(problem: str, error: Exception | None = None) -> NoReturn:
        raise ModelError(f"model: {name}: {problem}", hint="The file is damaged.") from error

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            refuse("a key of a JSON object occurs twice")
        return result

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=pairs)
    except UnicodeDecodeError as error:
        refuse(f"is no UTF-8 text (byte {error.start})", error)
    except RecursionError as error:
        refuse("is nested too deeply", error)
    except ValueError as error:
        refuse(f"is no valid JSON: {str(error)[:200]}", error)
    if not isinstance(value, dict):
        refuse(f"must hold a JSON object, found {type(value).__name__}")
    return value


def mark_files(paths: list[Path]) -> FileMarks:
    """Note size and time of change of files, to notice later that one was replaced."""
    marks = {}
    for path in paths:
        status = os.stat(path)
        marks[path.name] = (status.st_size, status.st_mtime_ns)
    return marks


def refuse_changed(folder: Path, marks: FileMarks) -> None:
    """Make sure that the files of `marks` are still those that were marked.

    Raises:
        ModelError: A file is gone or was written meanwhile; a hash would describe other weights than ran.
    """
    for name, mark in marks.items():
        try:
            status = os.stat(folder / name)
        except OSError as error:
            raise ModelError(f"model: {name}: vanished while it was in use") from error
        if (status.st_size, status.st_mtime_ns) != mark:
            raise ModelError(
                f"model: {name}: was changed while it was in use",
                hint="Start again, and let nothing write into the model folder meanwhile.",
            )


def reason_of(error: Exception) -> str:
    """Say in a few words why the file system refused."""
    return (
        (error.strerror if isinstance(error, OSError) else None) or str(error)[:200] or type(error).__name__
    )
