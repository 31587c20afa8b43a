"""Find missing local files before anything heavy starts."""

from __future__ import annotations

from falcon_unlearn.config.paths import exists, is_local
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import DataError, ModelError


def check_files(recipe: Recipe) -> None:
    """Refuse local paths that do not exist; hub ids are left to the loaders.

    Raises:
        ModelError: the model is spelled as a local path and is missing.
        DataError: corpus or evaluation files are missing; all are named.
    """
    if is_local(recipe.model.name) and not exists(recipe.model.name):
        raise ModelError(
            f"model.name: no such folder or file: {recipe.model.name}",
            hint="Give a hub id, a folder with config.json, or a .gguf file.",
        )
    sources = {
        **{f"data.forget.{i}.path": c.path for i, c in enumerate(recipe.data.forget)},
        **{f"data.retain.{i}.path": c.path for i, c in enumerate(recipe.data.retain)},
    }
    missing = {name: path for name, path in sources.items() if is_local(path) and not exists(path)}
    for index, evaluation_set in enumerate(recipe.evaluation.sets):
        if not exists(evaluation_set.path):
            missing[f"evaluation.sets.{index}.path"] = evaluation_set.path
    if missing:
        raise DataError(
            "\n".join(f"{name}: no such file: {path}" for name, path in missing.items()),
            hint="Paths in a recipe are taken from its folder, paths in flags from the current folder.",
        )
