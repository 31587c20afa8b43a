"""Read an open-unlearning log (`*_EVAL.json` or `*_SUMMARY.json`) that somebody else may have written.

Size, nesting, numbers and texts are bounded and checked; nothing in the file is trusted or executed.

Shapes: N samples of a metric, K numbers per sample (1, or one per wrong answer).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LARGEST_FILE = 128 * 1024 * 1024
_MOST_METRICS = 1_000
_MOST_SAMPLES = 100_000
_MOST_OPTIONS = 100
_LONGEST_TEXT = 20_000
_LONGEST_INDEX = 9


@dataclass(frozen=True)
class Column:
    """Hold one field of all samples of a metric, ordered by index; samples without a value are left out."""

    indices: IntArray
    values_NK: FloatArray

    @property
    def values(self) -> FloatArray:
        """Return (N,) values, averaged over the K numbers of a sample."""
        return np.asarray(self.values_NK.mean(axis=1))

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class EvaluationLog:
    """Hold a parsed log; fields are checked when they are asked for."""

    path: Path
    entries: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the metrics in the order of the file."""
        return tuple(self.entries)

    def find(self, *names: str) -> str | None:
        """Return the first of `names` that the log has; capitals vary between versions and do not matter."""
        by_folded = {name.casefold(): name for name in self.entries}
        return next((by_folded[name.casefold()] for name in names if name.casefold() in by_folded), None)

    def published(self, name: str) -> float | None:
        """Return the aggregate written in the log; None if it is absent, null or not finite.

        Raises:
            DataError: it is something else than a number.
        """
        entry = self.entries[name]
        found = entry.get("agg_value", entry.get("auc")) if isinstance(entry, dict) else entry
        if found is None:
            return None
        value = _number(found)
        if value is None:
            raise self.error(name, f"the aggregate must be a number, got {_short(found)}")
        return value if math.isfinite(value) else None

    def has_samples(self, name: str | None, side: str | None = None) -> bool:
        """Tell whether a metric (or the `forget` or `holdout` side of an attack) holds samples."""
        entry = self.entries.get(name) if name is not None else None
        if side is not None:
            entry = entry.get(side) if isinstance(entry, dict) else None
        return isinstance(entry, dict) and "value_by_index" in entry

    def column(self, name: str, field: str, side: str | None = None) -> Column:
        """Return a number, or K numbers, of every sample.

        Raises:
            DataError: a sample is malformed, not finite or has another number of numbers than the first.
        """
        indices: list[int] = []
        rows: list[list[float]] = []
        for index, sample in self._samples(name, side):
            found = sample.get(field) if sample is not None else None
            if sample is not None and field not in sample:
                raise self.error(name, f"sample {index} has no field {field!r}")
            row = self._row(name, index, field, found)
            if row is None:
                continue
            if rows and len(row) != len(rows[0]):
                raise self.error(name, f"sample {index} has {len(row)} numbers, others have {len(rows[0])}")
            indices.append(index)
            rows.append(row)
        if not rows:
            raise self.error(name, f"no sample has a value of {field!r}")
        return Column(np.asarray(indices, dtype=np.int64), np.asarray(rows, dtype=np.float64))

    def has_field(self, name: str | None, field: str) -> bool:
        """Tell whether the samples of a metric have `field`, judged by the first one that is not null."""
        if name is None or not self.has_samples(name):
            return False
        sample = next((found for _, found in self._samples(name, None) if found is not None), None)
        return sample is not None and field in sample

    def texts(self, name: str, field: str) -> dict[int, str]:
        """Return a text of every sample by index.

        Raises:
            DataError: a sample has no such text, or one too long to compare.
        """
        found: dict[int, str] = {}
        for index, sample in self._samples(name, None):
            if sample is None:
                continue
            text = sample.get(field)
            if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
                raise self.error(
                    name, f"sample {index} needs a text {field!r} of at most {_LONGEST_TEXT} characters"
                )
            found[index] = text
        return found

    def error(self, name: str, problem: str) -> DataError:
        """Return an error that names the file and the metric."""
        return DataError(
            f"{self.path}: metric {_short(name)}: {problem}.",
            hint="Give a *_EVAL.json or *_SUMMARY.json as open-unlearning writes it.",
        )

    def _samples(self, name: str, side: str | None) -> list[tuple[int, dict[str, Any] | None]]:
        entry = self.entries[name]
        if side is not None:
            entry = entry.get(side) if isinstance(entry, dict) else None
        samples = entry.get("value_by_index") if isinstance(entry, dict) else None
        where = f"{side}/value_by_index" if side else "value_by_index"
        if not isinstance(samples, dict) or not samples:
            raise self.error(name, f"{where} must be a non-empty object, got {_short(samples)}")
        if len(samples) > _MOST_SAMPLES:
            raise self.error(name, f"{where} has {len(samples)} samples, at most {_MOST_SAMPLES} are read")
        by_index: dict[int, dict[str, Any] | None] = {}
        for key, sample in samples.items():
            if not (key.isascii() and key.isdigit() and len(key) <= _LONGEST_INDEX):
                raise self.error(name, f"the index {_short(key)} in {where} is not a whole number")
            if int(key) in by_index:
                raise self.error(name, f"the index {int(key)} occurs twice in {where}")
            if sample is not None and not isinstance(sample, dict):
                raise self.error(name, f"sample {key} must be an object, got {_short(sample)}")
            by_index[int(key)] = sample
        return sorted(by_index.items())

    def _row(self, name: str, index: int, field: str, found: object) -> list[float] | None:
        """Return the numbers of one sample; None where open-unlearning had no token to score."""
        if found is None:
            return None
        options = found if isinstance(found, list) else [found]
        if not 1 <= len(options) <= _MOST_OPTIONS:
            raise self.error(name, f"sample {index} has {len(options)} numbers in {field!r}")
        row = [_number(option) for option in options]
        if any(value is None for value in row):
            raise self.error(name, f"{field!r} of sample {index} must be a number, got {_short(found)}")
        numbers = [value for value in row if value is not None]
        if not all(map(math.isfinite, numbers)):
            raise self.error(name, f"{field!r} of sample {index} is not finite")
        return numbers


def read_log(path: Path) -> EvaluationLog:
    """Read and bound a log; per-sample fields are checked when they are used.

    Raises:
        DataError: no such file, too large, not JSON, or not an object of metrics.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file.", hint="Give a *_EVAL.json of open-unlearning.")
        # One byte more than allowed tells a file that grew after it was looked at.
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror}.") from problem
    if len(content) > _LARGEST_FILE:
        raise DataError(f"{path}: larger than {_LARGEST_FILE // 2**20} MiB, not an evaluation log.")
    try:
        entries = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}: not a JSON log: {_short(str(problem), 200)}.") from problem
    log = EvaluationLog(path, entries)
    if not isinstance(entries, dict) or not 1 <= len(entries) <= _MOST_METRICS:
        raise DataError(
            f"{path}: a log is an object with 1 to {_MOST_METRICS} metrics, got {_short(entries)}."
        )
    for name, entry in entries.items():
        if entry is not None and not isinstance(entry, dict) and _number(entry) is None:
            raise log.error(name, f"must be an object or a number, got {_short(entry)}")
    if len({name.casefold() for name in entries}) < len(entries):
        raise DataError(f"{path}: two metrics differ in capitals only.")
    return log


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {_short(name)} occurs twice in one object")
        found[name] = value
    return found


def _number(found: object) -> float | None:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        return float(found)
    except OverflowError:
        return math.inf


def _short(found: object, length: int = 60) -> str:
    if isinstance(found, dict | list):
        return f"{'an object' if isinstance(found, dict) else 'a list'} of {len(found)}"
    text = found if isinstance(found, str) and length > 60 else ascii(found)
    return text if len(text) <= length else text[: length - 3] + "..."
