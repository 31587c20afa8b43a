"""Write a commented recipe and a JSON schema from the declared settings."""

from __future__ import annotations

import json
import textwrap
from typing import Any, get_args, get_origin

import yaml
from pydantic_core import PydanticUndefined

from falcon_unlearn.config.describe import PathParts, expectation, fields_of
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.errors import UsageError

_WIDTH = 100
_HEADER = """\
# Recipe for falcon-unlearn: every setting with its default. Fill in the lines marked REQUIRED.
# Relative paths are taken from the folder of this file. Lines may be deleted; defaults then apply.
# Check it: falcon-unlearn validate --recipe THIS_FILE
"""
_NAMES: dict[PathParts, str] = {("data", "forget"): "forget", ("data", "retain"): "retain"}
"""Names of the corpora that the template starts with."""


def commented_recipe() -> str:
    """Write a recipe with all settings, their meaning, accepted values and defaults.

    The result is valid once model.name, data.forget.0.path and data.retain.0.path are filled in.
    """
    lines = [_HEADER]
    for name, field in Recipe.model_fields.items():
        if fields_of(field.annotation) is not None:
            lines.append("")
        lines += _emit(field, (name,), 0)
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _emit(field: Any, path: PathParts, indent: int) -> list[str]:
    name = str(path[-1])
    children = fields_of(field.annotation)
    if children is not None:
        lines = _comment(field.description, indent)
        lines.append(" " * indent + f"{_key(name)}:")
        for key, child in children.items():
            lines += _emit(child, (*path, key), indent + 2)
        return lines
    if get_origin(field.annotation) is tuple and fields_of(get_args(field.annotation)[0]) is not None:
        return _emit_list(field, path, indent)
    words = expectation(field.annotation, list(field.metadata))
    if path[:2] in _NAMES and name == "name":
        return [*_comment(field.description, indent), " " * indent + f"name: {_NAMES[path[:2]]}"]
    if field.is_required():
        return [*_comment(f"REQUIRED. {field.description}", indent), " " * indent + f"{_key(name)}:"]
    comment = _comment(f"{field.description} ({words})", indent)
    return [*comment, " " * indent + f"{_key(name)}: {_inline(_default(field))}"]


def _emit_list(field: Any, path: PathParts, indent: int) -> list[str]:
    item = fields_of(get_args(field.annotation)[0]) or {}
    lines = _comment(field.description, indent)
    body: list[str] = []
    for key, child in item.items():
        body += _emit(child, (*path, key), indent + 4)
    first = next(i for i, line in enumerate(body) if not line.lstrip().startswith("#"))
    body[first] = " " * (indent + 2) + "- " + body[first].lstrip()
    if field.is_required():
        return [*lines, " " * indent + f"{_key(str(path[-1]))}:", *body]
    example = [f"{' ' * indent}# {line[indent:]}" for line in body]
    return [
        *lines,
        " " * indent + f"{_key(str(path[-1]))}: {_inline(_default(field))}",
        *_comment("An item looks like this:", indent),
        *example,
    ]


def _default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else value


def _comment(text: str | None, indent: int) -> list[str]:
    words = " ".join((text or "").split())
    return [" " * indent + "# " + line for line in textwrap.wrap(words, _WIDTH - indent)]


def _inline(value: Any) -> str:
    """Write a value on one line, bare where bare text reads back as the same text."""
    if isinstance(value, str):
        try:
            if parse_yaml(value, "default") == value:
                return value
        except UsageError:
            pass
    return json.dumps(value)


def _key(name: str | int) -> str:
    """Quote a name that YAML would read as something else, such as null."""
    return str(name) if isinstance(yaml.safe_load(str(name)), str) else f'"{name}"'
