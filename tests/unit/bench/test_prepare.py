"""Prepared models are trained once, kept under what defines them, and made again when damaged."""

from __future__ import annotations

import json
import os

import pytest

from falcon_unlearn.bench import prepare as module
from falcon_unlearn.bench.prepare import RECORD, prepare_model
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.events import Notice, TrainingStepped
from falcon_unlearn.pipeline.resuming import RESUMABLE
from falcon_unlearn.training.finetune import FinetuneSettings
from pico_files import save_pico
from tiny_runs import tiny_corpus

EXAMPLES = tiny_corpus("t", 8, (9, 14), 0, prompt_tokens=4).training


class Killed(BaseException):
    pass


def prepare(tmp_path, examples=EXAMPLES, events=None, kill_at=None, **changes):
    base = tmp_path / "base"
    if not base.is_dir():
        save_pico(base)
    steps = []

    def sink(event):
        if events is not None:
            events.append(event)
        if isinstance(event, TrainingStepped):
            steps.append(event.step)
            if event.step == kill_at:
                raise Killed

    settings = FinetuneSettings(**{"epochs": 1, "batch_size": 4, "compute_dtype": "float32", **changes})
    prepared = prepare_model(
        ModelSettings(name=str(base)),
        examples,
        settings,
        "pico",
        device="cpu",
        cache=tmp_path / "cache",
        sink=sink,
        save_seconds=0,
    )
    return prepared, len(steps)


def names(tmp_path):
    """Return what lies beside the prepared models, locks left out."""
    return sorted(
        p.name
        for p in (tmp_path / "cache" / "prepared").iterdir()
        if p.name.startswith(".") and not p.name.endswith(".preparing")
    )


def weights(prepared):
    return {path.name: path.read_bytes() for path in prepared.folder.glob("*.safetensors")}


def record(prepared):
    values = json.loads((prepared.folder / RECORD).read_text())
    return {key: value for key, value in values.items() if key != "seconds"}


def test_a_second_call_trains_nothing(tmp_path):
    first, steps = prepare(tmp_path)
    again, none = prepare(tmp_path)
    assert steps == 2 and none == 0
    assert again == first


def test_other_settings_or_examples_are_another_model(tmp_path):
    folders = {
        prepare(tmp_path)[0].folder,
        prepare(tmp_path, seed=1)[0].folder,
        prepare(tmp_path, EXAMPLES[:7])[0].folder,
    }
    assert len(folders) == 3


def test_a_damaged_model_is_not_taken(tmp_path):
    prepared, _ = prepare(tmp_path)
    (prepared.folder / "config.json").write_text("{}")
    _, steps = prepare(tmp_path)
    assert steps == 2


def test_a_training_killed_and_continued_gives_the_same_model_and_record(tmp_path):
    whole, _ = prepare(tmp_path / "whole", epochs=3)
    (tmp_path / "a").mkdir()
    with pytest.raises(Killed) as caught:
        prepare(tmp_path / "a", epochs=3, kill_at=4)
    (work,) = names(tmp_path / "a")
    assert caught.value.__notes__ == [RESUMABLE.format(path=tmp_path / "a" / "cache" / "prepared" / work)]
    prepared, steps = prepare(tmp_path / "a", epochs=3)
    assert steps == 3
    assert (weights(prepared), record(prepared)) == (weights(whole), record(whole))
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_kill_around_the_commit_loses_no_training(moment, tmp_path, monkeypatch):
    def kill(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, "write_manifest" if moment == "before the commit" else "_remove_states", kill)
        prepare(tmp_path)
    assert len(names(tmp_path)) == 1
    _, steps = prepare(tmp_path)
    assert steps == 0
    assert names(tmp_path) == []


def test_a_full_disk_at_the_commit_is_told_and_loses_no_training(tmp_path, monkeypatch):
    real = os.rename

    def full(source, target):
        if ".partial-" in str(source):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        with pytest.raises(PrerequisiteError, match="No space left"):
            prepare(tmp_path)
    _, steps = prepare(tmp_path)
    assert steps == 0
    assert names(tmp_path) == []


def test_damaged_and_old_states_start_the_training_again_with_a_warning(tmp_path):
    expected = weights(prepare(tmp_path / "whole", epochs=2)[0])
    with pytest.raises(Killed):
        prepare(tmp_path, epochs=2, kill_at=3)
    home = tmp_path / "cache" / "prepared"
    (work,) = names(tmp_path)
    (home / work / "identity.json").write_text("{")
    for suffix in (".state", ".part"):  # what earlier versions left
        (home / work).with_suffix(suffix).write_bytes(b"old")
    events = []
    prepared, steps = prepare(tmp_path, epochs=2, events=events)
    assert steps == 4
    warnings = [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert len(warnings) == 1 and work in warnings[0] and "starts again" in warnings[0]
    assert weights(prepared) == expected
    assert names(tmp_path) == []
