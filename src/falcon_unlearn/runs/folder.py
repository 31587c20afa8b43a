"""Create an output folder in one step: one writer, all or nothing."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from falcon_unlearn.errors import FalconError, PrerequisiteError, UsageError
from falcon_unlearn.runs.finishing import is_finished, remove_finished, withdraw, work_path
from falcon_unlearn.runs.writing import format_bytes, sync_file, sync_folder, write_failure


def free_disk_check(path: Path, num_bytes: int, *, headroom: float = 2.0) -> None:
    """Make sure that `path` can take `num_bytes` times `headroom`.

    Raises:
        PrerequisiteError: stating what is needed and what is free.
    """
    folder = _existing_parent(Path(os.path.abspath(path)))
    free = shutil.disk_usage(folder).free
    needed = int(num_bytes * headroom)
    if free < needed:
        raise PrerequisiteError(
            f"{path}: {format_bytes(needed)} of free disk space are needed, {format_bytes(free)} are free",
            hint="Free some space or choose an output folder on another disk.",
        )


def check_output(output: Path) -> Path:
    """Refuse an output folder that cannot be created, before any work is done.

    Where a finished run is in place, what a kill left beside it is removed, and the refusal says so.

    Returns:
        The absolute path.

    Raises:
        UsageError: in use, a file, a link, or below a folder that cannot be written.
    """
    text = str(output)
    if not text.isprintable():
        raise UsageError(f"output folder {text!r}: the name holds control characters")
    target = Path(os.path.abspath(output.expanduser()))
    if not target.name:
        raise UsageError(f"output folder {target}: is the root of a file system", hint="Name a new folder.")
    try:
        _check_target(target)
        parent = _existing_parent(target.parent)
    except (OSError, ValueError) as error:
        raise UsageError(f"output folder {text[:200]!r}: {getattr(error, 'strerror', error)}") from error
    if not parent.is_dir():
        raise UsageError(f"output folder {target}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"output folder {target}: no permission to write in {parent}", hint="Choose another --output."
        )
    return target


def _check_target(target: Path) -> None:
    if target.is_symlink():
        raise UsageError(f"output folder {target}: is a symbolic link", hint="Give the real folder.")
    if target.is_dir():
        if any(target.iterdir()):
            raise UsageError(
                f"output folder in use: {target} is not empty",
                hint="Choose a new folder with --output, or remove this one." + _tidied(target),
            )
    elif target.exists():
        raise UsageError(f"output folder {target}: is a file", hint="Choose a new folder with --output.")


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a staging folder that becomes `output` in one step when the block succeeds.

    On any exception, an interrupt included, the staging folder is removed and `output` is untouched. What a
    killed process left behind is removed by the next run with the same `output`.

    Yields:
        The staging folder, a sibling of `output`.

    Raises:
        UsageError: `output` is in use, also by another process, or cannot be created.
        PrerequisiteError: the file system refused to sync or rename.
    """
    target = check_output(output)
    created = _create_parents(target)
    lock_path = target.with_name(f".{target.name}.lock")
    try:
        with _single_writer(lock_path, target):
            _remove_remains(target)
            check_output(target)
            staging = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
            _make_folder(staging, target)
            try:
                yield staging
                _commit(staging, target)
            finally:
                _discard(staging, target)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def has_writer(output: Path) -> bool:
    """Tell whether a process is writing `output` now, a folder that may not exist yet."""
    lock_path = output.with_name(f".{output.name}.lock")
    if not lock_path.exists():
        return False
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def _single_writer(lock_path: Path, target: Path) -> Iterator[None]:
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"output folder in use: another process is writing {target}",
            hint="Wait for it to finish, or choose another --output.",
        ) from error
    except OSError as error:
        raise write_failure(target, error) from error
    try:
        yield
    finally:
        # Removed while held: a later process locks a new file, and the rename of a second one would fail.
        with suppress(OSError):
            lock_path.unlink()
        lock.release()


def _create_parents(target: Path) -> list[Path]:
    """Create missing parents and return them innermost first; rmdir later removes those still empty."""
    missing = []
    folder = target.parent
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(target, error) from error
    return missing


def _make_folder(staging: Path, target: Path) -> None:
    try:
        staging.mkdir()
    except OSError as error:
        raise write_failure(target, error) from error


def _remove_remains(target: Path) -> None:
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"[0-9a-f]{32}")
    for entry in target.parent.iterdir():
        if pattern.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            _discard(entry, target)


def _discard(staging: Path, target: Path) -> None:
    """Remove a staging folder that did not become the output; it stays where the mark of the work does."""
    if staging.exists():
        with suppress(FalconError):
            withdraw(work_path(target), staging)
            shutil.rmtree(staging, ignore_errors=True)


def _tidied(target: Path) -> str:
    """Remove what a kill after the commit left, its lock included, and say so; not while it is in use."""
    if not is_finished(work_path(target)):
        return ""
    with suppress(FalconError), _single_writer(target.with_name(f".{target.name}.lock"), target):
        return f"\n{remove_finished(target)}"
    return ""


def _commit(staging: Path, target: Path) -> None:
    try:
        for folder, _, names in os.walk(staging):
            for name in names:
                sync_file(Path(folder) / name)
            sync_folder(Path(folder))
        if target.is_dir():
            target.rmdir()
        os.rename(staging, target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_failure(target, error) from error


def _existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
