"""Build a recipe from a YAML file, the environment and flags."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from falcon_unlearn.config.describe import PathParts, dotted, fields_of, walk
from falcon_unlearn.config.explain import explain
from falcon_unlearn.config.merge import (
    Change,
    Layers,
    changes_from_environment,
    changes_from_overrides,
    changes_from_set,
    refuse_contradictions,
)
from falcon_unlearn.config.paths import beside, public_name, public_text
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import dump_yaml, parse_yaml, read_recipe_text
from falcon_unlearn.errors import UsageError


def load_recipe(
    path: Path | str | None,
    overrides: Mapping[str, Any],
    set_arguments: list[str],
    *,
    environment: Mapping[str, str] | None = None,
) -> tuple[Recipe, str]:
    """Merge and validate all settings: flags over environment over recipe over defaults.

    Args:
        path: recipe file; relative paths inside it are taken from its folder.
        overrides: values of named flags, by dotted path or nested; None means not given.
        set_arguments: `key.path=value` texts; they apply after `overrides`, which may replace whole lists.
        environment: defaults to the process environment; variables look like `FALCON_TRAIN__STEPS`.

    Returns:
        The recipe, and what was typed as YAML text: the file, then the changes made to it as comments.

    Raises:
        UsageError: one sentence per problem with the dotted path, the value that came and what is needed.
    """
    text, layers = "", Layers({})
    if path is not None:
        text = read_recipe_text(Path(path))
        layers = _file_layer(Path(path), parse_yaml(text, str(path)))
    variables = os.environ if environment is None else environment
    flags = [*changes_from_overrides(overrides), *changes_from_set(set_arguments)]
    refuse_contradictions(flags)
    changes = [*changes_from_environment(variables), *flags]
    for change in changes:
        layers.assign(change)
    recipe = _validate(layers)
    return recipe, _typed(text, path, changes, layers)


def _file_layer(path: Path, value: Any) -> Layers:
    if value is not None and not isinstance(value, dict):
        raise UsageError(
            f"{path}: a recipe is a mapping of keys to values, got {type(value).__name__}",
            hint="`falcon-unlearn init` writes an example.",
        )
    layers = Layers(value or {}, {(): path.name})
    _open_empty_groups(layers.tree)
    _resolve_paths(layers.tree, path.parent)
    return layers


def _open_empty_groups(tree: dict[str, Any], prefix: PathParts = ()) -> None:
    """Read a heading without content as an empty group: what remains when its lines are commented out."""
    for key, value in tree.items():
        parts = (*prefix, key)
        known, annotation, _ = walk(parts)
        if known != parts or fields_of(annotation) is None:
            continue
        if value is None:
            tree[key] = {}
        elif isinstance(value, dict):
            _open_empty_groups(value, parts)


def _path_slots(tree: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Yield holder, key and `always a path` of every setting that may be a path, whatever the user wrote."""
    model, data, evaluation = (tree.get(name) for name in ("model", "data", "evaluation"))
    if isinstance(model, dict):
        yield model, "name", False
    audit = tree.get("audit")
    if isinstance(audit, dict):
        yield audit, "null_model", False
    lists = [(data, "forget", False), (data, "retain", False), (evaluation, "sets", True)]
    for group, key, always in lists:
        items = group.get(key) if isinstance(group, dict) else None
        for item in items if isinstance(items, list) else []:
            if isinstance(item, dict):
                yield item, "path", always


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    for holder, key, always in _path_slots(tree):
        if isinstance(holder.get(key), str):
            holder[key] = beside(folder, holder[key], always=always)


def _validate(layers: Layers) -> Recipe:
    tree = dict(layers.tree)
    # With the groups present, errors name the missing keys instead of the missing groups.
    tree.setdefault("model", {})
    tree.setdefault("data", {})
    if isinstance(tree.get("version"), bool):
        raise UsageError("version: got a truth value, 1 is needed")
    try:
        # Strict JSON mode refuses true for 1 and "10" for 10, and still takes a list for a tuple.
        return Recipe.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise explain(error, layers) from None


def _typed(text: str, path: Path | str | None, changes: list[Change], layers: Layers) -> str:
    """Write down what the user typed, without home folder, local absolute paths or tokens."""
    if path is None:
        typed = dump_yaml(layers.tree)
    else:
        notes = [f"#   {dotted(c.parts)}: {json.dumps(c.value)}  ({c.origin})" for c in changes]
        heading = ["", "# Changed for this run by flags and environment variables:"] if notes else []
        typed = "\n".join([text.rstrip("\n"), *heading, *notes]) + "\n"
    values = [str(holder.get(key)) for holder, key, _ in _path_slots(layers.tree)]
    for value in filter(os.path.isabs, values):
        pieces = re.split(rf"(?<![\w./~-]){re.escape(value)}(?![\w./-])", typed)
        typed = public_name(value).join(pieces)
    return public_text(typed)


def resolved_yaml(recipe: Recipe, *, public: bool = True) -> str:
    """Write every setting of `recipe` with its value, as a recipe file.

    Args:
        recipe: the settings.
        public: replace absolute paths by the last part of their name, as a published record needs.
    """
    tree = recipe.model_dump(mode="json")
    if public:
        for holder, key, _ in _path_slots(tree):
            if isinstance(holder[key], str) and os.path.isabs(holder[key]):
                holder[key] = public_name(holder[key])
    text = dump_yaml(tree)
    return public_text(text) if public else text
