"""Methods on outputs: what they do to a model, what they keep of the original, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.errors import NumericalError, UsageError
from falcon_unlearn.events import Notice, ignore_events
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.results import DataResult
from falcon_unlearn.training.outputs import unlearn_outputs
from falcon_unlearn.training.outputs.corpora import OutputCorpus, build_batch
from falcon_unlearn.training.outputs.reference import FrozenHead, freeze_outputs
from pico import FAMILIES, pico_tokenizer
from tiny_runs import LAYER, parameters_of, tiny_corpus, tiny_engine, tiny_recipe

OUTPUT_METHODS = [name for name, method in METHODS.items() if method.acts_on == "outputs"]
ASCENDING = ["grad_ascent", "grad_diff", "npo", "simnpo"]
BOTH = frozenset({"log_probabilities", "distribution"})


def output_data() -> PreparedData:
    """Return questions of 5 tokens with answers, forget and retain."""
    forget = tiny_corpus("f", 9, (11, 16), 0, prompt_tokens=5)
    retain = tiny_corpus("r", 14, (11, 16), 100, prompt_tokens=5)
    return PreparedData((forget,), (retain,), DataResult(corpora=[]))


def output_recipe(method: str, **changes):
    train = {"parameters": "all", "learning_rate": 2e-3, "steps": 4, **changes.pop("train", {})}
    return tiny_recipe(method=method, train=train, data={"loss_on": "answer"}, **changes)


def run(folder, recipe, engine=None, data=None, sink=ignore_events):
    engine = engine or tiny_engine()
    session = unlearn_outputs(engine, pico_tokenizer(), data or output_data(), recipe, LAYER, folder, sink)
    return engine, session


def mean_log_probability(engine, corpus: Corpus) -> float:
    """Score answers one by one through the model's own forward."""
    total, count = 0.0, 0
    with torch.no_grad():
        for example in corpus.training:
            log_p_LV = engine.model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
            for t in range(1, len(example.input_ids)):
                if example.answer_mask[t]:
                    total, count = total + float(log_p_LV[t - 1, example.input_ids[t]]), count + 1
    return total / count


@pytest.mark.parametrize("method", OUTPUT_METHODS)
def test_every_method_trains_every_tensor_and_records_what_changed(method, tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    engine, session = run(tmp_path, output_recipe(method), engine)
    after = parameters_of(engine.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(before)
    assert {change.name for change in session.result.changes} == moved
    for name in moved:
        assert torch.equal(session.changed[name], after[name])
        assert torch.equal(session.original[name], before[name])
    assert len(session.result.history) == 4


@pytest.mark.parametrize("method", ASCENDING)
def test_methods_that_push_answers_down_do(method, tmp_path):
    data = output_data()
    engine = tiny_engine()
    before = mean_log_probability(engine, data.forget[0])
    run(tmp_path, output_recipe(method, train={"steps": 10}), engine, data)
    assert mean_log_probability(engine, data.forget[0]) < before - 0.05


def test_retain_text_is_kept_better_with_its_term_than_without(tmp_path):
    data = output_data()
    kept = []
    for multiplier in (0.0, 3.0):
        engine = tiny_engine()
        recipe = output_recipe("grad_ascent", objective={"retain_multiplier": multiplier})
        run(tmp_path, recipe, engine, data)
        kept.append(mean_log_probability(engine, data.retain[0]))
    assert kept[1] > kept[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_side_equals_a_second_model(family, tmp_path):
    engine, data = tiny_engine(family), output_data()
    examples = data.forget[0].training
    frozen = freeze_outputs(
        engine, examples, BOTH, tmp_path / "s", everything=False, batch_tokens=64, progress=lambda _: None
    )
    head = FrozenHead(engine.model)
    expected = []
    with torch.no_grad():
        for example in examples:
            logits_LV = engine.model(torch.tensor([example.input_ids])).logits[0].float()
            expected.append(logits_LV[[t - 1 for t in range(1, len(logits_LV)) if example.answer_mask[t]]])
        # Training moves the model; what was frozen must not move with it.
        for parameter in engine.model.parameters():
            parameter.add_(0.1)
    rows = [(OutputCorpus("f", examples, frozen), i) for i in range(len(examples))]
    _, batch = build_batch(rows, 0, engine.device, head, everything=False, alternatives=False)
    logits_MV = torch.cat(expected)
    torch.testing.assert_close(batch.reference_logits_MV, logits_MV, rtol=1e-4, atol=1e-4)
    log_p_M = logits_MV.log_softmax(-1).gather(1, batch.labels_M[:, None])[:, 0]
    torch.testing.assert_close(batch.reference_M, log_p_M, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_do_not_see_each_other(family):
    engine, data = tiny_engine(family), output_data()
    examples = data.forget[0].training
    together = pack_examples(examples, engine.device)
    assert together.input_ids_RW.shape[0] <= len(examples)
    with torch.no_grad():
        logits_MV = head_logits(engine.model, supervised_states(engine, together))
        for index, example in enumerate(examples):
            alone = engine.model(torch.tensor([example.input_ids])).logits[0].float()
            wanted = [t - 1 for t in range(1, len(alone)) if example.answer_mask[t]]
            torch.testing.assert_close(
                logits_MV[together.owners_M == index], alone[wanted], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("rule", ["sum", "falcon", "pcgrad", "mgda"])
@pytest.mark.parametrize("method", ["npo", "undial", "idk_dpo"])
def test_every_conflict_rule_works_with_methods_on_outputs(rule, method, tmp_path):
    objective = {"retain_multiplier": 1.0, "conflict": {"rule": rule}}
    _, session = run(tmp_path, output_recipe(method, objective=objective))
    assert all(0 <= row["conflict_share"] <= 1 for row in session.result.history)
    assert all(-1 <= row["mean_cosine"] <= 1 for row in session.result.history)


def test_retain_divergence_is_zero_before_the_first_update(tmp_path):
    objective = {"retain_multiplier": 1.0, "retain_loss": "kl"}
    _, session = run(tmp_path, output_recipe("npo", objective=objective))
    assert session.result.history[0]["retain_loss"] == pytest.approx(0, abs=1e-5)
    assert session.result.history[-1]["retain_loss"] > 1e-4


def test_a_window_is_trained_when_asked_and_nothing_else(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    _, session = run(tmp_path, output_recipe("npo", train={"parameters": "window"}), engine)
    moved = {n for n, p in engine.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved == set(session.changed) and len(moved) == 2
    assert all("down_proj" in name for name in moved)


def test_adapters_change_every_linear_map_and_are_warned_about(tmp_path):
    pytest.importorskip("peft")
    engine, heard = tiny_engine(), []
    before = parameters_of(engine.model)
    recipe = output_recipe("npo", train={"parameters": "lora", "learning_rate": 1e-2})
    run(tmp_path, recipe, engine, sink=heard.append)
    linear = {n for n, p in before.items() if p.dim() == 2 and "layers" in n}
    after = parameters_of(engine.model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == linear
    assert any(isinstance(event, Notice) and "undone" in event.message for event in heard)


def test_task_vector_mirrors_what_learning_would_do(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    run(tmp_path, output_recipe("task_vector"), engine)
    mirrored = parameters_of(engine.model)
    engine = tiny_engine()
    run(tmp_path, output_recipe("task_vector", objective={"task_vector": {"scale": 2.0}}), engine)
    doubled = parameters_of(engine.model)
    for name, original in before.items():
        torch.testing.assert_close(doubled[name] - original, 2 * (mirrored[name] - original))
    assert mean_log_probability(engine, output_data().forget[0]) < mean_log_probability(
        tiny_engine(), output_data().forget[0]
    )


def test_runs_repeat_bit_for_bit(tmp_path):
    first = parameters_of(run(tmp_path, output_recipe("idk_dpo"))[0].model)
    second = parameters_of(run(tmp_path, output_recipe("idk_dpo"))[0].model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_diverged_run_leaves_the_model_as_it_was(tmp_path):
    engine = tiny_engine()
    before = parameters_of(engine.model)
    with pytest.raises(NumericalError):
        run(tmp_path, output_recipe("grad_ascent", train={"learning_rate": 1e30}), engine)
    after = parameters_of(engine.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_plain_text_cannot_have_alternatives(tmp_path):
    text = PreparedData(
        (tiny_corpus("f", 9, (11, 16), 0),), (tiny_corpus("r", 14, (11, 16), 1),), DataResult(corpora=[])
    )
    with pytest.raises(UsageError, match="plain text"):
        run(tmp_path, output_recipe("idk_nll"), data=text)


def test_a_budget_on_states_is_refused(tmp_path):
    with pytest.raises(UsageError, match="maximum_retain_drift"):
        run(tmp_path, output_recipe("npo", train={"maximum_retain_drift": 0.1}))
