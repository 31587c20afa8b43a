"""Say in words what a setting accepts. Error messages and the commented recipe both use these words."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from falcon_unlearn.config.recipe import Recipe

PathParts = tuple[str | int, ...]

_NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"
_PATTERNS = {
    _NAME_PATTERN: "a name of 1 to 64 letters, digits, `-` and `_`, the first a letter or digit",
    _DEVICE_PATTERN: "auto, cpu, mps, cuda or cuda:N",
}


def dotted(parts: PathParts) -> str:
    """Write a path as the user types it: `data.forget.0.weight`."""
    return ".".join(str(part) for part in parts)


def fields_of(annotation: Any) -> dict[str, FieldInfo] | None:
    """Return the fields of a group of settings, or None when `annotation` is not a group."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict(annotation.model_fields)
    return None


def walk(parts: PathParts) -> tuple[PathParts, Any, list[Any]]:
    """Follow `parts` through the recipe as far as they name something.

    Returns:
        The parts that name something, the annotation found there and its constraints.
    """
    annotation: Any = Recipe
    metadata: list[Any] = []
    for depth, part in enumerate(parts):
        fields = fields_of(annotation)
        arguments = get_args(annotation)
        if fields is not None and part in fields:
            field = fields[str(part)]
            annotation, metadata = field.annotation, list(field.metadata)
        elif get_origin(annotation) is tuple and isinstance(part, int):
            fixed = len(arguments) != 2 or arguments[1] is not Ellipsis
            if fixed and part >= len(arguments):
                return parts[:depth], annotation, metadata
            annotation, metadata = arguments[part if fixed else 0], []
        elif get_origin(annotation) is dict and fields is None:
            annotation, metadata = arguments[1], []
        else:
            return parts[:depth], annotation, metadata
    return parts, annotation, metadata


def expectation(annotation: Any, metadata: list[Any] | None = None) -> str:
    """Describe the accepted values: `an integer >= 1 and <= 64`, `a number > 0 or auto`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    constraints = " and ".join(_constraints(metadata or []))
    pattern = _pattern(metadata or [])
    if origin in (Union, types.UnionType):
        parts = [expectation(a, metadata if a in (int, float, str) else None) for a in arguments]
        return " or ".join(parts)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        return _describe_list(arguments, metadata or [])
    if origin is dict:
        return "a mapping of text to text"
    if fields_of(annotation) is not None:
        return "a group of settings"
    if pattern:
        return _PATTERNS.get(pattern, f"text of the form {pattern}")
    if annotation is str and any(getattr(item, "min_length", None) for item in metadata or []):
        return "text that is not empty"
    noun = _NOUNS.get(annotation, str(annotation))
    return f"{noun} {constraints}" if constraints else noun


def _describe_list(arguments: tuple[Any, ...], metadata: list[Any]) -> str:
    fields = fields_of(arguments[0])
    item = "groups of settings" if fields is not None else _plural(arguments[0])
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        minimum = next((m.min_length for m in metadata if getattr(m, "min_length", None)), 0)
        return f"a list of {f'{minimum} or more ' if minimum else ''}{item}"
    return f"a list of {len(arguments)} {item}"


def _plural(annotation: Any) -> str:
    return {int: "integers", float: "numbers", str: "texts"}.get(annotation, "values")


def _constraints(metadata: list[Any]) -> Iterator[str]:
    for item in metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(item, attribute, None)) is not None:
                yield f"{sign} {bound}"


def _pattern(metadata: list[Any]) -> str | None:
    return next((item.pattern for item in metadata if getattr(item, "pattern", None)), None)


def all_paths(annotation: Any = Recipe, prefix: PathParts = ()) -> Iterator[PathParts]:
    """Yield every path of the recipe; items of lists appear with index 0."""
    for name, field in (fields_of(annotation) or {}).items():
        path = (*prefix, name)
        yield path
        inner = field.annotation
        if get_origin(inner) is tuple and fields_of(get_args(inner)[0]) is not None:
            yield from all_paths(get_args(inner)[0], (*path, 0))
        else:
            yield from all_paths(inner, path)
