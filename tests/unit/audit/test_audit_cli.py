"""The command `audit` on files."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.cli.main import main
from falcon_unlearn.pipeline.auditing import audit_folder


def _arguments(files, output, *more):
    return [
        "audit",
        str(files / "original"),
        str(files / "unlearned"),
        "--forget",
        str(files / "forget.jsonl"),
        "--retain",
        str(files / "retain.jsonl"),
        "--attack",
        "quantisation",
        "--set",
        "resamples=500",
        "--set",
        "letter_orders=1",
        "--output",
        str(output),
        *more,
    ]


def test_the_command_writes_records_and_prints_the_verdict(world_files, tmp_path, capsys):
    output = tmp_path / "audit"
    code = main(_arguments(world_files, output, "--null", str(world_files / "null"), "--gate", "worst<=0.9"))
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "Verdict: " in shown.out and "quantisation" in shown.out and "gate worst<=0.9" in shown.out
    record = json.loads((output / "audit.json").read_text())
    assert record["version"] == 1 and record["null_source"] == "model"
    assert {model["role"] for model in record["models"]} == {"original", "unlearned", "null"}
    rows = [json.loads(line) for line in (output / "audit.items.jsonl").read_text().splitlines()]
    assert {row["attack"] for row in rows} == {"none", "quantisation"}
    assert not (output / "audit.journal.jsonl").exists() and not (output / ".audit.lock").exists()
    assert str(tmp_path) not in (output / "audit.json").read_text()
    assert main(_arguments(world_files, output)) == 2
    assert "holds an audit" in capsys.readouterr().err
    # Killed after the record and before the page: the journal is still there, and the audit goes on.
    (output / "audit.html").unlink()
    (output / "audit.journal.jsonl").touch()
    assert audit_folder(str(world_files / "unlearned"), output) == output


def test_a_missed_gate_exits_with_four_and_keeps_the_result(world_files, tmp_path, capsys):
    output = tmp_path / "audit"
    assert main(_arguments(world_files, output, "--gate", "knowledge_left<=-0.9", "--json")) == 2
    assert main(_arguments(world_files, output, "--gate", "utility_loss<0", "--json")) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["gates"][0]["passed"] is False
    assert "misses 1 of 1 limits" in shown.err
    assert (output / "audit.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "gcgg"], "gcgg"),
        (["--tier", "slow"], "audit.tier"),
        (["--set", "delta=2"], "audit.delta"),
        (["--set", "detla=0.2"], "KEY one of"),
        (["--gate", "worst"], "METRIC<=NUMBER"),
        (["--seed", "x"], "--seed"),
    ],
)
def test_wrong_options_are_explained(world_files, tmp_path, capsys, more, message):
    assert main(_arguments(world_files, tmp_path / "audit", *more)) == 2
    assert message in capsys.readouterr().err


def test_without_output_the_model_must_be_a_run(world_files, capsys):
    arguments = _arguments(world_files, "x")
    assert main(arguments[:-2]) == 2
    assert "not the output folder of a run" in capsys.readouterr().err
