"""Tell finished work from unfinished work, whenever a process was killed.

The last step of a piece of work is one rename: of a staging folder, or of a result file. Before it, a mark in
the work folder names what will be renamed; on a failure the mark is withdrawn before that is removed. So work
is finished if, and only if, it has a mark and what the mark names is gone.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from falcon_unlearn.runs.writing import sync_folder, write_failure, write_json_atomic

IDENTITY = "identity.json"
FINISHED = "finished.json"
"""The mark."""


def work_path(output: Path) -> Path:
    """Return the work folder of an output."""
    return output.with_name(f".{output.name}.work")


def announce(work: Path, moved: Path) -> None:
    """Write, durably, that all is done but the rename of `moved`, a path inside the parent of `work`.

    Raises:
        PrerequisiteError: The disk refused.
    """
    write_json_atomic(work / FINISHED, {"moved": moved.relative_to(work.parent).as_posix()})


def withdraw(work: Path, moved: Path | None = None) -> None:
    """Take the mark back, durably, if it names `moved`, or whatever it names: that may be removed then.

    Raises:
        FalconError: The file system refused; the mark may still be there.
    """
    marked = _marked(work)
    if marked is None or moved not in {None, marked}:
        return
    try:
        (work / FINISHED).unlink(missing_ok=True)
        sync_folder(work)
    except OSError as error:
        raise write_failure(work / FINISHED, error) from error


def is_finished(work: Path) -> bool:
    """Tell whether the work was finished, and only its removal is missing."""
    moved = _marked(work)
    return moved is not None and not moved.exists()


def _marked(work: Path) -> Path | None:
    if work.is_symlink():
        return None
    try:
        name = json.loads((work / FINISHED).read_text(encoding="utf-8"))["moved"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return work.parent / name if isinstance(name, str) else None


def remove_work(work: Path) -> None:
    """Remove a work folder so that a kill on the way leaves one whose state can still be told."""
    if work.is_symlink() or not work.is_dir():
        return
    late = [work / IDENTITY, work / FINISHED]
    for entry in [*(entry for entry in work.iterdir() if entry not in late), *late]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):
        work.rmdir()


def remove_finished(output: Path) -> str:
    """Remove what a kill after the last rename left beside an output; return what was done, in words."""
    work = work_path(output)
    if not is_finished(work):
        return ""
    remove_work(work)
    return f"{work.name}, left beside it by a process that was killed when all was done, was removed."
