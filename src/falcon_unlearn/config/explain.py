"""Rewrite validation errors as sentences: which setting, what came, what is needed, what to do next."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import ValidationError

from falcon_unlearn.config.describe import PathParts, all_paths, dotted, expectation, fields_of, walk
from falcon_unlearn.config.merge import Layers
from falcon_unlearn.errors import UsageError

_REQUIRED = {
    "model.name": "Give MODEL (hub id, local folder or GGUF file) or set model.name in the recipe.",
    "data.forget": "Give --forget FILE or set data.forget in the recipe.",
    "data.retain": "Give --retain FILE (or --retain self) or set data.retain in the recipe.",
}
_SHOWN_PROBLEMS = 8
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Problem:
    """Hold one sentence and its hint."""

    message: str
    hint: str | None


def explain(error: ValidationError, layers: Layers) -> UsageError:
    """Turn every error of `error` into one sentence; unknown keys come first."""
    details = _without_consequences(error.errors(include_url=False))
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    problems = list(dict.fromkeys(_problem(detail, layers) for detail in details))
    lines = [problem.message for problem in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more problems")
    hints = dict.fromkeys(problem.hint for problem in problems[:_SHOWN_PROBLEMS] if problem.hint)
    return UsageError("\n".join(lines), hint="\n".join(hints) or None)


def _without_consequences(details: list[Any]) -> list[Any]:
    """Drop `list too short` where the list is long enough and its items are what is wrong."""
    paths = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(len(p) > len(detail["loc"]) and p[: len(detail["loc"])] == detail["loc"] for p in paths)
    ]


def _problem(detail: Any, layers: Layers) -> Problem:
    location: PathParts = tuple(detail["loc"])
    known, annotation, metadata = walk(location)
    if detail["type"] == "extra_forbidden":
        return unknown_key(location, layers.origin(location))
    if detail["type"] == "missing" and known == location and get_origin(walk(location[:-1])[1]) is tuple:
        # A missing number of a pair: the pair is what is wrong.
        known, annotation, metadata = walk(location[:-1])
    if detail["type"] == "json_invalid":
        return Problem("the recipe contains text that is not valid Unicode", None)
    origin = _origin(layers, known)
    name = dotted(known) or "the recipe"
    if detail["type"] == "value_error":
        text = str(detail["msg"]).removeprefix("Value error, ")
        return Problem(f"{name}{origin}: {text}" if known else f"{text}{origin}", None)
    needed = expectation(annotation, metadata)
    present, value = _value_at(layers.tree, known)
    came = f"got {show_value(value)}{origin}" if present else "missing"
    if detail["type"] == "finite_number":
        needed = needed.replace("a number", "a finite number")
    hint = _required_hint(known) if not present or value in (None, "", []) else None
    return Problem(f"{name}: {came}, {needed} is needed", hint)


def _required_hint(parts: PathParts) -> str | None:
    return next((hint for key, hint in _REQUIRED.items() if dotted(parts[:2]) == key), None)


def _origin(layers: Layers, parts: PathParts) -> str:
    origin = layers.origin(parts)
    return f" ({origin})" if origin else ""


def _value_at(tree: Any, parts: PathParts) -> tuple[bool, Any]:
    for part in parts:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return False, None
    return True, tree


def show_value(value: Any) -> str:
    """Write a value on one short line, control characters escaped."""
    text = json.dumps(value) if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def unknown_key(parts: PathParts, origin: str | None = None) -> Problem:
    """Describe a key that the recipe does not have, with the nearest one it has."""
    parent, annotation, _ = walk(parts[:-1])
    siblings = list(fields_of(annotation) or {})
    last = str(parts[-1])
    near = difflib.get_close_matches(last.lower().replace("-", "_"), siblings, n=1, cutoff=0.6)
    suggestions = [dotted((*parent, name)) for name in near] or _elsewhere(last)
    where = f" ({origin})" if origin else ""
    shown = dotted(parts)
    shown = shown if shown.isprintable() and len(shown) < 120 else show_value(shown)
    if suggestions:
        hint = f"Did you mean {' or '.join(suggestions)}?"
    else:
        hint = f"Keys allowed {'in ' + dotted(parent) if parent else 'here'}: {', '.join(siblings)}."
    return Problem(f"{shown}{where}: unknown key", hint)


def _elsewhere(name: str) -> list[str]:
    """Find a key of that name in other groups: `steps` at the top means `train.steps`."""
    paths = [path for path in all_paths() if not isinstance(path[-1], int)]
    exact = [dotted(path) for path in paths if path[-1] == name]
    if exact:
        return exact[:3]
    names = sorted({str(path[-1]) for path in paths})
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return [dotted(path) for path in paths if near and path[-1] == near[0]][:3]
