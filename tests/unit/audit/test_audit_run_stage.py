"""The audit as a stage of a run, and the facts it takes from a recipe."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.cli.main import main
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import UsageError
from falcon_unlearn.pipeline.auditing import recipe_sources

FEW = {"resamples": 200, "formats": ["text"], "maximum_new_tokens": 4, "attacks": ["quantisation"]}


def _recipe(files, **audit):
    return {
        "model": {"name": str(files / "original")},
        "data": {
            "forget": [{"name": "forget", "path": str(files / "forget_texts.jsonl")}],
            "retain": [{"name": "retain", "path": str(files / "retain_texts.jsonl")}],
            "minimum_tokens": 2,
        },
        "selection": {"layer": 1},
        "train": {"steps": 3, "batch_size": 2, "layers": 1, "compute_dtype": "float32"},
        "evaluation": {
            "held_out": False,
            "letter": False,
            "sets": [
                {"name": name, "role": name, "kind": "choice", "path": str(files / f"{name}.jsonl")}
                for name in ("forget", "retain")
            ],
        },
        "audit": {"tier": "quick", **FEW, **audit},
    }


@pytest.fixture(scope="module")
def files(world, world_files):
    for name in ("forget", "retain"):
        rows = [{"text": f"{fact.question} {fact.answer}"} for fact in getattr(world, name)]
        path = world_files / f"{name}_texts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world_files


def test_a_run_with_an_audit_writes_it_beside_its_other_records(files, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(_recipe(files, null_model=str(files / "null"))))
    output = tmp_path / "out"
    code = main(["run", "--recipe", str(path), "--output", str(output)])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    record = json.loads((output / "falcon" / "audit.json").read_text())
    assert [model["role"] for model in record["models"]] == ["original", "null", "unlearned"]
    hashes = {model["role"]: model["weights_sha256"] for model in record["models"]}
    assert len(set(hashes.values())) == 3
    assert {entry["attack"] for entry in record["attacks"]} == {"quantisation"}
    manifest = json.loads((output / "falcon" / "manifest.json").read_text())
    assert "falcon/audit.json" in {entry["name"] for entry in manifest["files"]}
    assert f"Verdict: {record['verdict']}" in shown.out
    # The run's own folder can be audited again, and the original of a run in memory is the original on disk.
    again = ["audit", str(files / "original"), str(output), "--forget", str(files / "forget.jsonl")]
    more = ["--retain", str(files / "retain.jsonl"), "--attack", "wording", "--set", "formats=[text]"]
    assert main([*again, *more, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert {m["role"]: m["weights_sha256"] for m in second["models"]} == {
        role: value for role, value in hashes.items() if role != "null"
    }
    first = {b["format"]: b["accuracy"]["unlearned"]["value"] for b in record["baselines"]}
    assert {b["format"]: b["accuracy"]["unlearned"]["value"] for b in second["baselines"]} == first


def test_a_missed_gate_of_a_run_keeps_its_output(files, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(_recipe(files, gates=["utility_loss<0"])))
    output = tmp_path / "out"
    assert main(["run", "--recipe", str(path), "--output", str(output), "--quiet"]) == 4
    assert "misses 1 of 1 limits" in capsys.readouterr().err
    assert (output / "falcon" / "audit.json").exists() and (output / "model.safetensors").exists()


def test_facts_come_from_choice_sets_once_per_file_and_else_from_the_corpora(files):
    tree = _recipe(files)
    sources = recipe_sources(Recipe.model_validate(tree))
    assert [source.path for source in sources.forget] == [str(files / "forget.jsonl")]
    assert [source.path for source in sources.benign] == [str(files / "retain_texts.jsonl")]
    tree["evaluation"]["sets"] = []
    sources = recipe_sources(Recipe.model_validate(tree))
    assert [source.path for source in sources.forget] == [str(files / "forget_texts.jsonl")]
    tree["data"]["retain"] = [{"name": "self", "path": "self"}]
    with pytest.raises(UsageError, match="no facts to keep"):
        recipe_sources(Recipe.model_validate(tree))
