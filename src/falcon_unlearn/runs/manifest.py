"""Identify a run, and close its folder with the hashes of everything in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from falcon_unlearn._version import __version__
from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.results import FileHash, Manifest
from falcon_unlearn.runs.writing import remembered_sha256, sha256_file, write_json_atomic

RECORDS = "falcon"
"""Folder of our records inside an output folder."""
MANIFEST = f"{RECORDS}/manifest.json"
UNHASHED = frozenset({MANIFEST, f"{RECORDS}/report.html"})
"""The manifest cannot contain itself, and the report can be rendered again."""


def fingerprint(**parts: Any) -> str:
    """Hash named parts (records, settings, plain values) as canonical JSON, sha256.

    Raises:
        NumericalError: a part holds NaN or infinity.
    """
    plain = {
        name: part.model_dump(mode="json") if isinstance(part, BaseModel) else part
        for name, part in parts.items()
    }
    try:
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise NumericalError(f"no fingerprint: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(
    folder: Path,
    *,
    fingerprint: str,
    base_model: str,
    base_weights_sha256: Mapping[str, str],
    command: str,
    seconds: Mapping[str, float],
) -> Manifest:
    """Hash every file of `folder` and write `falcon/manifest.json`, last."""
    # Weights only: a small file may be written twice within the resolution of the clock.
    files = [
        FileHash(
            name=name,
            bytes=(folder / name).stat().st_size,
            sha256=(remembered_sha256 if name.endswith(".safetensors") else sha256_file)(folder / name),
        )
        for name in _file_names(folder)
    ]
    manifest = Manifest(
        package_version=__version__,
        fingerprint=fingerprint,
        base_model=public_name(base_model),
        base_weights_sha256=dict(base_weights_sha256),
        files=files,
        command=public_text(command),
        seconds=dict(seconds),
    )
    (folder / RECORDS).mkdir(exist_ok=True)
    write_json_atomic(folder / MANIFEST, manifest)
    return manifest


def _file_names(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in UNHASHED)


def verify_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished run and compare every file with it; extra files are allowed.

    Raises:
        DataError: not a finished run, a newer format, or files missing or changed; all are named.
    """
    manifest = read_manifest(folder)
    problems = changed_files(folder, manifest)
    if problems:
        raise DataError(f"{folder}: differs from its manifest: " + "; ".join(problems[:10]))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished run.

    Raises:
        DataError: not a finished run, damaged, or a newer format.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: not a finished run, {MANIFEST} is missing", hint="Give the --output folder of a run."
        ) from error
    except (OSError, ValidationError) as error:
        raise DataError(f"{path}: damaged or from another version of falcon-unlearn") from error


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return a sentence for every file that is missing, changed or outside the folder."""
    return [problem for file in manifest.files if (problem := _compare(folder, file))]


def _compare(folder: Path, file: FileHash) -> str | None:
    path = folder / file.name
    if ".." in Path(file.name).parts or Path(file.name).is_absolute():
        return f"{file.name} lies outside the folder"
    if not path.is_file():
        return f"{file.name} is missing"
    if path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
        return f"{file.name} was changed"
    return None
