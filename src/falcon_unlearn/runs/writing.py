"""Write and hash single files so that nobody ever reads half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from falcon_unlearn.errors import DataError, FalconError, NumericalError, PrerequisiteError, UsageError

_RESERVED = frozenset(
    {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
)
_SLUG_LENGTH = 100


def slug(name: str) -> str:
    """Turn any text into a file name: `[A-Za-z0-9._-]{1,100}`, no leading dot, not a reserved name.

    A name that is safe already is returned unchanged; any other ends in a hash of the original, so that
    different texts keep different names.
    """
    stem = name.split(".")[0].upper()
    safe = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*[A-Za-z0-9_-]|[A-Za-z0-9_-]", name) is not None
    if safe and len(name) <= _SLUG_LENGTH and stem not in _RESERVED:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[: _SLUG_LENGTH - 9]
    return f"{cleaned}-{digest}" if cleaned else digest


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old or its new content, whatever fails.

    Raises:
        PrerequisiteError: the file system refused, for instance because the disk is full.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        # After os.replace the name is gone; after a failure the remains go.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, record: BaseModel | Mapping[str, Any]) -> None:
    """Write a record as indented JSON, atomically.

    Raises:
        NumericalError: the record holds NaN or infinity, which JSON cannot express.
        PrerequisiteError: as `write_text_atomic`.
    """
    values = record.model_dump(mode="json") if isinstance(record, BaseModel) else dict(record)
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NumericalError(
            f"{path.name}: not written, it would hold a number that is not finite"
        ) from error
    write_text_atomic(path, text + "\n")


def sha256_file(path: Path) -> str:
    """Hash a file in pieces.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


_REMEMBERED: dict[tuple[int, int, int, int], str] = {}


def remembered_sha256(path: Path) -> str:
    """Hash a large file once per process: the same file, of the same size and time of change, is the same.

    A hard link to a hashed file is not hashed again. Checks of what others may change use `sha256_file`.

    Raises:
        DataError: the file cannot be read.
    """
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _REMEMBERED:
        _REMEMBERED[key] = sha256_file(path)
    return _REMEMBERED[key]


def sync_file(path: Path) -> None:
    """Push the content of a file to the disk."""
    if path.is_symlink():
        return
    # A hard link may be to a file that is not ours to write; only Windows needs write access to sync.
    with path.open("rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Push the names inside a folder to the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; its files are safe already.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def write_failure(path: Path, error: OSError) -> FalconError:
    """Turn a refusal of the file system into words."""
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
        return UsageError(f"output folder in use: {path} was created by another process meanwhile")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR}:
        return UsageError(f"{str(path)[:200]}: cannot be written ({error.strerror})")
    return PrerequisiteError(
        f"{path}: could not be written ({error.strerror or error})",
        hint="Check the free space and the state of the disk; nothing was left half-written.",
    )


def weight_file_words(made: Mapping[str, int]) -> str:
    """Write how weight files came into a folder: `2 rewritten, 14 shared by reflink`."""
    ways = {
        "rewritten": "rewritten",
        "reflink": "shared by reflink",
        "hardlink": "hard-linked to the source (one file under two names: edit neither in place)",
        "copy": "copied",
    }
    return ", ".join(f"{count} {ways[way]}" for way, count in sorted(made.items()))


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes for people: `3.2 GiB`."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1024:
            break
        num_bytes, unit = num_bytes / 1024, larger
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
