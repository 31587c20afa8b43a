from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from falcon_unlearn.events import Progress, ignore_events
from falcon_unlearn.training import conflict_probe
from falcon_unlearn.training.conflict_probe import probe_gradient_conflict
from tiny_runs import parameters_of, run_session, tiny_corpus, tiny_data, tiny_engine, tiny_recipe


def probe(folder, data=None, engine=None, layers=(1, 4), sink=ignore_events):
    return probe_gradient_conflict(
        engine or tiny_engine(), data or tiny_data(), tiny_recipe(), layers, folder, sink
    )


def test_the_score_is_the_mean_cosine_of_a_short_run_at_each_layer(tmp_path):
    scores = probe(tmp_path)
    assert scores.estimator == "gradient_conflict"
    for score, layer in zip(scores.scores, (1, 4), strict=True):
        recipe = tiny_recipe(train={"steps": conflict_probe.PROBE_STEPS, "layers": 1})
        history = run_session(tmp_path, recipe, layer=layer).result.history[1:]
        cosines = [row[f"cosine:model.layers.{layer}.mlp.down_proj.weight"] for row in history]
        assert score.layer == layer
        assert score.value == pytest.approx(sum(cosines) / len(cosines), rel=1e-6)
        assert min(cosines) < score.low <= score.value <= score.high < max(cosines)
    assert scores.scores[0].value != scores.scores[1].value


def test_the_model_is_put_back_and_later_layers_do_not_see_earlier_probes(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    together = probe(tmp_path, engine=engine)
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    assert probe(tmp_path, layers=(4,)).scores[0].value == together.scores[1].value


def test_only_the_first_samples_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(conflict_probe, "PROBE_SAMPLES", 5)
    data = tiny_data()
    cut = replace(data.forget[0], training=data.forget[0].training[:5])
    retain = replace(data.retain[0], training=data.retain[0].training[:5])
    short = replace(data, forget=(cut,), retain=(retain,))
    assert [s.value for s in probe(tmp_path, data).scores] == [s.value for s in probe(tmp_path, short).scores]


def test_settings_of_the_run_that_would_stop_a_probe_do_not_apply(tmp_path):
    recipe = tiny_recipe(train={"maximum_retain_drift": 1e-9, "steps": 1, "warmup_steps": 100, "layers": 3})
    scores = probe_gradient_conflict(tiny_engine(), tiny_data(), recipe, [0, 2], tmp_path, ignore_events)
    assert scores.num_samples == {"batches": conflict_probe.PROBE_STEPS - 1}


def test_progress_counts_layers(tmp_path):
    events = []
    probe(tmp_path, sink=events.append)
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(0, 2), (1, 2), (2, 2)]


def test_domains_of_the_recipe_take_turns(tmp_path):
    data = tiny_data(2)
    other = replace(data, forget=(data.forget[0], tiny_corpus("f1", 9, (11, 16), 77)))
    assert probe(tmp_path, data).scores[0].value != probe(tmp_path, other).scores[0].value
