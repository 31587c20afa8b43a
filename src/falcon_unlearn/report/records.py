"""Read the result files of one run folder."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.errors import UsageError
from falcon_unlearn.results import (
    DataResult,
    EnvironmentResult,
    EvaluationResult,
    Manifest,
    SelectionResult,
    TrainingResult,
)
from falcon_unlearn.results_audit import AuditResult
from falcon_unlearn.runs import RECORDS

_MAXIMUM_HEADER_BYTES = 100_000_000
_MAXIMUM_RECORD_BYTES = 1 << 28
_NUMBER_FIELDS = frozenset({"value", "low", "high", "probability_best", "norm_before", "norm_change"})

RecordType = TypeVar("RecordType", bound=BaseModel)


@dataclass(frozen=True)
class RunRecords:
    """Hold everything the report and the model card may read."""

    recipe: Recipe
    data: DataResult
    selection: SelectionResult
    training: TrainingResult
    environment: EnvironmentResult
    before: EvaluationResult | None
    after: EvaluationResult | None
    manifest: Manifest | None
    audit: AuditResult | None
    num_tensors: int | None
    """Tensors in the checkpoint beside the records; None where no checkpoint is found."""

    @property
    def base_model(self) -> str:
        """Name the original model without a local path."""
        return public_name(self.manifest.base_model if self.manifest else self.recipe.model.name)


def read_records(folder: Path) -> RunRecords:
    """Read the records below `folder`/falcon.

    Raises:
        UsageError: If a required file is missing or does not hold what its name promises.
    """
    root = folder / RECORDS
    return RunRecords(
        recipe=_required(root / "recipe.resolved.yaml", Recipe, _parse_yaml),
        data=_required(root / "data.json", DataResult),
        selection=_required(root / "selection.json", SelectionResult),
        training=_required(root / "training.json", TrainingResult),
        environment=_required(root / "environment.json", EnvironmentResult),
        before=_optional(root / "evaluation.before.json", EvaluationResult),
        after=_optional(root / "evaluation.after.json", EvaluationResult),
        manifest=_optional(root / "manifest.json", Manifest),
        audit=_optional(root / "audit.json", AuditResult, json.loads),
        num_tensors=count_tensors(folder),
    )


def read_audit(folder: Path) -> AuditResult:
    """Read the record of an audit: `folder`/audit.json, or that of a run folder.

    Raises:
        UsageError: If there is none, or it is damaged.
    """
    place = folder / RECORDS / "audit.json"
    # An undefined share is null here, not a number that JSON cannot hold.
    return _required(place if place.is_file() else folder / "audit.json", AuditResult, json.loads)


def public_recipe(recipe: Recipe) -> str:
    """Write the recipe as YAML, with every local path reduced to its last part."""
    return yaml.safe_dump(_without_paths(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def count_tensors(folder: Path) -> int | None:
    """Count the tensors of a safetensors checkpoint by its index or header; None where there is none."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if index.is_file():
            return len(json.loads(index.read_bytes())["weight_map"])
        if not single.is_file():
            return None
        with single.open("rb") as stream:
            (num_bytes,) = struct.unpack("<Q", stream.read(8))
            if num_bytes > _MAXIMUM_HEADER_BYTES:
                return None
            return len(json.loads(stream.read(num_bytes)).keys() - {"__metadata__"})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, struct.error):
        return None


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return public_text(public_name(value)) if isinstance(value, str) else value


def _parse_yaml(text: str) -> Any:
    # The strict reader: no tags, no aliases that multiply, no nesting that exhausts the stack.
    try:
        return parse_yaml(text, "the recipe")
    except UsageError as error:
        raise ValueError(error.message) from error


def _parse_json(text: str) -> Any:
    return json.loads(text, object_hook=_restore_numbers)


def _restore_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Read null as not-a-number where a number must be: JSON writers turn infinity and NaN into null."""
    is_history = "forget_loss" in row or "retain_loss" in row
    return {
        key: math.nan if part is None and (is_history or key in _NUMBER_FIELDS) else part
        for key, part in row.items()
    }


def _optional(
    path: Path, kind: type[RecordType], parse: Callable[[str], Any] = _parse_json
) -> RecordType | None:
    return _required(path, kind, parse) if path.exists() else None


def _required(path: Path, kind: type[RecordType], parse: Callable[[str], Any] = _parse_json) -> RecordType:
    name = f"{RECORDS}/{path.name}"
    try:
        if path.stat().st_size > _MAXIMUM_RECORD_BYTES:
            raise UsageError(
                f"{name} is damaged: larger than {_MAXIMUM_RECORD_BYTES} bytes", hint="repeat the run"
            )
        return kind.model_validate(parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent.parent} is not the output folder of a run: {name} is missing",
            hint="give the folder that was passed to `falcon-unlearn run --output`",
        ) from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}", hint="check the permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"{name} is damaged: {field}: {first['msg']}", hint="repeat the run") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is damaged: {error}", hint="repeat the run") from error
