from __future__ import annotations

import numpy as np
import pytest
import torch

from falcon_unlearn.training.masters import Masters
from pico import pico_model

NAMES = ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]


def build(dtype=torch.float32):
    model = pico_model("llama").to(dtype).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    return model, Masters(model, NAMES), before


def move(masters, amount=1e-3):
    with torch.no_grad():
        for value in masters.values.values():
            value.add_(amount * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_are_float32_copies(dtype):
    model, masters, before = build(dtype)
    assert list(masters.values) == NAMES
    for name in NAMES:
        assert masters.values[name].dtype == torch.float32
        assert torch.equal(masters.values[name], before[name].float())
    move(masters)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "nothing was pushed yet"


def test_only_the_named_parameters_require_gradients_and_only_inside():
    model, masters, _ = build()
    with pytest.raises(ZeroDivisionError), masters.trainable():
        assert [name for name, p in model.named_parameters() if p.requires_grad] == NAMES
        1 / 0  # noqa: B018
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_push_rounds_to_the_models_dtype_and_leaves_the_originals_alone(dtype):
    model, masters, before = build(dtype)
    parameters = dict(model.named_parameters())
    for _ in range(2):
        move(masters)
        masters.push()
        for name, p in parameters.items():
            expected = masters.values[name].to(dtype) if name in NAMES else before[name]
            assert torch.equal(p, expected)
    assert all(torch.equal(masters.original[name], before[name]) for name in NAMES)
    # In float32 the window computes with the masters themselves: no second copy of what is trained.
    shared = [parameters[name].data_ptr() == masters.values[name].data_ptr() for name in NAMES]
    assert all(shared) if dtype == torch.float32 else not any(shared)


def test_snapshot_is_a_copy_and_restore_keeps_the_optimizers_tensors():
    _, masters, before = build()
    snapshot, values = masters.snapshot(), dict(masters.values)
    move(masters)
    assert torch.equal(snapshot[NAMES[0]], before[NAMES[0]])
    masters.restore(snapshot)
    assert all(masters.values[name] is values[name] for name in NAMES)
    assert all(torch.equal(masters.values[name], before[name]) for name in NAMES)
    move(masters)
    assert torch.equal(snapshot[NAMES[0]], before[NAMES[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_revert_brings_the_original_bits_back(dtype):
    model, masters, before = build(dtype)
    move(masters)
    masters.push()
    masters.revert()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_commit_returns_exactly_what_the_model_holds(dtype):
    model, masters, before = build(dtype)
    move(masters)
    written = masters.commit()
    parameters = dict(model.named_parameters())
    for name in NAMES:
        assert written[name].dtype == dtype
        assert torch.equal(parameters[name], written[name])
        assert torch.equal(written[name], masters.values[name].to(dtype))
        assert torch.equal(masters.original[name], before[name])
    assert all(torch.equal(parameters[name], value) for name, value in before.items() if name not in NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_describe_what_is_written(dtype):
    _, masters, before = build(dtype)
    move(masters, 1e-2)
    written = masters.commit()
    changes = {change.name: change for change in masters.changes()}
    assert list(changes) == NAMES
    for name in NAMES:
        old, new = (tensor.double().numpy() for tensor in (before[name], written[name]))
        change = changes[name]
        assert change.shape == list(old.shape)
        assert change.norm_before == pytest.approx(np.linalg.norm(old))
        assert change.norm_change == pytest.approx(np.linalg.norm(new - old))
        assert change.relative_change == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
        assert change.largest_change == pytest.approx(np.abs(new - old).max())


def test_mean_root_square_is_over_all_trained_weights():
    _, masters, before = build()
    together = np.concatenate([before[name].double().numpy().ravel() for name in NAMES])
    assert masters.mean_root_square() == pytest.approx(np.sqrt((together**2).mean()))
