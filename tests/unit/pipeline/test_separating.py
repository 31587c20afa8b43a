"""A run refuses to measure as kept what it is told to forget, before it loads a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from falcon_unlearn import UnlearnTrainer
from falcon_unlearn.cli.main import main
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.errors import DataError
from falcon_unlearn.events import Notice
from falcon_unlearn.models import access
from falcon_unlearn.pipeline import plan_run, run_pipeline, validate_data
from falcon_unlearn.runs import RECORDS

LONG = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive"


def kept_set(folder: Path, *texts: str) -> dict:
    path = folder / "kept.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"name": "kept", "role": "retain", "kind": "perplexity", "path": str(path)}


def forgotten(bench, number: int) -> str:
    """Return one text of the first forget domain."""
    return json.loads(Path(bench.path("trees.jsonl")).read_text().splitlines()[number])["text"]


@pytest.mark.parametrize("command", ["run", "validate", "plan"])
def test_an_overlap_ends_every_command_before_weights_are_read(command, bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(access, "_load_folder", lambda *_: pytest.fail("weights were loaded"))
    kept = kept_set(tmp_path, "Nothing of it.", forgotten(bench, 4).upper())
    recipe = tmp_path / "recipe.yaml"
    tree = bench.recipe(evaluation={"sets": [kept]}).model_dump(mode="json", exclude_unset=True)
    recipe.write_text(dump_yaml(tree), encoding="utf-8")
    output = ["--output", str(tmp_path / "out")] if command == "run" else []
    assert main([command, "--recipe", str(recipe), *output]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "kept has the role retain" in told and "kept.jsonl, line 2" in told
    assert "it stands in trees, example 5" in told and "hint: remove it" in told
    assert not (tmp_path / "out").exists()


def test_a_near_copy_is_told_and_recorded(bench, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": f"{LONG} {n}"}) + "\n" for n in range(12)))
    recipe = bench.recipe(
        data={"forget": [{"name": "long", "path": str(path)}]},
        evaluation={"sets": [kept_set(tmp_path, f"{LONG} and more")], "held_out": False},
    )
    assert any("nearly repeat" in warning for warning in validate_data(recipe).warnings)
    assert any("nearly repeat" in warning for warning in plan_run(recipe).warnings)
    events = []
    run_pipeline(recipe, tmp_path / "out", typed_recipe="", command="", sink=events.append)
    told = [event for event in events if isinstance(event, Notice) and "nearly repeat" in event.message]
    assert [event.level for event in told] == ["warning"]
    recorded = json.loads((tmp_path / "out" / RECORDS / "data.json").read_text())
    assert told[0].message in recorded["warnings"]
    assert "nearly repeat text to forget" in (tmp_path / "out" / RECORDS / "report.html").read_text()


def test_the_trainer_refuses_data_in_memory_before_it_loads(bench):
    rows = [f"{LONG} {number}" for number in range(12)]
    kept = {"name": "kept", "role": "general", "kind": "perplexity", "items": [{"text": rows[3]}]}
    with pytest.raises(DataError, match="it stands in forget, example 4"):
        UnlearnTrainer("./no-such-model", forget_dataset=rows, retain_dataset=["a b c d"], eval_sets=[kept])
