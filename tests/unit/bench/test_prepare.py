"""Prepared models are trained once, kept under what defines them, and made again when damaged."""

from __future__ import annotations

from falcon_unlearn.bench.prepare import prepare_model
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.events import TrainingStepped
from falcon_unlearn.training.finetune import FinetuneSettings
from pico_files import save_pico
from tiny_runs import tiny_corpus

EXAMPLES = tiny_corpus("t", 8, (9, 14), 0, prompt_tokens=4).training


def prepare(tmp_path, examples=EXAMPLES, **changes):
    base = tmp_path / "base"
    if not base.is_dir():
        save_pico(base)
    steps = []
    settings = FinetuneSettings(epochs=1, batch_size=4, compute_dtype="float32", **changes)
    prepared = prepare_model(
        ModelSettings(name=str(base)),
        examples,
        settings,
        "pico",
        device="cpu",
        cache=tmp_path / "cache",
        sink=lambda event: steps.append(event) if isinstance(event, TrainingStepped) else None,
    )
    return prepared, len(steps)


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
