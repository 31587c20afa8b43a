"""The commented recipe and the schema are generated from the declared settings."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.config.describe import all_paths
from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.template import commented_recipe, json_schema
from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.errors import UsageError

REQUIRED = {"model.name": "org/base", "data.forget.0.path": "org/f", "data.retain.0.path": "org/r"}


def filled(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(commented_recipe(), encoding="utf-8")
    return path


def test_it_is_valid_once_three_settings_are_filled_in(tmp_path):
    recipe, _ = load_recipe(filled(tmp_path), {}, [f"{k}={v}" for k, v in REQUIRED.items()], environment={})
    defaults = Recipe.model_validate(
        {
            "model": {"name": "org/base"},
            "data": {
                "forget": [{"name": "forget", "path": "org/f"}],
                "retain": [{"name": "retain", "path": "org/r"}],
            },
        }
    )
    assert recipe == defaults


def test_unfilled_it_names_exactly_those_three(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_recipe(filled(tmp_path), {}, [], environment={})
    assert [line.split(":")[0] for line in caught.value.message.splitlines()] == list(REQUIRED)


def test_every_setting_is_in_it():
    tree = parse_yaml(commented_recipe(), "template")
    for path in all_paths():
        if path[:2] == ("evaluation", "sets") and len(path) > 2:
            continue
        node = tree
        for part in path:
            node = node[part]


def test_the_commented_list_item_is_valid_when_uncommented(tmp_path):
    lines = commented_recipe().splitlines()
    start = next(i for i, line in enumerate(lines) if "An item looks like this" in line)
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("  #   "))
    item = [line.replace("# ", "", 1) for line in lines[start + 1 : end]]
    text = "\n".join([*lines[: start - 1], "  sets:", *item, *lines[end:]])
    for key, value in {"name": "q", "role": "forget", "kind": "choice", "path": "q.jsonl"}.items():
        text = text.replace(f"  - {key}:\n", f"  - {key}: {value}\n").replace(
            f"      {key}:\n", f"      {key}: {value}\n"
        )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe, _ = load_recipe(path, {}, [f"{k}={v}" for k, v in REQUIRED.items()], environment={})
    assert [s.name for s in recipe.evaluation.sets] == ["q"]


def test_lines_are_short_ascii_and_say_what_is_accepted():
    text = commented_recipe()
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 110
    assert "(an integer >= 1)" in text
    assert text.count("REQUIRED. ") == 3 + 4


def test_deleting_any_optional_line_keeps_it_valid(tmp_path):
    lines = commented_recipe().splitlines()
    for index, line in enumerate(lines):
        if line.lstrip().startswith(("#", "- ", "name:", "path:")) or not line.strip() or line.endswith(":"):
            continue
        path = tmp_path / "recipe.yaml"
        path.write_text("\n".join([*lines[:index], *lines[index + 1 :]]))
        load_recipe(path, {}, [f"{k}={v}" for k, v in REQUIRED.items()], environment={})


def test_schema_describes_every_group():
    schema = json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    steps = schema["$defs"]["TrainSettings"]["properties"]["steps"]
    assert (steps["type"], steps["minimum"], steps["description"]) == ("integer", 1, "Optimisation steps.")
