"""Steps in parts and recomputed blocks change what a run needs, not what it gives."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.events import ignore_events
from falcon_unlearn.models.checkpointing import recomputed_blocks
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states
from falcon_unlearn.results import DataResult
from falcon_unlearn.training.outputs import unlearn_outputs
from pico import FAMILIES, pico_tokenizer
from tiny_runs import LAYER, parameters_of, tiny_corpus, tiny_engine, tiny_recipe

OUTPUT_METHODS = [name for name, method in METHODS.items() if method.acts_on == "outputs"]
NUM_STEPS = 3


def run(folder, method, *, family="llama", parameters="all", retain_loss="nll", **train):
    """Unlearn on answers of very different lengths; return parameters and history."""
    forget = tiny_corpus("f", 9, (8, 30), 0, prompt_tokens=5)
    retain = tiny_corpus("r", 14, (8, 30), 100, prompt_tokens=5)
    data = PreparedData((forget,), (retain,), DataResult(corpora=[]))
    # Plain descent: Adam would blow differences of rounding up where gradients are tiny.
    settings = {"parameters": parameters, "optimizer": "sgd", "learning_rate": 0.01, "steps": NUM_STEPS}
    recipe = tiny_recipe(
        method=method,
        train={**settings, "batch_size": 5, **train},
        data={"loss_on": "answer"},
        objective={"retain_loss": retain_loss, "retain_multiplier": 2.0},
    )
    engine = tiny_engine(family)
    session = unlearn_outputs(engine, pico_tokenizer(), data, recipe, LAYER, folder, ignore_events)
    return parameters_of(engine.model), session.result.history


def assert_same_run(first, second, ignored=frozenset()):
    parameters, history = first
    for name, value in parameters.items():
        torch.testing.assert_close(second[0][name], value, rtol=1e-5, atol=1e-6, msg=name)
    for row, other in zip(history, second[1], strict=True):
        for key in set(row) - {"seconds"} - ignored:
            assert other[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("method", OUTPUT_METHODS)
def test_steps_in_parts_equal_whole_steps(method, tmp_path):
    whole = run(tmp_path, method)
    assert_same_run(whole, run(tmp_path, method, micro_batch_tokens=40))


def test_parts_of_one_sample_equal_whole_steps_with_divergence_on_retain_text(tmp_path):
    whole = run(tmp_path, "npo", retain_loss="kl")
    parts = run(tmp_path, "npo", retain_loss="kl", micro_batch_tokens=1)
    # As long as nothing has moved the divergence has no gradient, so its direction is rounding.
    assert_same_run(whole, parts, ignored={"mean_cosine", "conflict_share"})


def test_fewer_tokens_go_through_the_model_at_a_time(tmp_path, monkeypatch):
    from falcon_unlearn.training.outputs import loop

    sizes = []

    def counted(engine, packed):
        sizes.append(packed.num_tokens)
        return supervised_states(engine, packed)

    monkeypatch.setattr(loop, "supervised_states", counted)
    run(tmp_path, "npo")
    whole, sizes[:] = list(sizes), []
    run(tmp_path, "npo", micro_batch_tokens=40)
    assert len(whole) == 2 * NUM_STEPS and max(sizes) <= 40 < max(whole)
    assert sum(sizes) == sum(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_blocks_give_the_same_run(family, tmp_path):
    plain = run(tmp_path, "grad_diff", family=family)
    assert_same_run(plain, run(tmp_path, "grad_diff", family=family, gradient_checkpointing=True))


def test_recomputed_blocks_carry_adapters(tmp_path):
    plain = run(tmp_path, "npo", parameters="lora")
    assert_same_run(plain, run(tmp_path, "npo", parameters="lora", gradient_checkpointing=True))


def test_recomputed_blocks_keep_less_and_leave_no_trace():
    engine = tiny_engine()
    batch = pack_examples(tiny_corpus("f", 4, (20, 30), 0).training, engine.device)

    def kept(active):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with recomputed_blocks(engine.blocks, active=active):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = head_logits(engine.model, supervised_states(engine, batch)).sum()
            found = total
            loss.backward()
        return found

    for parameter in engine.model.parameters():
        parameter.requires_grad_(True)
    plain, less = kept(False), kept(True)
    assert less < 0.5 * plain
    assert not any("forward" in vars(block) for block in engine.blocks)


def test_methods_on_states_have_nothing_to_recompute():
    with pytest.raises(ValidationError, match="gradient_checkpointing: rmu acts on states"):
        tiny_recipe(method="rmu", train={"gradient_checkpointing": True})
