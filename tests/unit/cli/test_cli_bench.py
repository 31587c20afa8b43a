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
        (["wmdp", "base", "--prepare"], "belong to tofu and muse"),
        (["muse", "base", "--curves"], "--curves needs"),
        (["tofu", "base", "--method", "npo", "--curves"], "--curves needs"),
        (["tofu", "base", "--method", "npo", "--trials", "99"], "--trials"),
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


def test_wmdp_forms_and_the_overlap_of_retain_text_are_asked_for_on_the_command_line(tmp_path, capsys):
    questions = [
        {"question": f"Which letter is number {n}?", "choices": ["a", "bb", "ccc", "d"], "answer": n % 4}
        for n in range(8)
    ]
    page = "one two three four five six seven eight nine ten eleven twelve\n" * 3
    for name, text in {
        "wmdp/bio.json": json.dumps(questions),
        "wikitext2/wiki.test.raw": f" = Title = \n\n {page}\n",
        "kept.txt": page,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    output = tmp_path / "new.bench.json"
    arguments = ["--data-dir", str(tmp_path), "--task", "wmdp_bio", "--task", "wikitext"]
    forms = ["--also", "option-text", "--also", "robust", "--also", "cyclic"]
    retain = ["--retain", str(tmp_path / "kept.txt")]
    model = str(save_pico(tmp_path / "model"))
    assert main(["bench", "wmdp", model, *arguments, *forms, *retain, "-o", str(output), "-q"]) == 0
    result = BenchResult.model_validate_json(output.read_bytes())
    names = {metric.name for metric in result.metrics}
    assert {"wmdp_bio", "wmdp_bio_cloze", "wmdp_bio_cyclic", "wmdp_bio_longest_option"} <= names
    assert any("perplexity split" in note for note in result.notes)


def test_a_published_log_is_aggregated(capsys):
    folder = shared_data("open_unlearning_eval_logs")
    log = folder / "tofu_Llama-3.2-1B-Instruct_full_evals_forget10_TOFU_EVAL.json"
    retain = folder / "tofu_Llama-3.2-1B-Instruct_retain90_TOFU_EVAL.json"
    assert main(["bench", "tofu", "--aggregate", str(log), "--retain-log", str(retain), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["forget_quality"]["value"] == pytest.approx(3.9054713571083378e-22, rel=1e-9)
    assert values["model_utility"]["value"] == pytest.approx(0.5991534707368931, rel=1e-12)
