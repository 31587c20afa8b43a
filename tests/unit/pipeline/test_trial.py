"""The layer is confirmed, or replaced, by what a short unlearning there does to the output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from falcon_unlearn.data.corpora import Corpus
from falcon_unlearn.data.wordings import wording_groups
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import Notice, Progress, ignore_events
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.pipeline import plan_run, select_layer, trial
from falcon_unlearn.pipeline.candidates import spread_layers
from falcon_unlearn.pipeline.trial import confirm_by_trial, divide_data, trial_recipe
from falcon_unlearn.pipeline.workspace import Workspace
from falcon_unlearn.results import LayerValue, SelectionResult
from pico import pico_model, pico_tokenizer, random_tokens
from tiny_runs import parameters_of, run_session, tiny_data, tiny_recipe

LAYERS = [1, 3, 4, 5]
OPEN = {"layer": None, "resamples": 10, "candidates": [0.2, 0.9], "margin": 9.0}
"""Selection settings under which all candidates tie."""


def recipe_for(**settings):
    values = {"tried": 4, "updates": 6, "speed": 3.0, "measured": 3, "texts": 5} | settings
    return tiny_recipe(train={"layers": 1}, selection={"trial": values})


def tied(layers=LAYERS):
    rows = [
        LayerValue(layer=layer, value=0.1, low=0, high=1, probability_best=0.25, candidate=True)
        for layer in layers
    ]
    return SelectionResult(
        estimator="pooled", unit="nats", layer=layers[0], best_layer=layers[0], fixed=False,
        rule="earliest_tied", tied_layers=layers, layers=rows, explanation="All are tied.",
    )  # fmt: skip


def workspace_of(model, data=None):
    loaded = wrap_model(model.requires_grad_(False), pico_tokenizer(), "pico", None)
    return Workspace(loaded, BlockEngine(model), data or tiny_data(2, prompt_tokens=4))


def known_texts(model, count=12, length=14):
    """Return a forget domain of what the model itself says, so that any change makes it less probable."""
    ids = torch.tensor([random_tokens(4, seed=number) for number in range(count)])
    with torch.no_grad():
        while ids.shape[1] < length:
            following = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], dim=1)
    mask = tuple(place >= 4 for place in range(length))
    examples = tuple(EncodedExample(tuple(row), mask, "", False) for row in ids.tolist())
    data = tiny_data()
    return replace(data, forget=(Corpus("known", 1.0, examples, (), ()),))


def settle(workspace, recipe, folder, *, selection=None, sink=ignore_events):
    return confirm_by_trial(selection or tied(), workspace, recipe, sink, {}, folder, None)


def begin_anew_at(model, layer):
    """Let a block start from the embeddings, so that no change below it reaches the output."""
    seen = {}
    decoder = model.base_model
    decoder.embed_tokens.register_forward_hook(lambda _module, _inputs, output: seen.update(states=output))
    block = decoder.layers[layer]
    inner = block.forward
    block.forward = lambda hidden_states, *args, **kwargs: inner(seen["states"], *args, **kwargs)


def test_a_layer_whose_change_a_later_block_erases_is_avoided(tmp_path):
    model = pico_model("llama")
    begin_anew_at(model, 2)
    workspace = workspace_of(model, known_texts(model))
    settled = settle(workspace, recipe_for(updates=12, speed=10.0), tmp_path)
    falls = {row.layer: row.fall for row in settled.layers}
    assert falls[1] == pytest.approx(0.0, abs=1e-6) and min(falls[layer] for layer in (3, 4, 5)) > 0.1
    assert settled.trial.strongest_layer == max(falls, key=falls.get) != 1
    assert settled.layer == min(layer for layer, fall in falls.items() if fall >= 0.4 * max(falls.values()))
    assert settled.explanation.startswith("All are tied. A short trial")


def test_falls_are_those_of_a_run_scored_by_the_plain_model_in_float64(tmp_path):
    recipe = recipe_for()
    workspace = workspace_of(pico_model("llama"))
    measured, small = divide_data(workspace.data, recipe)
    found = {row.layer: row for row in settle(workspace, recipe, tmp_path).layers}

    def scores(model):
        model = model.double()
        means = []
        for text in measured:
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([text.input_ids])).logits[0].log_softmax(-1)
            places = [i for i in range(1, len(text.input_ids)) if text.answer_mask[i]]
            means.append(sum(float(logs[i - 1, text.input_ids[i]]) for i in places) / len(places))
        return torch.tensor(means, dtype=torch.float64)

    before = scores(pico_model("llama"))
    for layer in (3, 5):
        model = pico_model("llama").requires_grad_(False)
        settings = recipe.model_copy(update={"train": trial_recipe(recipe).train})
        assert settings.train.learning_rate == pytest.approx(9e-3) and settings.train.steps == 6
        run_session(tmp_path, settings, small, engine=BlockEngine(model), layer=layer)
        falls = before - scores(model)
        assert found[layer].fall == pytest.approx(float(falls.mean()), rel=1e-4, abs=1e-5)
        error = float(falls.std() / len(falls) ** 0.5)
        assert found[layer].fall_error == pytest.approx(error, rel=1e-3, abs=1e-5)


def test_the_model_is_put_back_and_progress_counts_layers(tmp_path):
    workspace, events, recipe = workspace_of(pico_model("llama")), [], recipe_for()
    before = parameters_of(workspace.loaded.model)
    settle(workspace, recipe, tmp_path, sink=events.append)
    assert all(torch.equal(p, before[n]) for n, p in workspace.loaded.model.named_parameters())
    counts = [(e.done, e.total) for e in events if isinstance(e, Progress) and e.stage == "trial"]
    assert counts == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("selection", "changes"),
    [
        (tied(), {"trial": {"when": "never"}}),
        (tied(), {"rule": "best"}),
        (tied([4]), {}),
    ],
    ids=["off", "bare optimum", "one candidate"],
)
def test_with_one_candidate_or_when_it_is_off_nothing_is_tried(selection, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "trial_window", lambda *_: pytest.fail("a trial ran"))
    recipe = tiny_recipe(selection=changes)
    assert settle(workspace_of(pico_model("llama")), recipe, tmp_path, selection=selection) is selection


def test_a_trial_that_diverges_is_left_out_and_told(tmp_path, monkeypatch):
    real = trial.trial_window

    def failing(engine, data, recipe, layer, *rest):
        if layer != 4:
            raise NumericalError("the loss is not finite")
        return real(engine, data, recipe, layer, *rest)

    monkeypatch.setattr(trial, "trial_window", failing)
    events = []
    settled = settle(workspace_of(pico_model("llama")), recipe_for(), tmp_path, sink=events.append)
    assert {row.layer for row in settled.layers if row.fall is not None} == {4}
    told = [e.message for e in events if isinstance(e, Notice)]
    assert sum("is left out: the loss is not finite" in text for text in told) == 3


def test_without_evidence_the_tie_rule_stands_and_the_record_says_so(tmp_path):
    model = pico_model("llama")
    begin_anew_at(model, 5)
    events = []
    selection = tied([1, 3])
    settled = settle(workspace_of(model), recipe_for(), tmp_path, selection=selection, sink=events.append)
    assert settled.layer == selection.layer and settled.trial.strongest_layer is None
    assert "No trial confirmed it" in settled.explanation
    assert any("no trial confirms" in e.message for e in events if isinstance(e, Notice))


def test_the_measured_texts_are_worded_unlike_the_trained_ones():
    data = tiny_data(2)
    measured, small = divide_data(data, recipe_for(texts=50, measured=50))
    held = {text.input_ids for text in measured}
    trained = {e.input_ids for corpus in small.forget for e in corpus.training}
    everything = {e.input_ids for corpus in data.forget for e in corpus.training}
    assert held | trained == everything and not held & trained
    assert len(held) == 6 and all(len(corpus.training) == 6 for corpus in small.forget)
    assert len(wording_groups([e.input_ids for e in data.forget[0].training], 0)) == 9


@pytest.mark.parametrize(
    ("layers", "number", "expected"),
    [
        ([4, 5, 6], 4, [4, 5, 6]),
        ([4, 5, 6, 7, 8, 9, 10], 4, [4, 6, 8, 10]),
        ([4, 9], 2, [4, 9]),
        (list(range(20)), 2, [0, 19]),
    ],
)
def test_tried_layers_are_spread_over_the_tie(layers, number, expected):
    assert spread_layers(layers, number) == expected


def test_a_streamed_model_is_tried_as_one_in_memory(bench):
    settings = {
        "selection": OPEN
        | {"trial": {"when": "always", "tried": 2, "updates": 3, "speed": 2.0, "measured": 4}}
    }
    here = select_layer(bench.bare(**settings))
    there = select_layer(bench.bare(**settings, runtime={"streaming": "always"}))
    assert here.trial is not None and len(here.tied_layers) == 5
    assert here.layer == there.layer
    for ours, theirs in zip(there.layers, here.layers, strict=True):
        assert (ours.fall is None) == (theirs.fall is None) == (ours.layer not in (1, 5))
        if ours.fall is not None:
            assert ours.fall == pytest.approx(theirs.fall, rel=1e-3, abs=1e-5)


def test_by_default_a_streamed_model_is_not_tried_and_plan_and_record_say_so(bench):
    settings = {"selection": OPEN, "runtime": {"streaming": "always"}}
    plan = plan_run(bench.bare(**settings))
    assert plan.flops["trial"] == plan.seconds["trial"] == 0
    assert any("no trial will confirm" in text for text in plan.warnings)
    events = []
    result = select_layer(bench.bare(**settings), sink=events.append)
    assert result.trial is None and result.layer == result.tied_layers[0]
    assert "selection.trial.when=always" in result.explanation
    assert any("block by block" in e.message for e in events if isinstance(e, Notice))
    asked = plan_run(bench.bare(**settings | {"selection": OPEN | {"trial": {"when": "always"}}}))
    assert asked.flops["trial"] > 0 and asked.seconds["trial"] > 0
    assert not any("trial" in text for text in asked.warnings)


def test_what_is_finished_is_kept_over_a_kill(bench, tmp_path, monkeypatch):
    settings = {"selection": OPEN | {"trial": {"tried": 3, "updates": 2, "measured": 4}}}
    recipe = bench.bare(**settings)
    real, seen = trial.trial_window, []

    def dying(engine, data, recipe, layer, *rest):
        seen.append(layer)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(engine, data, recipe, layer, *rest)

    monkeypatch.setattr(trial, "trial_window", dying)
    with pytest.raises(KeyboardInterrupt):
        select_layer(recipe, output=tmp_path / "s.json")
    resumed = select_layer(recipe, output=tmp_path / "s.json", resume="must")
    assert seen == [1, 3, 5, 5]
    fresh = select_layer(recipe)
    assert [v.fall for v in resumed.layers] == [v.fall for v in fresh.layers]


def test_the_plan_holds_the_trial(bench):
    with_trial = plan_run(bench.bare(selection=OPEN))
    without = plan_run(bench.bare(selection=OPEN | {"trial": {"when": "never"}}))
    fixed = plan_run(bench.bare())
    assert with_trial.flops["trial"] > 0 and with_trial.seconds["trial"] > 0
    assert without.flops["trial"] == fixed.flops["trial"] == fixed.seconds["trial"] == 0
    rest = {name: value for name, value in with_trial.flops.items() if name != "trial"}
    assert rest == {name: value for name, value in without.flops.items() if name != "trial"}
