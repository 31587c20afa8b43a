from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import DataError
from falcon_unlearn.events import Notice, StageFinished, StageStarted, TrainingStepped
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.models.scoring import completion_log_probabilities
from falcon_unlearn.pipeline import run_loaded, run_pipeline, unlearn
from falcon_unlearn.results import (
    DataResult,
    EnvironmentResult,
    EvaluationResult,
    SelectionResult,
    TrainingResult,
    comparison_rows,
)
from falcon_unlearn.runs import sha256_file, verify_manifest
from pico import pico_model, pico_tokenizer
from pico_files import save_pico, write_gguf

TRAINED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]


def execute(recipe, output, function=run_pipeline, sink=None):
    options = {"sink": sink} if sink else {}
    return function(
        recipe, output, typed_recipe="# typed\nseed: 0\n", command="falcon-unlearn run x", **options
    )


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory):
    """One complete run: recipe, output folder, summary and events."""
    output, events = tmp_path_factory.mktemp("runs") / "out", []
    recipe = bench.recipe()
    return recipe, output, execute(recipe, output, sink=events.append), events


def record(output, name, kind):
    return kind.model_validate_json((output / "falcon" / name).read_text(encoding="utf-8"))


# --- what a finished run leaves ---------------------------------------------------------------------------


def test_the_output_folder_holds_model_evidence_and_nothing_else(finished, bench):
    _, output, _, _ = finished
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    base = {path.name for path in Path(bench.path("model")).iterdir()}
    evidence = {
        "recipe.yaml",
        "recipe.resolved.yaml",
        "data.json",
        "selection.json",
        "training.json",
        "environment.json",
        "evaluation.before.json",
        "evaluation.after.json",
        "manifest.json",
        "report.html",
    }
    assert names == base | {f"falcon/{name}" for name in evidence}
    assert not [path for path in output.parent.iterdir() if path != output], "staging or lock was left behind"


def test_the_manifest_covers_every_file_and_notices_a_change(finished, tmp_path):
    _, output, _, _ = finished
    manifest = verify_manifest(output)
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {file.name for file in manifest.files} == names - {"falcon/manifest.json", "falcon/report.html"}
    assert manifest.command == "falcon-unlearn run x" and manifest.base_model == "model"
    assert set(manifest.seconds) >= {"prepare", "data", "cache", "train", "evaluate", "write"}
    changed = output / "falcon" / "data.json"
    content = changed.read_bytes()
    try:
        changed.write_bytes(content + b" ")
        with pytest.raises(DataError, match=r"falcon/data\.json was changed"):
            verify_manifest(output)
    finally:
        changed.write_bytes(content)


def test_records_validate_and_equal_the_summary(finished):
    _, output, summary, _ = finished
    assert record(output, "data.json", DataResult) == summary.data
    assert record(output, "selection.json", SelectionResult) == summary.selection
    assert record(output, "training.json", TrainingResult) == summary.training
    assert record(output, "evaluation.before.json", EvaluationResult) == summary.before
    assert record(output, "evaluation.after.json", EvaluationResult) == summary.after
    environment = record(output, "environment.json", EnvironmentResult)
    assert environment.seed == 0 and environment.packages["torch"] == torch.__version__
    assert summary.training.trained == TRAINED and summary.training.domains == ["trees", "quiz"]
    assert (output / "falcon" / "recipe.yaml").read_text() == "# typed\nseed: 0\n"


def test_the_written_model_differs_from_the_base_in_the_trained_tensors_only(finished, bench):
    _, output, summary, _ = finished
    before = load_file(Path(bench.path("model")) / "model.safetensors")
    after = load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == TRAINED
    for change in summary.training.changes:
        moved = (after[change.name].double() - before[change.name].double()).norm()
        assert change.norm_change == pytest.approx(float(moved), rel=1e-9)
    loaded = AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.tensor([[5, 6, 7]])).logits).all()
    assert AutoTokenizer.from_pretrained(output)("ab")["input_ids"] == [97, 98]


def test_the_numbers_after_are_those_of_the_written_model(finished, bench):
    """Perplexity of one set, recomputed from the saved folders by one pass per text."""
    _, output, summary, _ = finished
    texts = [json.loads(line)["text"] for line in Path(bench.path("prose.jsonl")).read_text().splitlines()]
    for folder, result in ((bench.path("model"), summary.before), (output, summary.after)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        tokens = [tokenizer(text)["input_ids"] for text in texts]
        values = [
            completion_log_probabilities(model, [(ids[:1], ids[1:])], pad_id=0, batch_tokens=64)[0]
            for ids in tokens
        ]
        total = sum(value.sum_log_probability for value in values)
        expected = math.exp(-total / sum(len(ids) - 1 for ids in tokens))
        measured = next(s for s in result.sets if s.name == "p").metrics[0]
        assert measured.name == "perplexity"
        assert measured.value == pytest.approx(expected, rel=1e-4)


def test_divergence_is_zero_before_and_positive_after(finished):
    _, _, summary, _ = finished
    rows = [
        row for row in comparison_rows(summary.before, summary.after) if row["before"].name == "divergence"
    ]
    assert {row["set"] for row in rows} >= {"d"}
    assert all(row["before"].value == 0 and row["after"].value > 0 for row in rows)
    assert all(metric.low <= metric.value <= metric.high for s in summary.after.sets for metric in s.metrics)


def test_the_resolved_recipe_decides_everything_that_was_left_open(finished):
    recipe, output, summary, _ = finished
    text = (output / "falcon" / "recipe.resolved.yaml").read_text()
    plain = yaml.safe_load(text)
    for section in ("model", "selection", "objective", "train"):
        assert "auto" not in json.dumps(plain[section]), section
    assert plain["selection"]["layer"] == summary.selection.layer == 3
    assert plain["train"]["learning_rate"] == summary.training.learning_rate
    assert plain["model"]["dtype"] == "float32"
    assert os.sep not in plain["model"]["name"] + plain["data"]["forget"][0]["path"], (
        "no path of this machine"
    )
    assert Recipe.model_validate(plain).train.steps == recipe.train.steps


def test_the_resolved_recipe_repeats_the_run_bit_for_bit(finished, bench, tmp_path, monkeypatch):
    _, output, _, _ = finished
    monkeypatch.chdir(bench.folder)  # its paths are names
    resolved = yaml.safe_load((output / "falcon" / "recipe.resolved.yaml").read_text())
    execute(Recipe.model_validate(resolved), tmp_path / "again", unlearn)
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(output / "model.safetensors")


def test_no_file_names_a_folder_of_this_machine(finished, bench):
    _, output, _, _ = finished
    for path in output.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".html", ".yaml", ".md"}:
            content = path.read_text(encoding="utf-8")
            assert str(bench.folder) not in content and str(output.parent) not in content, path.name


def test_card_and_report_are_written(finished):
    _, output, summary, _ = finished
    card = (output / "README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card
    report = (output / "falcon" / "report.html").read_text()
    assert report.lstrip().lower().startswith("<!doctype html") and "trees" in report
    assert summary.report == str(output / "falcon" / "report.html")


def test_stages_are_announced_in_order(finished):
    *_, events = finished
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    assert started == ["prepare", "data", "evaluate", "cache", "train", "evaluate", "write", "report"]
    assert [e.stage for e in events if isinstance(e, StageFinished)] == started
    assert sum(isinstance(event, TrainingStepped) for event in events) == 4


# --- variants ---------------------------------------------------------------------------------------------


def weights(folder):
    return {path.name: sha256_file(path) for path in folder.glob("*.safetensors")}


def test_same_seed_same_bytes_and_unlearn_alone_gives_the_same_model(bench, tmp_path, finished):
    _, output, _, _ = finished
    torch.manual_seed(123)
    summary = execute(bench.recipe(), tmp_path / "b", unlearn)
    assert weights(tmp_path / "b") == weights(output), "evaluation must not disturb training"
    assert summary.before is None and summary.after is None
    assert not list((tmp_path / "b" / "falcon").glob("evaluation*"))
    verify_manifest(tmp_path / "b")
    execute(bench.recipe(seed=1), tmp_path / "c", unlearn)
    assert weights(tmp_path / "c") != weights(output)


def test_global_state_is_as_before(bench, tmp_path):
    import random

    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    expected = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state(),
        torch.get_num_threads(),
    )
    execute(bench.bare(runtime={"threads": 1}), tmp_path / "out", unlearn)
    found = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state(),
        torch.get_num_threads(),
    )
    assert found[0] == expected[0] and found[1] == expected[1] and found[3] == expected[3]
    assert torch.equal(found[2], expected[2])


def test_retain_self_samples_from_the_original_model(bench, tmp_path):
    recipe = bench.bare(
        data={
            "retain": [{"name": "own", "path": "self"}],
            "self_samples": 12,
            "self_tokens": 16,
            "forget": [{"name": "trees", "path": bench.path("trees.jsonl")}],
        }
    )
    summary = execute(recipe, tmp_path / "out", unlearn)
    own = next(corpus for corpus in summary.data.corpora if corpus.name == "own")
    assert own.read == 12 and own.training + own.held_out > 8 and own.source == "self"
    again = execute(recipe, tmp_path / "again", unlearn)
    assert next(c for c in again.data.corpora if c.name == "own").sha256 == own.sha256
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_sharded_bfloat16_folders_stay_sharded_bfloat16(bench, tmp_path):
    source = save_pico(tmp_path / "in", model=pico_model("llama").bfloat16(), max_shard_size="40KB")
    execute(bench.bare(model={"name": str(source)}, train={"learning_rate": 0.05}), tmp_path / "out", unlearn)
    assert set(weights(tmp_path / "out")) == set(weights(source))
    assert sum(weights(tmp_path / "out")[name] != weights(source)[name] for name in weights(source)) in (1, 2)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_a_gguf_file_becomes_a_folder(bench, tmp_path):
    path = write_gguf(tmp_path / "pico.gguf", pico_model("llama"))
    summary = execute(bench.bare(model={"name": str(path), "dtype": "float32"}), tmp_path / "out", unlearn)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    original = dict(pico_model("llama").named_parameters())
    different = [n for n, p in loaded.named_parameters() if not torch.equal(p, original[n])]
    assert different == summary.training.trained == TRAINED
    assert set(verify_manifest(tmp_path / "out").base_weights_sha256) == {"pico.gguf"}


def test_a_model_in_memory_is_changed_in_place_and_saved(bench, tmp_path):
    model = pico_model("llama").requires_grad_(False)
    loaded = wrap_model(model, pico_tokenizer(), "mine", None)
    run_loaded(loaded, bench.bare(model={"name": "mine"}), tmp_path / "out")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, dict(saved.named_parameters())[n]) for n, p in model.named_parameters())
    verify_manifest(tmp_path / "out")


def test_selection_feeds_the_run(bench, tmp_path):
    recipe = bench.bare(
        selection={"layer": None, "resamples": 10, "candidates": [0.5, 1.0]}, train={"layers": 1}
    )
    summary = execute(recipe, tmp_path / "out", unlearn)
    assert not summary.selection.fixed
    assert summary.training.window == (summary.selection.layer, summary.selection.layer)
    assert 3 <= summary.selection.layer <= 5


def test_warnings_about_the_data_reach_the_sink_and_the_record(bench, tmp_path):
    (tmp_path / "overlapping.jsonl").write_text(
        Path(bench.path("trees.jsonl")).read_text() + Path(bench.path("rest.jsonl")).read_text()
    )
    events = []
    recipe = bench.bare(data={"retain": [{"name": "rest", "path": str(tmp_path / "overlapping.jsonl")}]})
    summary = execute(recipe, tmp_path / "out", unlearn, sink=events.append)
    notices = [event.message for event in events if isinstance(event, Notice) and event.level == "warning"]
    assert notices == summary.data.warnings and any("20 of 50 retain examples" in text for text in notices)
