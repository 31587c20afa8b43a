"""Turn what is varied into points: one run each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.errors import UsageError
from falcon_unlearn.runs import slug

Point = dict[str, Any]
"""Value by dotted recipe key; `method` and `seed` are keys too."""
LARGEST_SWEEP = 10_000
"""More points than this are taken for a typing error."""


def parse_variation(argument: str) -> tuple[str, list[Any]]:
    """Read `key.path=value,value,...`; the values are the items of a YAML list.

    Raises:
        UsageError: No key, no values, or not YAML.
    """
    key, equals, text = argument.partition("=")
    if not equals or not key.strip() or not text.strip():
        raise UsageError(
            f"--vary {argument[:80]!r}: key.path=value,value is needed",
            hint="Example: --vary selection.layer=5,6,7",
        )
    return key.strip(), _values(text, f"--vary {key.strip()}")


def parse_list(arguments: Sequence[str], flag: str) -> list[Any]:
    """Read the values of a repeatable flag, each of which may hold several, separated by commas."""
    return [value for argument in arguments for value in _values(argument, flag)]


def _values(text: str, origin: str) -> list[Any]:
    values = parse_yaml(f"[{text}]", origin)
    if not isinstance(values, list) or not values or None in values:
        raise UsageError(f"{origin}: got {text[:80]!r}, values separated by commas are needed")
    return values


def make_points(variations: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return every combination of the values, the last key fastest.

    Raises:
        UsageError: A value occurs twice, or there are more than `LARGEST_SWEEP` combinations.
    """
    for key, values in variations.items():
        texts = [json.dumps(value) for value in values]
        if len(set(texts)) < len(texts):
            raise UsageError(f"{key}: a value is given twice: {', '.join(texts)}")
    points = [
        dict(zip(variations, chosen, strict=True)) for chosen in itertools.product(*variations.values())
    ]
    if len(points) > LARGEST_SWEEP:
        raise UsageError(f"{len(points)} runs are asked for, {LARGEST_SWEEP} is the limit")
    return points


def point_name(point: Point, number: int) -> str:
    """Return a short name for the folder of a point, unique through its number."""
    words = [f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in point.items()]
    return slug(f"{number:04d}-{'-'.join(words)}"[:80])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def point_arguments(point: Point) -> list[str]:
    """Return the flags that set a point."""
    flags: list[str] = []
    for key, value in point.items():
        if key in {"method", "seed"}:
            flags += [f"--{key}", str(value)]
        else:
            flags += ["--set", f"{key}={json.dumps(value)}"]
    return flags
