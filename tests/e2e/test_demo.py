"""The demo on the real model, scaled down: what the folder promises holds, and the same seed repeats it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.demo import run, write_demo_files
from falcon_unlearn.demo.run import CONTENT, demo_recipe
from falcon_unlearn.results import EvaluationResult, SelectionResult, TrainingResult
from falcon_unlearn.results_audit import AuditResult
from falcon_unlearn.runs import RECORDS, verify_manifest

pytestmark = pytest.mark.model
STEPS = 4


def scaled_down(model: str, folder: Path, seed: int = 0, audit: str = "off") -> Recipe:
    """Return the demo's recipe with fewer texts, items and steps, and one attack."""
    tree = demo_recipe(model, folder, seed, audit).model_dump(mode="json", exclude_unset=True)
    for corpus in (*tree["data"]["forget"], *tree["data"]["retain"]):
        corpus["limit"] = 16
    for entry in tree["evaluation"]["sets"]:
        entry["limit"] = 3
    trial = {"tried": 2, "updates": 2, "texts": 8, "measured": 4}
    tree["selection"] = {"samples": 8, "resamples": 10, "trial": trial}
    tree["train"] = {**tree["train"], "steps": STEPS}
    tree["audit"] |= {"attacks": ["few-shot-retain"], "items": 8, "other_items": 4, "resamples": 200}
    tree["evaluation"] |= {"maximum_divergence_tokens": 100, "resamples": 100}
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def outcome(smollm2, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "result"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "demo_recipe", scaled_down)
        result = command("demo", "--output", folder, "--seed", "1")
    assert result.code == 0, result.err
    return result, folder


@pytest.fixture(scope="module")
def output(outcome) -> Path:
    return outcome[1]


def record(output: Path, name: str) -> str:
    return (output / RECORDS / name).read_text(encoding="utf-8")


def test_the_demo_shows_progress_a_comparison_and_where_the_report_is(outcome):
    (_, out, err), folder = outcome
    for stage in ("prepare", "data", "select", "cache", "train", "evaluate", "write", "report"):
        assert f"[{stage}]" in err
    assert f"step {STEPS}/{STEPS}" in err
    table = [line.split() for line in out.splitlines()]
    assert any(line[:2] == ["symbols", "forget"] for line in table)
    assert any(line[:2] == ["capitals", "retain"] for line in table)
    report = next(line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("Report:"))
    assert Path(report) == folder / RECORDS / "report.html" and Path(report).is_file()


def test_the_result_loads_and_generates_with_the_chat_template(output, smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(smollm2).chat_template
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_the_recorded_tensors_changed_and_all_others_are_bit_equal(output, smollm2):
    before, after = load_file(smollm2 / "model.safetensors"), load_file(output / "model.safetensors")
    training = TrainingResult.model_validate_json(record(output, "training.json"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(training.trained) == {change.name for change in training.changes}
    assert changed and training.steps_done == STEPS


def test_the_records_hold_what_was_asked(output):
    selection = SelectionResult.model_validate_json(record(output, "selection.json"))
    assert len(selection.layers) == 30 and not selection.fixed
    assert {"forget symbols", "forget state_codes"} <= selection.samples.keys()
    for name in ("before", "after"):
        evaluation = EvaluationResult.model_validate_json(record(output, f"evaluation.{name}.json"))
        metrics = {metric.name for entry in evaluation.sets for metric in entry.metrics}
        assert metrics >= {
            "accuracy_text",
            "accuracy_letter",
            "accuracy_generation",
            "perplexity",
            "divergence",
        }
        assert evaluation.skipped == ["held-out texts: evaluation.held_out is false"]


def test_the_manifest_verifies_and_names_the_original_weights(output, smollm2):
    manifest = verify_manifest(output)
    digest = hashlib.sha256((smollm2 / "model.safetensors").read_bytes()).hexdigest()
    assert manifest.base_weights_sha256 == {"model.safetensors": digest}
    assert manifest.base_model == smollm2.name
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        f.name for f in manifest.files
    }


def test_the_report_is_one_file_that_needs_nothing_from_outside(output):
    report = record(output, "report.html")
    assert "<svg" in report and "<style" in report
    assert not re.search(r"<(?:link|script|img|iframe)\b[^>]*(?:src|href)=.(?!data:)", report)
    assert "@import" not in report and "url(http" not in report


def test_the_audit_ran_and_the_report_shows_it(output):
    audit = AuditResult.model_validate_json(record(output, "audit.json"))
    assert "few-shot-retain" in {row.attack for row in audit.attacks}
    assert audit.verdict != "removed (bounded)", "without a null nothing is called removed"
    assert 'id="audit"' in record(output, "report.html")


def test_the_typed_recipe_is_valid_where_it_lies(output, smollm2, command):
    result = command("validate", smollm2, "--recipe", output / RECORDS / "recipe.yaml")
    assert result.code == 0, result.err
    assert "symbols" in result.out


def test_nothing_published_tells_where_files_lay(output, smollm2):
    for path in [*(output / RECORDS).iterdir(), output / "README.md"]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert str(smollm2.parent) not in text, path.name
            assert str(output.parent) not in text, path.name


@pytest.fixture(scope="module")
def unlearn(smollm2, tmp_path_factory) -> Callable[[int], str]:
    """Unlearn in a new process at a fixed layer, and return the hash of the weights."""
    folder = tmp_path_factory.mktemp("repeat")
    write_demo_files(folder / CONTENT)
    tree = scaled_down(str(smollm2), folder / CONTENT).model_dump(mode="json", exclude_unset=True)
    tree["selection"] = {"layer": 6}
    # `auto` measures the machine, and the two runs must not depend on what else it does.
    tree["train"]["compute_dtype"] = "float32"
    (folder / "recipe.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    number = 0

    def act(seed: int) -> str:
        nonlocal number
        number += 1
        output = folder / f"run-{number}"
        command = [sys.executable, "-m", "falcon_unlearn.cli", "unlearn", "--recipe", folder / "recipe.yaml"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--output", output, "--seed", str(seed), "--quiet"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()

    return act


@pytest.mark.slow  # three processes with the real model; pico runs repeat bit by bit in tests/unit
def test_the_same_seed_gives_the_same_weights_bit_for_bit(unlearn):
    first = unlearn(0)
    assert unlearn(0) == first
    assert unlearn(1) != first
