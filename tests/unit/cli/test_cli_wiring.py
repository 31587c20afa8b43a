"""Every command passes on what was typed and prints what came back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from falcon_unlearn.config.template import commented_recipe
from falcon_unlearn.config.yaml_text import parse_yaml
from falcon_unlearn.results import (
    DataResult,
    EnvironmentResult,
    EvaluationResult,
    PlanResult,
    RunSummary,
    SelectionResult,
)

DATA = ["org/base", "--forget", "forget.jsonl", "--retain", "retain.txt"]


def test_run_passes_the_contract_of_the_issue(cli, calls):
    code, out, err = cli(
        "run", "org/base", "--forget", "forget.jsonl", "--forget", "more=org/dataset",
        "--retain", "retain.txt", "--retain", "self", "--output", "out",
        "--set", "train.steps=7", "--set", "data.forget.1.weight=2", "--method", "falcon", "--seed", "3",
    )  # fmt: skip
    assert code == 0
    recipe, output = calls.arguments
    assert calls.name == "run_pipeline"
    assert output == Path("out")
    assert recipe.model.name == "org/base"
    assert [(c.name, c.path, c.weight) for c in recipe.data.forget] == [
        ("forget", "forget.jsonl", 1.0),
        ("more", "org/dataset", 2.0),
    ]
    assert [(c.name, c.path) for c in recipe.data.retain] == [("retain", "retain.txt"), ("self", "self")]
    assert (recipe.train.steps, recipe.seed, recipe.method) == (7, 3, "falcon")
    assert set(calls.keywords) == {"typed_recipe", "command", "sink", "resume"}
    assert calls.keywords["command"].startswith("falcon-unlearn run org/base --forget forget.jsonl")
    assert parse_yaml(calls.keywords["typed_recipe"], "typed")["train"] == {"steps": 7}
    assert "out/falcon/report.html" in out
    assert "[train]" in err
    assert "\x1b" not in out + err


def test_everything_may_come_from_a_recipe(cli, calls, workplace):
    Path("recipes").mkdir()
    text = commented_recipe().replace("  name:\n", "  name: org/base\n", 1)
    for name in ("forget.jsonl", "retain.txt"):
        text = text.replace("      path:\n", f"      path: ../{name}\n", 1)
    Path("recipes/r.yaml").write_text(text)
    for arguments in (["--recipe", "recipes/r.yaml"], ["recipes/r.yaml"]):
        code, _, err = cli("run", *arguments, "--output", "out", "--seed", "5")
        assert (code, calls.arguments[0].seed) == (0, 5), err
        assert calls.arguments[0].data.forget[0].path == "forget.jsonl"
        assert calls.keywords["typed_recipe"].startswith("# Recipe for falcon-unlearn")


def test_unlearn(cli, calls):
    code, out, _ = cli("unlearn", *DATA, "--output", "out", "--set", "selection.layer=7")
    assert (code, calls.name) == (0, "unlearn")
    assert calls.arguments[0].selection.layer == 7
    assert set(calls.keywords) == {"typed_recipe", "command", "sink", "resume"}
    assert "symbols" not in out


def test_demo_chooses_a_free_folder(cli, calls):
    assert cli("demo")[0] == 0
    assert calls.arguments == (Path("falcon-demo"),)
    assert calls.keywords["seed"] == 0
    assert calls.keywords["command"] == "falcon-unlearn demo"
    Path("falcon-demo").mkdir()
    Path("falcon-demo-2").symlink_to("nowhere")
    cli("demo", "--seed", "4")
    assert (calls.arguments, calls.keywords["seed"]) == ((Path("falcon-demo-3"),), 4)
    cli("demo", "--output", "mine")
    assert calls.arguments == (Path("mine"),)


def test_plan_shows_the_resolved_recipe(cli, calls):
    code, out, err = cli("plan", *DATA)
    assert (code, err) == (0, "")
    assert calls.name == "plan_run"
    for words in (
        "chosen by the selection",
        "512.0 MiB",
        "1.0 GiB",
        "1 min 15 s",
        "30/30",
        "warning: slow",
        "temperature: 0.7",
    ):
        assert words in out


def test_validate_counts_data_unless_told_otherwise(cli, calls):
    code, out, _ = cli("validate", *DATA)
    assert (code, calls.name) == (0, "validate_data")
    for words in ("symbols", "1,234", "warning: few examples", "valid"):
        assert words in out
    calls.name = None
    code, out, _ = cli(
        "validate", "org/base", "--forget", "missing.jsonl", "--retain", "self", "--recipe-only"
    )
    assert (code, calls.name) == (0, None)
    assert "The recipe is valid: forget missing; keep self; model org/base." in out


def test_select_and_evaluate_write_json_files(cli, calls):
    code, out, _ = cli("select", *DATA, "--output", "layers.json")
    assert (code, calls.name) == (0, "select_layer")
    assert calls.keywords["output"] == Path("layers.json")  # written by the pipeline, before its work goes
    assert "chosen" in out and "not a candidate" in out and "noisy" in out
    code, out, _ = cli("evaluate", *DATA, "--original", "org/first", "--output", "scores.json")
    assert (code, calls.name, calls.keywords["original"]) == (0, "evaluate_model", "org/first")
    assert calls.keywords["output"] == Path("scores.json")
    assert "not measured: letters: none" in out
    assert cli("evaluate", *DATA)[0] == 0
    assert calls.keywords["original"] is None
    Path("layers.json").write_text("{}")
    for command in ("select", "evaluate"):
        calls.name = None
        code, _, err = cli(command, *DATA, "--output", "layers.json")
        assert (code, calls.name) == (2, None)
        assert "exists already" in err
        assert cli(command, *DATA, "--output", "no/folder.json")[0] == 2


def test_report(cli, calls, workplace):
    Path("out").mkdir()
    code, out, _ = cli("report", "out")
    assert (code, out.strip(), calls.arguments) == (0, "out/falcon/report.html", (Path("out"), None))
    code, out, _ = cli("report", "out", "--output", "x.html", "--json")
    assert json.loads(out) == {"report": "x.html"}


def test_init_writes_and_never_overwrites(cli):
    code, out, _ = cli("init")
    assert code == 0
    assert Path("falcon.yaml").read_text() == commented_recipe()
    assert "falcon.yaml" in out
    Path("falcon.yaml").write_text("mine")
    code, _, err = cli("init")
    assert (code, Path("falcon.yaml").read_text()) == (2, "mine")
    assert "exists already" in err
    assert cli("init", "no/such/r.yaml")[0] == 2
    Path("link.yaml").symlink_to("elsewhere.yaml")
    assert cli("init", "link.yaml")[0] == 2
    assert not Path("elsewhere.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "record"),
    [
        (["run", *DATA, "--output", "out"], RunSummary),
        (["unlearn", *DATA, "--output", "out"], RunSummary),
        (["demo"], RunSummary),
        (["plan", *DATA], PlanResult),
        (["validate", *DATA], DataResult),
        (["select", *DATA], SelectionResult),
        (["evaluate", *DATA], EvaluationResult),
        (["env"], EnvironmentResult),
    ],
)
def test_json_is_one_document_on_standard_output(cli, calls, monkeypatch, arguments, record):
    monkeypatch.setattr("falcon_unlearn.cli.env._probe_torch", lambda: ("cpu", 2))
    code, out, _ = cli(*arguments, "--json")
    assert code == 0
    record.model_validate_json(out)


def test_quiet_shows_no_progress_but_the_result(cli, calls):
    code, out, err = cli("run", *DATA, "--output", "out", "-q")
    assert (code, err) == (0, "")
    assert "symbols" in out


def test_verbose_shows_every_step(cli, calls):
    err = cli("run", *DATA, "--output", "out", "-v")[2]
    assert [f"step {n}/4" in err for n in range(1, 5)] == [True] * 4
    assert cli("run", *DATA, "--output", "out", "-v", "-q")[0] == 2


def test_spellings_of_flags(cli, calls):
    for flag in ("--output", "--output-dir", "--output_dir", "-o"):
        assert cli("run", *DATA, flag, "out")[0] == 0
        assert calls.arguments[1] == Path("out")
    assert cli("run", "--output=out", "--model=org/base", "--forget=a=forget.jsonl", "--retain=self")[0] == 0
    assert calls.arguments[0].data.forget[0].name == "a"
    assert cli("validate", *DATA, "--recipe_only")[0] == 0


def test_names_of_domains_come_from_files(cli, calls, workplace):
    odd = ["x=y.txt", "my secret (v2).jsonl", "---.txt", "\u00e9t\u00e9.txt"]
    for name in odd:
        Path(name).write_text("x")
    flags = [
        argument
        for name in odd
        for argument in ("--forget", str(workplace / name) if name[0] == "x" else "./" + name)
    ]
    code, _, err = cli("run", "org/base", *flags, "--retain", "self", "--output", "out")
    assert code == 0, err
    assert [c.name for c in calls.arguments[0].data.forget] == ["x-y", "my-secret-v2", "forget", "t"]


def test_the_recorded_command_holds_no_absolute_path_and_no_token(cli, calls, workplace):
    secret = "hf_" + "a1B2" * 8
    code, _, err = cli(
        "run", "org/base", "--forget", f"a={workplace}/forget.jsonl", "--retain", f"{workplace}/retain.txt",
        f"--output={workplace}/out", "--set", f"model.revision={secret}",
    )  # fmt: skip
    assert code == 0, err
    command = calls.keywords["command"]
    assert str(workplace) not in command + calls.keywords["typed_recipe"]
    assert secret not in command + calls.keywords["typed_recipe"]
    assert "a=forget.jsonl" in command
