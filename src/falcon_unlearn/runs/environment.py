"""Record the machine and the versions, without importing torch."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from falcon_unlearn.results import EnvironmentResult

PACKAGES = (
    "falcon-unlearn",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pydantic",
    "gguf",
    "datasets",
    "pyarrow",
)
"""Packages whose version can change a result."""


def capture_environment(device: str, threads: int, seed: int | None = None) -> EnvironmentResult:
    """Record versions, processor and memory; no host name, user name or path.

    Args:
        device: device of the computation, as the caller resolved it.
        threads: processor threads of the computation.
        seed: seed of the run, if it had one.
    """
    return EnvironmentResult(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version for name in PACKAGES if (version := _version(name)) is not None},
        processor=_processor(),
        cores=_cores(),
        threads=threads,
        memory_bytes=int(psutil.virtual_memory().total),
        device=device,
        seed=seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Count the cores this process may use: in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
