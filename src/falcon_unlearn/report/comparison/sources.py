"""Find and read result files: `*.bench.json` files, folders of them, and folders of finished runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from falcon_unlearn.config.paths import exists
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.report.comparison.own_runs import run_results
from falcon_unlearn.report.records import read_records
from falcon_unlearn.results_bench import BENCH_VERSION, BenchResult
from falcon_unlearn.runs import RECORDS

PATTERN = "*.bench.json"
_WANTED = f"Give result files, folders that hold {PATTERN} files, or output folders of `falcon-unlearn run`."


@dataclass(frozen=True)
class Entry:
    """Hold one result and where it came from."""

    source: str
    """Path as given, for messages."""
    result: BenchResult

    @property
    def name(self) -> str:
        """Return the last part of the path, which may be published."""
        return Path(self.source).resolve().name


def read_results(paths: Sequence[Path]) -> list[Entry]:
    """Read every result that `paths` lead to; a file reached twice counts once.

    Raises:
        UsageError: no path, a path that does not exist, or a run folder without its records.
        DataError: a path without results, a damaged file, or one of another version.
    """
    if not paths:
        raise UsageError("nothing to compare: no result was given", hint=_WANTED)
    files: dict[Path, Path] = {}
    runs: dict[Path, Path] = {}
    for path in paths:
        found_files, found_runs = _find(path)
        files |= {found.resolve(): found for found in found_files}
        runs |= {found.resolve(): found for found in found_runs}
    entries = [Entry(str(file), read_result(file)) for file in files.values()]
    own = run_results([(folder, read_records(folder)) for folder in runs.values()])
    return entries + [Entry(str(folder), result) for folder, result in own]


def read_result(path: Path) -> BenchResult:
    """Read one result file.

    Raises:
        DataError: unreadable, no result, or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", hint="Check the permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not a JSON file ({_short(error)})", hint=_WANTED) from error
    _check_version(path, values)
    try:
        return BenchResult.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: is not a benchmark result: {field}: {first['msg']}",
            hint="Write it again with `falcon-unlearn bench`, or leave it out.",
        ) from error


def _check_version(path: Path, values: Any) -> None:
    if not isinstance(values, dict) or "benchmark" not in values:
        raise DataError(f"{path}: is not a benchmark result: it has no field `benchmark`", hint=_WANTED)
    version = values.get("version", BENCH_VERSION)
    if version != BENCH_VERSION or isinstance(version, bool):
        raise DataError(
            f"{path}: has format version {_short(version)}, this release reads version {BENCH_VERSION}",
            hint="Compare with the release that wrote it, or run the benchmark again.",
        )


def _find(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the result files and the run folders at `path`; a folder is searched one level deep."""
    if not exists(path):
        raise UsageError(f"{path}: no such file or folder", hint=_WANTED)
    if path.is_file():
        return [path], []
    try:
        files = _result_files(path)
        if any((path / RECORDS / f"evaluation.{when}.json").is_file() for when in ("before", "after")):
            return files, [path]
        for folder in sorted(path.iterdir()):
            # Staging folders of writers at work begin with a dot.
            if folder.is_dir() and not folder.name.startswith("."):
                files += _result_files(folder)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", hint="Check the permissions."
        ) from error
    if not files:
        raise DataError(f"{path}: holds no result", hint=_WANTED)
    return files, []


def _result_files(folder: Path) -> list[Path]:
    found: Iterable[Path] = folder.glob(PATTERN)
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def _short(value: object) -> str:
    return " ".join(str(value).split())[:80]
