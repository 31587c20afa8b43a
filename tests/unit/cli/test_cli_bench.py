"""The command `bench`: what it refuses, and what it writes."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.cli.main import main
from pico_files import save_pico
from shared_data import shared_data


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tofu"], "no model given"),
        (["muse", "base", "--prepare"], "belong to tofu"),
        (["tofu", "base", "--role", "hero"], "--role"),
        (["tofu", "base", "--method", "magic"], "--method"),
        (["tofu", "base", "--tier", "T-M", "--split", "forget10"], "--split"),
    ],
)
def test_wrong_requests_end_in_a_sentence_and_exit_code_two(arguments, words, capsys):
    assert main(["bench", *arguments, "-q"]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_model_is_scored_on_wmdp_and_the_result_is_written(tmp_path, capsys):
    questions = [
        {"question": f"Which letter is number {n}?", "choices": list("abcd"), "answer": n % 4}
        for n in range(8)
    ]
    (tmp_path / "wmdp").mkdir()
    (tmp_path / "wmdp" / "bio.json").write_text(json.dumps(questions))
    output = tmp_path / "new.bench.json"
    arguments = [
        "wmdp",
        str(save_pico(tmp_path / "model")),
        "--data-dir",
        str(tmp_path),
        "--task",
        "wmdp_bio",
    ]
    assert main(["bench", *arguments, "--output", str(output), "--label", "pico", "-q"]) == 0
    result = BenchResult.model_validate_json(output.read_bytes())
    assert result.label == "pico"
    assert result.metric("wmdp_bio").num_items == 8
    assert "wmdp_bio" in capsys.readouterr().out


def test_a_published_log_is_aggregated(capsys):
    folder = shared_data("open_unlearning_eval_logs")
    log = folder / "tofu_Llama-3.2-1B-Instruct_full_evals_forget10_TOFU_EVAL.json"
    retain = folder / "tofu_Llama-3.2-1B-Instruct_retain90_TOFU_EVAL.json"
    assert main(["bench", "tofu", "--aggregate", str(log), "--retain-log", str(retain), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["forget_quality"]["value"] == pytest.approx(3.9054713571083378e-22, rel=1e-9)
    assert values["model_utility"]["value"] == pytest.approx(0.5991534707368931, rel=1e-12)
