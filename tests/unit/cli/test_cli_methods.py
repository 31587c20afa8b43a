"""The catalogue on the command line: complete, honest about what is needed, and usable as it is printed."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.config.catalogue import METHODS, Method
from falcon_unlearn.config.recipe import Recipe

REFERENCE_FREE = {"grad_ascent", "grad_diff", "simnpo", "idk_nll", "task_vector"}
"""Methods whose own loss never asks the frozen model, by their papers."""


def test_the_table_has_a_row_for_every_method(cli):
    code, out, err = cli("methods")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(" ") and line[1:2].strip()}
    assert set(METHODS) < set(rows)
    for name, method in METHODS.items():
        assert f" {method.acts_on} " in rows[name]
        assert ("nothing" in rows[name]) == (name in REFERENCE_FREE - {"idk_nll"}), name
    assert "objective.retain_loss=kl" in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_document_says_the_same_to_programs(cli):
    code, out, _ = cli("methods", "--json")
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0 and list(entries) == list(METHODS)
    assert {name for name, entry in entries.items() if not entry["needs_reference"]} == REFERENCE_FREE
    assert {name for name, entry in entries.items() if entry["acts_on"] == "states"} == {
        "falcon",
        "rmu",
        "circuit_breakers",
    }
    assert {name for name, entry in entries.items() if "alternatives" in entry["needs"]} == {
        "idk_nll",
        "idk_dpo",
        "altpo",
    }
    assert all("arXiv" in entry["source"] and entry["title"] for entry in entries.values())


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_can_be_asked_for_by_its_name(method: Method, cli, calls):
    data = ["org/base", "--forget", "forget.jsonl", "--retain", "retain.txt"]
    code, _, err = cli("plan", *data, "--method", method.name)
    assert code == 0, err
    recipe = calls.arguments[0]
    assert isinstance(recipe, Recipe) and recipe.method == method.name
    for group, settings in method.defaults.items():
        found = getattr(recipe, group).model_dump()
        for key, value in settings.items():
            assert found[key] == (found[key] | value if isinstance(value, dict) else value), (group, key)
