from __future__ import annotations

import pytest
import torch

from falcon_unlearn.activations.collect import sink_tokens
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import Progress, StageFinished, StageStarted, ignore_events
from falcon_unlearn.objectives.falcon import FalconObjective
from falcon_unlearn.results import DataResult
from falcon_unlearn.runs.memory import peak_memory_bytes
from falcon_unlearn.training import session as session_module
from falcon_unlearn.training.fitting import counted_chunks
from falcon_unlearn.training.session import count_parameters, probe_window, unlearn_window
from pico import FAMILIES, pico_model
from tiny_runs import LAYER, parameters_of, run_session, tiny_corpus, tiny_data, tiny_engine, tiny_recipe


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_holds_the_result_in_its_source_dtype(dtype, tmp_path):
    engine = tiny_engine()
    engine.model.to(dtype)
    before = parameters_of(engine.model)
    session = run_session(tmp_path, engine=engine)
    after = dict(engine.model.named_parameters())
    for name in before:
        assert after[name].dtype == dtype and not after[name].requires_grad
        if name in session.changed:
            assert torch.equal(after[name], session.changed[name])
            assert torch.equal(session.original[name], before[name])
            assert not torch.equal(after[name], before[name])
        else:
            assert torch.equal(after[name], before[name])


def test_the_record_counts_what_happened(tmp_path):
    engine, data = tiny_engine(), tiny_data(2)
    result = run_session(tmp_path, engine=engine, data=data).result
    tokens = sum(len(e.input_ids) for c in (*data.forget, *data.retain) for e in c.training)
    assert result.cached_tokens == tokens
    assert (
        result.cache_bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) == 2 * tokens * 32 * 4
    )
    assert result.total_parameters == sum(p.numel() for p in engine.model.parameters())
    assert result.trained_parameters == 2 * 32 * 48
    assert (result.window, result.domains, result.method) == ((2, 3), ["f0", "f1"], "falcon")
    assert result.trained == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (2, 3)]
    assert [change.name for change in result.changes] == result.trained
    assert all(change.norm_change > 0 for change in result.changes)
    assert (result.status, result.steps_planned, result.steps_done, result.kept_step) == (
        "completed",
        6,
        6,
        6,
    )
    assert result.peak_memory_bytes > 50 * 2**20 and set(result.flops) == {"cache", "train"}
    assert result.seconds_cache > 0 and result.seconds_train > 0


def test_tied_parameters_are_counted_once():
    tied = pico_model("gemma3")
    assert count_parameters(tied) == sum({p.data_ptr(): p.numel() for p in tied.parameters()}.values())


def test_peak_memory_is_at_least_what_is_resident():
    import psutil

    assert peak_memory_bytes() >= 0.9 * psutil.Process().memory_info().rss


def test_automatic_rate_is_relative_to_the_trained_weights(tmp_path):
    engine = tiny_engine()
    weights = [engine.block(layer).mlp.down_proj.weight.detach().double().flatten() for layer in (2, 3)]
    expected = 0.02 * float(torch.cat(weights).square().mean().sqrt())
    recipe = tiny_recipe(train={"learning_rate": "auto", "relative_step": 0.02})
    assert run_session(tmp_path, recipe, engine=engine).result.learning_rate == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    "offset",
    [
        {"granularity": "domain"},
        {"granularity": "batch"},
        {"granularity": "sample"},
        {"granularity": "token"},
        {"principal": "centred"},
        {"principal": "contrast"},
        {"principal": "contrast", "granularity": "batch"},
        {"mode": "reference", "directions": 1000},
        {"exclude_sinks": False},
        {"perturbation": 0.1, "operator": "tanh"},
        {"suppression": 0.5},
    ],
    ids=lambda offset: "-".join(map(str, offset.values())),
)
def test_every_kind_of_target_trains_and_none_is_the_default_in_disguise(offset, tmp_path):
    engine = tiny_engine()
    with torch.no_grad():  # sinks, so that leaving them out makes a difference
        engine.base.embed_tokens.weight[4:20] *= 50
    default = run_session(tmp_path, engine=engine)
    engine = tiny_engine()
    with torch.no_grad():
        engine.base.embed_tokens.weight[4:20] *= 50
    session = run_session(tmp_path, tiny_recipe(objective={"offset": offset}), engine=engine)
    if offset.get("granularity") != "batch":  # a new target in every step shows no trend in so few
        assert session.result.history[-1]["forget_loss"] < session.result.history[0]["forget_loss"]
    assert equal(session.changed, default.changed) == (offset == {"granularity": "sample"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("modules", [["mlp.down"], ["attention.output", "mlp.up"]])
def test_every_family_trains_in_bfloat16(family, modules, tmp_path):
    if family == "phi3" and "mlp.up" in modules:
        modules = ["attention.output", "mlp.gate_up"]
    recipe = tiny_recipe(train={"modules": modules, "compute_dtype": "bfloat16", "steps": 2})
    session = run_session(tmp_path, recipe, engine=tiny_engine(family))
    assert len(session.changed) == 2 * len(modules)
    assert all(change.norm_change > 0 for change in session.result.changes)


@pytest.mark.parametrize(("layer", "window"), [(1, (0, 1)), (5, (4, 5))])
def test_first_and_last_windows_train(layer, window, tmp_path):
    assert run_session(tmp_path, layer=layer).result.window == window


def test_answers_only_leaves_the_prompt_out_of_the_forget_loss(tmp_path):
    data = tiny_data(prompt_tokens=5)
    everything = run_session(tmp_path, data=data)
    answers = run_session(tmp_path, tiny_recipe(data={"loss_on": "answer"}), data)
    assert not equal(everything.changed, answers.changed)
    assert equal(everything.changed, run_session(tmp_path, data=tiny_data()).changed), (
        "`all` ignores the mask"
    )
    # With the prompts' tokens masked the number of tokens of the loss follows, and so does its first value.
    assert answers.result.history[0]["forget_norm"] != everything.result.history[0]["forget_norm"]


@pytest.mark.parametrize("exclude_sinks", [True, False])
@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_the_forget_loss_counts_answers_without_sinks_and_the_retain_loss_all(
    exclude_sinks, loss_on, tmp_path, monkeypatch
):
    batches = {"forget_loss": [], "retain_loss": []}
    for name, seen in batches.items():
        original = getattr(FalconObjective, name)

        def record(self, updated, batch, original=original, seen=seen):
            seen.append(batch)
            return original(self, updated, batch)

        monkeypatch.setattr(FalconObjective, name, record)
    engine, data = tiny_engine(), tiny_data(prompt_tokens=5)
    with torch.no_grad():
        engine.base.embed_tokens.weight[4:20] *= 50
    offset = {"exclude_sinks": exclude_sinks}
    run_session(
        tmp_path, tiny_recipe(objective={"offset": offset}, data={"loss_on": loss_on}), data, engine=engine
    )
    num_sinks = 0
    for batch in batches["forget_loss"]:
        width = batch.mask_BL.shape[1]
        examples = [data.forget[0].training[i] for i in batch.samples]
        lengths = torch.tensor([len(example.input_ids) for example in examples])
        real = torch.arange(width)[None] < lengths[:, None]
        sinks = sink_tokens(batch.frozen_BLD, real, 5.0)
        num_sinks += int(sinks.sum())
        expected = real & (
            torch.arange(width) >= 5 if loss_on == "answer" else torch.ones(width, dtype=torch.bool)
        )
        assert torch.equal(batch.mask_BL.bool(), real) and torch.equal(batch.sinks_BL, sinks)
        assert torch.equal(batch.counted_BL, expected & ~sinks if exclude_sinks else expected)
    assert num_sinks > 0
    for batch in batches["retain_loss"]:
        assert batch.domain == -1 and (batch.sinks_BL <= batch.mask_BL).all()
        lengths = [len(data.retain[0].training[i].input_ids) for i in batch.samples]
        assert batch.mask_BL.sum(1).tolist() == lengths


def test_counted_chunks_are_the_frozen_states_without_sinks(tmp_path):
    engine = tiny_engine()
    with torch.no_grad():
        engine.base.embed_tokens.weight[4:20] *= 50
    data, recipe = tiny_data(prompt_tokens=3), tiny_recipe(data={"loss_on": "answer"})
    caches = session_module._cache_all(engine, data, recipe, (2, 3), tmp_path, ignore_events)
    expected, num_sinks = [], 0
    for index, example in enumerate(data.forget[0].training):
        states = caches.forget[0].states.outputs.read(index)
        sinks = sink_tokens(states[None], torch.ones(1, len(states)), 5.0)[0]
        num_sinks += int(sinks.sum())
        expected.append(states[torch.tensor(example.answer_mask) & ~sinks])
    assert num_sinks > 0
    chunks = list(counted_chunks(caches.forget[0], recipe, answers_only=True))
    assert torch.equal(torch.cat(chunks), torch.cat(expected))


def test_domains_share_the_steps_by_weight_and_none_is_left_alone(tmp_path):
    corpora = tuple(
        tiny_corpus(f"f{i}", 9, (11, 16), i, weight=weight) for i, weight in enumerate((3.0, 1.0))
    )
    data = PreparedData(corpora, (tiny_corpus("r", 14, (11, 16), 100),), DataResult(corpora=[]))
    history = run_session(tmp_path, tiny_recipe(train={"steps": 8}), data).result.history
    assert [int(row["domain"]) for row in history].count(0) == 6


def test_stages_and_progress_are_announced(tmp_path):
    events = []
    unlearn_window(tiny_engine(), tiny_data(), tiny_recipe(), LAYER, tmp_path, events.append)
    stages = [(type(e), e.stage) for e in events if isinstance(e, StageStarted | StageFinished)]
    assert stages == [(kind, stage) for stage in ("cache", "train") for kind in (StageStarted, StageFinished)]
    counts = [(e.done, e.total) for e in events if isinstance(e, Progress)]
    assert counts[-1] == (23, 23) and counts == sorted(counts)


def test_a_layer_outside_the_model_is_refused_before_anything_is_cached(tmp_path):
    with pytest.raises(UsageError, match="layer 6"):
        run_session(tmp_path, layer=6)
    assert not list(tmp_path.iterdir())


def test_a_probe_trains_and_puts_the_model_back(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    gramians = probe_window(engine, tiny_data(), tiny_recipe(), LAYER, tmp_path, ignore_events)
    assert equal(before, dict(engine.model.named_parameters()))
    assert len(gramians) == 6
    assert gramians[0].retain_retain == 0 and all(g.retain_retain > 0 for g in gramians[1:])
    assert all(g.forget_forget > 0 for g in gramians)
