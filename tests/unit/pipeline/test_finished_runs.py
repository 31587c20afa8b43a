"""A kill between the commit of an output and the removal of its work, on whole commands."""

from __future__ import annotations

import json
import os

import pytest

from falcon_unlearn.cli.main import main
from falcon_unlearn.errors import PrerequisiteError, UsageError
from falcon_unlearn.pipeline import evaluate_model, run_pipeline, select_layer
from falcon_unlearn.pipeline.resuming import RESUMABLE
from falcon_unlearn.runs import WorkFolder, verify_manifest, work_path


class Killed(BaseException):
    pass


def kill(*arguments):
    raise Killed


def run(recipe, output, sink=None):
    extra = {"sink": sink} if sink else {}
    return run_pipeline(recipe, output, typed_recipe="", command="", **extra)


@pytest.fixture
def killed(bench, tmp_path, monkeypatch):
    """The output of a run that was killed when only the removal of its work was missing."""
    output = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(WorkFolder, "remove", kill)
        run(bench.bare(), output)
    verify_manifest(output)
    assert work_path(output).is_dir()
    return output


def test_the_same_command_names_and_removes_what_was_left(killed, bench, capsys):
    arguments = ["run", bench.path("model"), "--forget", bench.path("trees.jsonl")]
    code = main([*arguments, "--retain", bench.path("rest.jsonl"), "--output", str(killed)])
    text = capsys.readouterr().err
    assert code == 2
    assert "output folder in use" in text
    assert ".out.work, left beside it by a process that was killed when all was done, was removed" in text
    assert os.listdir(killed.parent) == ["out"]
    verify_manifest(killed)


def test_with_the_output_moved_away_another_recipe_runs(killed, bench):
    killed.rename(killed.parent / "kept")
    events = []
    run(bench.bare(train={"steps": 3}), killed, events.append)
    assert any(".out.work is removed" in getattr(event, "message", "") for event in events)
    assert sorted(os.listdir(killed.parent)) == ["kept", "out"]


def test_a_commit_that_the_disk_refuses_keeps_the_work_and_says_how_to_go_on(bench, tmp_path, monkeypatch):
    output, real = tmp_path / "out", os.rename

    def full(source, target):
        if ".partial-" in str(source):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        with pytest.raises(PrerequisiteError, match="No space left") as caught:
            run(bench.bare(), output)
    assert caught.value.__notes__ == [RESUMABLE.format(path=work_path(output))]
    with pytest.raises(UsageError, match="unfinished work of another run"):
        run(bench.bare(train={"steps": 3}), output)
    events = []
    run(bench.bare(), output, events.append)
    assert not [event for event in events if type(event).__name__ == "TrainingStepped"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("command", [select_layer, evaluate_model])
def test_a_result_that_cannot_be_written_is_not_measured_again(command, bench, tmp_path, monkeypatch):
    output, real = tmp_path / "result.json", os.replace

    def full(source, target):
        if str(target) == str(output):
            raise OSError(28, "No space left on device")
        real(source, target)

    recipe = bench.recipe(selection={"layer": None, "samples": 8, "resamples": 10})
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(PrerequisiteError, match="No space left"):
            command(recipe, output=output)
    kept = work_path(output) / "finished.jsonl"
    lines = kept.read_text().count("\n")
    assert lines >= (1 if command is select_layer else 5)
    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "put", lambda *_: pytest.fail("measured again"))
        result = command(recipe, output=output)
    assert json.loads(output.read_text()) == result.model_dump(mode="json")
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_result_in_place_lets_go_of_its_work(bench, tmp_path, monkeypatch, capsys):
    output = tmp_path / "result.json"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(WorkFolder, "remove", kill)
        select_layer(bench.bare(), output=output)
    arguments = ["select", bench.path("model"), "--forget", bench.path("trees.jsonl")]
    code = main([*arguments, "--retain", bench.path("rest.jsonl"), "--output", str(output)])
    assert code == 2
    assert ".result.json.work, left beside it by a process that was killed" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["result.json"]
