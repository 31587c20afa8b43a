"""The examples run as they stand, on a model of a few thousand parameters, and say what they promise."""

import ast
import random
import re
import runpy
import sys
from pathlib import Path

import pytest

from falcon_unlearn.runs import verify_manifest
from pico import pico_model, pico_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST_EXAMPLE = 60
RUN_BELOW = {"trainer.py", "pure_functions.py", "pipeline.py"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pico_model("llama").save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run_example(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_short_and_tested_here():
    files = {path.name: path for path in EXAMPLES.glob("*.py")}
    assert files.keys() == RUN_BELOW
    for path in files.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST_EXAMPLE, path.name
        assert f"Usage: python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_trainer(run_example, model_folder, tmp_path):
    printed = run_example("trainer.py", model_folder, tmp_path / "out")
    assert "trained 3 matrices" in printed
    assert re.search(r"symbols +accuracy_text +0\.\d+ +0\.\d+", printed)
    assert {"capitals (held out)", "general (held out)"} <= set(re.findall(r"\w+ \(held out\)", printed))
    assert printed.count("TrainingStepped(") == 2
    assert verify_manifest(tmp_path / "out").base_model == model_folder.name


def test_pure_functions(run_example):
    printed = run_example("pure_functions.py")
    assert printed.startswith("layer 2 - ")
    energy = float(re.search(r"energy .*: (\S+)", printed)[1])
    against = float(re.search(r"against retention (\S+)", printed)[1])
    assert energy < 1e-6
    assert against > -1e-9


def test_pipeline(run_example, model_folder, tmp_path):
    draw = random.Random(0)
    for name in ("forget", "retain"):
        lines = [" ".join(f"{name[0]}{draw.randrange(90)}" for _ in range(6)) for _ in range(30)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    data = (tmp_path / "forget.txt", tmp_path / "retain.txt")
    printed = run_example(
        "pipeline.py", model_folder, *data, tmp_path / "out", "train.steps=3", "train.layers=2"
    )
    chosen = re.findall(r"\* layer +(\d+)", printed)
    assert len(chosen) == 1
    assert len(re.findall(r"layer +\d+: ", printed)) == 6
    assert "kept step 3" in printed
    resolved = (tmp_path / "out" / "falcon" / "recipe.resolved.yaml").read_text(encoding="utf-8")
    assert f"layer: {chosen[0]}\n" in resolved
    assert str(tmp_path) not in verify_manifest(tmp_path / "out").command
