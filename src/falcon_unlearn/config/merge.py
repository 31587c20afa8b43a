"""Lay flags over the environment over the recipe, remembering where every value came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from falcon_unlearn.config.describe import PathParts, dotted
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.errors import UsageError

ENVIRONMENT_PREFIX = "FALCON_"
_SET_KEY = re.compile(r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")


@dataclass(frozen=True)
class Change:
    """Assign one value at one path."""

    parts: PathParts
    value: Any
    origin: str
    """Where the value was typed, in words for an error message."""


@dataclass
class Layers:
    """Hold the merged plain values and the origin of each."""

    tree: dict[str, Any]
    origins: dict[PathParts, str] = field(default_factory=dict)
    """Origin by path; a path without one takes that of its nearest parent."""

    def origin(self, parts: PathParts) -> str | None:
        """Return the origin of `parts`, else of something inside it, else of its nearest parent."""
        inside = [path for path in self.origins if path[: len(parts)] == parts]
        outside = [path for path in self.origins if path == parts[: len(path)]]
        if inside:
            return self.origins[min(inside, key=len)]
        return self.origins[max(outside, key=len)] if outside else None

    def assign(self, change: Change) -> None:
        """Put a value into the tree, creating groups and list items on the way.

        Raises:
            UsageError: the path runs through a plain value or beyond the end of a list.
        """
        node: Any = self.tree
        for depth, part in enumerate(change.parts):
            key = _slot(node, part, change, depth)
            if depth == len(change.parts) - 1:
                node[key] = change.value
            elif node[key] is None:
                node[key] = [] if isinstance(change.parts[depth + 1], int) else {}
            node = node[key]
        for parts in [path for path in self.origins if path[: len(change.parts)] == change.parts]:
            del self.origins[parts]
        self.origins[change.parts] = change.origin


def _slot(node: Any, part: str | int, change: Change, depth: int) -> str | int:
    """Make sure that `node` has a place for `part`, and return its key."""
    where = dotted(change.parts[:depth]) or "the recipe"
    if isinstance(node, dict):
        node.setdefault(str(part), None)
        return str(part)
    if not isinstance(node, list):
        raise UsageError(f"{dotted(change.parts)} ({change.origin}): {where} is {node!r}, not a group")
    if not isinstance(part, int) or part > len(node):
        raise UsageError(
            f"{dotted(change.parts)} ({change.origin}): {where} is a list of {len(node)} items",
            hint=f"Use an index from 0 to {len(node)}; {len(node)} appends an item.",
        )
    if part == len(node):
        node.append(None)
    return part


def split_key(key: str) -> PathParts:
    """Split `data.forget.0.weight` into names and list indices."""
    return tuple(int(part) if part.isdecimal() and len(part) < 5 else part for part in key.split("."))


def changes_from_set(arguments: list[str]) -> list[Change]:
    """Parse `--set key.path=value`; the value is YAML.

    Raises:
        UsageError: an argument lacks `=`, its key is malformed or its value is not YAML.
    """
    changes = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not _SET_KEY.match(key.strip()):
            raise UsageError(
                f"--set {argument[:80]!r}: key.path=value is needed", hint="Example: --set train.steps=40"
            )
        origin = f"--set {key.strip()}"
        changes.append(Change(split_key(key.strip()), parse_yaml(text, origin), "--set"))
    return changes


def changes_from_environment(environment: Mapping[str, str]) -> list[Change]:
    """Parse variables such as `FALCON_TRAIN__STEPS=10`.

    Other programs use the prefix too, so only variables whose first part is a group or key of the recipe
    are read; a wrong name below that is an error.
    """
    changes = []
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        parts = split_key(key)
        if parts[0] not in Recipe.model_fields:
            continue
        origin = f"environment variable {variable}"
        if not _SET_KEY.match(key):
            raise UsageError(f"{origin}: not the name of a setting", hint="Example: FALCON_TRAIN__STEPS=40")
        changes.append(Change(parts, parse_yaml(environment[variable], origin), origin))
    return changes


def changes_from_overrides(overrides: Mapping[str, Any]) -> list[Change]:
    """Flatten `{"train.steps": 10, "model": {"name": ...}}`; None means not given."""
    return [Change(parts, value, "command line") for parts, value in _flatten(overrides, ())]


def _flatten(value: Mapping[str, Any], prefix: PathParts) -> Iterator[tuple[PathParts, Any]]:
    for key, item in value.items():
        parts = (*prefix, *split_key(str(key)))
        if isinstance(item, Mapping):
            yield from _flatten(item, parts)
        elif item is not None:
            yield parts, plain(item)


def plain(value: Any) -> Any:
    """Turn paths, tuples and settings into the values that YAML and JSON know."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str) and not value.isascii():
        _refuse_broken_text(value)
    return value


def _refuse_broken_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{value!r}: not valid Unicode text") from error


def refuse_contradictions(changes: list[Change]) -> None:
    """Refuse two flags that give one setting different values.

    Raises:
        UsageError: naming the setting and both values.
    """
    seen: dict[PathParts, Change] = {}
    for change in changes:
        earlier = seen.setdefault(change.parts, change)
        if (earlier.value, type(earlier.value)) != (change.value, type(change.value)):
            raise UsageError(
                f"{dotted(change.parts)}: given as {earlier.value!r} ({earlier.origin}) "
                f"and as {change.value!r} ({change.origin})",
                hint="Keep one of the two.",
            )
