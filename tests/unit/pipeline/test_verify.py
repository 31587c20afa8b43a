"""Verification of finished runs: what was recorded is found again, and every change is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from falcon_unlearn.cli.main import main
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.pipeline import run_pipeline, verifying
from falcon_unlearn.pipeline.remeasuring import compare_metrics
from falcon_unlearn.pipeline.verifying import verify_run
from falcon_unlearn.results import DataResult, EnvironmentResult
from falcon_unlearn.runs import sha256_file

TRAINED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]
FILES = ("trees.jsonl", "quiz.jsonl", "rest.jsonl", "choice.jsonl", "generation.jsonl", "prose.jsonl")


@pytest.fixture(scope="module")
def done(bench, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("verify") / "out"
    run_pipeline(bench.recipe(), output, typed_recipe="seed: 0\n", command="falcon-unlearn run x")
    return output


@pytest.fixture
def run(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "out"))


def outcomes(result) -> dict[str, str]:
    return {check.name: check.status for check in result.checks}


def forge(run: Path, name: str, content: bytes) -> None:
    """Change a file and its entry in the manifest, as somebody would who hides the change."""
    (run / name).write_bytes(content)
    path = run / "falcon" / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = next(entry for entry in manifest["files"] if entry["name"] == name)
    entry |= {"bytes": len(content), "sha256": sha256_file(run / name)}
    path.write_text(json.dumps(manifest))


def test_everything_is_found_again(done, bench):
    result = verify_run(done, base=bench.path("model"), data=[bench.folder])
    assert outcomes(result) == {"files": "passed", "base": "passed", "tensors": "passed", "metrics": "passed"}
    assert result.passed and result.run == "out"
    assert result.changed_tensors == TRAINED
    assert result.environment == [] and "relative" in result.tolerance
    recorded = json.loads((done / "falcon" / "evaluation.after.json").read_text())
    numbers = {(s["name"], m["name"]): m["value"] for s in recorded["sets"] for m in s["metrics"]}
    assert {(one.set, one.metric): one.now for one in result.metrics} == numbers
    assert {"c", "g", "p", "d", "trees (held out)"} <= {one.set for one in result.metrics}


def test_what_is_not_given_is_skipped_with_its_reason(done, bench):
    result = verify_run(done)
    assert outcomes(result) == {"files": "passed", "tensors": "skipped", "metrics": "skipped"}
    assert result.passed and result.changed_tensors is None
    details = {check.name: check.detail for check in result.checks}
    assert "--base" in details["tensors"]
    assert all(name in details["metrics"] for name in FILES)
    one = verify_run(done, data=[bench.folder / "choice.jsonl"])
    assert {metric.set for metric in one.metrics} == {"c"}
    assert "trees.jsonl" in one.checks[-1].detail and one.passed


@pytest.mark.parametrize("name", ["model.safetensors", "falcon/evaluation.after.json", "config.json"])
def test_a_changed_file_fails_and_nothing_is_concluded_from_the_rest(run, bench, name):
    content = bytearray((run / name).read_bytes())
    content[-2] ^= 1
    (run / name).write_bytes(content)
    result = verify_run(run, base=bench.path("model"), data=[bench.folder])
    assert outcomes(result) == {"files": "failed", "tensors": "skipped", "metrics": "skipped"}
    assert not result.passed and name in result.checks[0].detail


def test_a_forged_manifest_does_not_hide_a_changed_tensor(run, bench):
    weights = load_file(run / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, run / "forged.safetensors", metadata={"format": "pt"})
    forge(run, "model.safetensors", (run / "forged.safetensors").read_bytes())
    result = verify_run(run, base=bench.path("model"))
    assert outcomes(result)["files"] == "passed" and outcomes(result)["tensors"] == "failed"
    assert "'model.norm.weight'" in next(c.detail for c in result.checks if c.name == "tensors")
    assert result.changed_tensors == sorted([*TRAINED, "model.norm.weight"])


def test_a_forged_number_is_noticed(run, bench):
    name = "falcon/evaluation.after.json"
    record = json.loads((run / name).read_text())
    metric = next(s for s in record["sets"] if s["name"] == "p")["metrics"][0]
    metric["value"] *= 1 + 1e-6
    forge(run, name, json.dumps(record).encode())
    result = verify_run(run, data=[bench.folder / "prose.jsonl"])
    assert outcomes(result) == {"files": "passed", "tensors": "skipped", "metrics": "failed"}
    assert [(one.set, one.metric) for one in result.metrics if one.status == "failed"] == [
        ("p", "perplexity")
    ]
    assert "not: p perplexity" in result.checks[-1].detail


def test_other_data_of_the_same_name_fail(run, bench, tmp_path):
    for name in ("choice.jsonl", "trees.jsonl"):
        content = (bench.folder / name).read_text()
        (tmp_path / name).write_text(content.replace("amber", "umber"))
    result = verify_run(run, data=[tmp_path / "choice.jsonl", tmp_path / "trees.jsonl"])
    assert outcomes(result)["evaluation set c"] == outcomes(result)["corpus trees"] == "failed"
    both = verify_run(run, data=[tmp_path / "choice.jsonl", bench.folder / "choice.jsonl"])
    assert both.passed and {metric.set for metric in both.metrics} == {"c"}


def test_another_base_fails(run, bench, tmp_path):
    base = Path(shutil.copytree(bench.path("model"), tmp_path / "model"))
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = -weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    result = verify_run(run, base=str(base))
    assert outcomes(result)["base"] == "failed" and outcomes(result)["tensors"] == "failed"
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    missing = verify_run(run, base=str(base))
    assert "in one only, first 'lm_head.weight'" in missing.checks[2].detail


def test_a_signed_zero_is_a_change(run, bench, tmp_path):
    """Numbers are equal and bits are not; the bits are what was promised."""
    base = Path(shutil.copytree(bench.path("model"), tmp_path / "model"))
    for folder, value in ((base, 0.0), (run, -0.0)):
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][0, 0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    forge(run, "model.safetensors", (run / "model.safetensors").read_bytes())
    result = verify_run(run, base=str(base))
    assert result.changed_tensors is not None and "lm_head.weight" in result.changed_tensors


def test_in_another_environment_numbers_need_not_be_equal_but_near(run, bench, monkeypatch):
    capture = verifying.capture_environment

    def other(*arguments) -> EnvironmentResult:
        return capture(*arguments).model_copy(update={"processor": "another one"})

    monkeypatch.setattr(verifying, "capture_environment", other)
    result = verify_run(run, data=[bench.folder / "prose.jsonl"])
    assert [(d.name, d.grade) for d in result.environment] == [("processor", "medium")]
    assert "interval" in result.tolerance and result.passed


def test_numbers_are_compared_exactly_or_with_the_recorded_interval(done):
    from falcon_unlearn.results import EvaluationResult

    recorded = EvaluationResult.model_validate_json((done / "falcon" / "evaluation.after.json").read_text())
    values = recorded.model_dump()
    # Bounded numbers only: a shift of .004 is nothing to the perplexity of a random model.
    values["sets"] = [entry for entry in values["sets"] if entry["kind"] == "choice"]
    for entry in values["sets"]:
        for metric in entry["metrics"]:
            metric["value"] = (metric["value"] + metric["high"]) / 2 + 0.004
    near = EvaluationResult.model_validate(values)
    assert {one.status for one in compare_metrics(recorded, recorded, exact=True)} == {"passed"}
    assert {one.status for one in compare_metrics(recorded, near, exact=True)} == {"failed"}
    assert {one.status for one in compare_metrics(recorded, near, exact=False)} == {"passed"}


def test_evaluation_files_are_recorded_by_hash_and_without_path(done, bench):
    record = DataResult.model_validate_json((done / "falcon" / "data.json").read_text())
    assert set(record.evaluation_files) == {"c", "g", "p", "d"}
    for entry in record.evaluation_files.values():
        assert entry.sha256 == sha256_file(bench.folder / entry.name)


def test_a_folder_that_is_no_run_is_refused(tmp_path, bench):
    with pytest.raises(DataError, match="not a finished run"):
        verify_run(Path(bench.path("model")))
    assert main(["verify", str(tmp_path / "nowhere")]) == 2


def test_missing_data_files_are_refused(done, tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        verify_run(done, data=[tmp_path / "nowhere.jsonl"])


def test_the_command_ends_in_code_four_and_says_why(run, bench, capsys):
    assert main(["verify", str(run), "--base", bench.path("model"), "--quiet"]) == 0
    assert "2 of 2 trained tensors changed, and no other" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(run), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    (run / "config.json").write_bytes((run / "config.json").read_bytes() + b" ")
    assert main(["verify", str(run), "--json", "--quiet"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert "not as recorded: files" in err


def test_threads_and_global_state_are_left_alone(done, bench):
    before = torch.get_rng_state(), torch.get_num_threads()
    verify_run(done, data=[bench.folder / "prose.jsonl"])
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()
