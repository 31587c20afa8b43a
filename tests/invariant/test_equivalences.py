"""Two ways to the same number: relations that must hold whatever the implementation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.activations.caching import cache_states
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.falcon import FalconObjective
from falcon_unlearn.objectives.losses import info_nce_loss, retention_loss
from falcon_unlearn.objectives.offsets import (
    principal_directions,
    principal_offset_vectors,
    reference_offset_vector,
)
from pico import FAMILIES, pico_model
from tiny_runs import LAYER, run_session, tiny_data, tiny_engine, tiny_recipe

D = 16


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hidden_states(model, ids, layer):
    kept = []
    handle = (
        model.get_decoder()
        .layers[layer]
        .register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    )
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unlearned_model_as_a_whole_has_the_states_the_window_was_trained_to(family, tmp_path):
    """The window saw cached inputs only; the finished model must give the same states from its tokens."""
    engine, data = tiny_engine(family), tiny_data()
    samples = [example.input_ids for example in data.forget[0].training]
    options = {"compute_dtype": torch.float32, "store_dtype": torch.float32, "batch_tokens": 64}
    before = cache_states(engine, samples, (2, 3), tmp_path, "b", progress=lambda *_: None, **options)
    session = run_session(tmp_path, engine=engine, data=data)
    for index, sample in enumerate(samples):
        with torch.no_grad():
            window = engine.run(before.inputs.read(index)[None], 2, LAYER)[0]
        whole = hidden_states(engine.model, sample, LAYER)
        assert (window - whole).abs().max() <= 5e-6 * whole.abs().max()
        assert (whole - before.outputs.read(index)).abs().max() > 1e-3 * whole.abs().max(), "nothing moved"
    with tensors_replaced(engine.model, session.original):
        assert torch.allclose(
            hidden_states(engine.model, samples[0], LAYER), before.outputs.read(0), rtol=1e-4, atol=1e-4
        )


def state_batch(samples, lengths, width, *, step=0):
    frozen = torch.stack(
        [
            torch.cat([normal(s, n, D), normal(99, width - n, D)])
            for s, n in zip(samples, lengths, strict=True)
        ]
    )
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return StateBatch(frozen, mask, mask, torch.zeros_like(mask), tuple(samples), 0, step)


def falcon():
    return FalconObjective(ObjectiveSettings(), [principal_directions(normal(7, 40, D), 4)], seed=3)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(5)), st.integers(1, 4), st.integers(0, 3))
def test_a_batch_is_the_token_weighted_mean_of_its_parts(order, cut, extra_padding):
    """Loss and gradient do not depend on how samples are grouped, ordered or padded."""
    lengths = (3, 7, 5, 7, 2)
    updated = {sample: normal(50 + sample, 7 + extra_padding, D) for sample in range(5)}

    def loss_and_gradients(samples, width):
        batch = state_batch(samples, [lengths[s] for s in samples], width)
        states = torch.stack([updated[s][:width] for s in samples]).requires_grad_()
        losses = falcon().forget_loss(states, batch), falcon().retain_loss(states, batch)
        gradients = torch.autograd.grad(sum(losses), states)[0]
        per_sample = {s: gradients[row, : lengths[s]] for row, s in enumerate(samples)}
        return [float(loss.detach()) for loss in losses], per_sample, sum(lengths[s] for s in samples)

    whole, whole_gradients, total = loss_and_gradients(order, 7 + extra_padding)
    parts = [loss_and_gradients(part, 7) for part in (order[:cut], order[cut:])]
    for which in (0, 1):
        combined = sum(loss[which] * count for loss, _, count in parts) / total
        assert whole[which] == pytest.approx(combined, rel=1e-5)
    for _, gradients, count in parts:
        for sample, gradient in gradients.items():
            assert (whole_gradients[sample] * total / count - gradient).abs().max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_losses_see_directions_only(scale, seed):
    states, frozen, target = normal(seed, 2, 3, D), normal(seed + 1, 2, 3, D), normal(seed + 2, D)
    mask = torch.ones(2, 3)
    for function in (
        lambda factor: info_nce_loss(states * factor, target / factor, frozen[None] * factor, mask, 0.7),
        lambda factor: retention_loss(states * factor, frozen / factor, mask),
    ):
        assert float(function(scale)) == pytest.approx(float(function(1.0)), rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_directions_turn_with_the_states_and_ignore_their_scale_and_order(seed, scale):
    spectrum = torch.logspace(0, -2, D)
    states = normal(seed, 60, D) * spectrum
    rotation = torch.linalg.qr(normal(seed + 1, D, D))[0]
    directions = principal_directions(states, 3).double()
    turned = (
        principal_directions(scale * states[torch.randperm(60)] @ rotation, 3).double() @ rotation.T.double()
    )
    # The same subspace: all principal cosines are one.
    assert np.linalg.svd((directions @ turned.T).numpy())[1].min() > 1 - 1e-4


def test_paper_and_reference_targets_are_opposites_by_construction():
    states = normal(0, 12, 48)
    span = principal_directions(states, 12).double()
    # Another seed than that of the states: r must not be one of them.
    paper = principal_offset_vectors(span.float(), (), torch.Generator().manual_seed(1)).double()
    reference = reference_offset_vector(states, 12, torch.Generator().manual_seed(0)).double()
    inside = {
        name: float((span @ vector).square().sum()) for name, vector in (("p", paper), ("r", reference))
    }
    assert inside["p"] < 1e-12 and inside["r"] > 0.7  # chance is .25


def test_a_set_added_to_the_run_leaves_the_targets_of_the_others_alone():
    alone = falcon()
    together = FalconObjective(
        ObjectiveSettings(), [*alone.domain_directions, principal_directions(normal(8, 40, D), 4)], seed=3
    )
    batch = state_batch([1, 4], [5, 5], 5)
    assert torch.equal(alone.targets(batch), together.targets(batch))


@pytest.mark.parametrize("store", ["float32", "bfloat16"])
def test_the_store_dtype_changes_the_result_by_its_rounding_only(store, tmp_path):
    exact = run_session(tmp_path, tiny_recipe(train={"store_dtype": "float32"}))
    other = run_session(tmp_path, tiny_recipe(train={"store_dtype": store}))
    for name in exact.changed:
        moves = [(s.changed[name] - s.original[name]).double().flatten() for s in (exact, other)]
        cosine = float(torch.nn.functional.cosine_similarity(*moves, dim=0))
        assert cosine == pytest.approx(1, abs=1e-12) if store == "float32" else 0.95 < cosine < 1


def test_retain_sets_split_in_two_of_equal_weight_train_like_data_from_both(tmp_path):
    """Splitting changes the order of batches, never the states: every cached row is the same."""
    data = tiny_data()
    retain = data.retain[0]
    halves = tuple(
        replace(retain, name=name, training=retain.training[part])
        for name, part in (("a", slice(7)), ("b", slice(7, 14)))
    )
    whole, split = BlockEngine(pico_model("llama")), BlockEngine(pico_model("llama"))
    one = run_session(tmp_path, engine=whole, data=data)
    two = run_session(tmp_path, engine=split, data=replace(data, retain=halves))
    assert one.result.cached_tokens == two.result.cached_tokens
    first = [session.result.history[0] for session in (one, two)]
    assert first[0]["forget_loss"] == pytest.approx(first[1]["forget_loss"], rel=1e-6)
