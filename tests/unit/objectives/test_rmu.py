from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from falcon_unlearn.config.methods import RmuSettings
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.rmu import RmuObjective, mean_squared_error

D = 24


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(lengths=(5, 3, 4), *, domain=0, step=0, seed=0):
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    frozen = normal(seed, len(lengths), max(lengths), D) * 3
    sinks = torch.zeros_like(mask)
    sinks[:, 0] = True
    return StateBatch(frozen, mask, mask & ~sinks, sinks, tuple(range(len(lengths))), domain, step)


def reference_error(updated, targets, mask):
    """Average squared errors over the tokens of the mask and over D, one number at a time, in float64."""
    updated, targets = updated.detach().double().numpy(), targets.double().numpy()
    errors = [
        (updated[b, t, d] - targets[b, t, d]) ** 2
        for b, t in zip(*np.nonzero(mask.numpy()), strict=True)
        for d in range(updated.shape[-1])
    ]
    return sum(errors) / len(errors)


def test_golden_values():
    """(1 - 3)^2 and (0 - 4)^2 over two dimensions; the second token's errors are 0 and 2."""
    updated = torch.tensor([[[1.0, 0.0], [3.0, 6.0], [9.0, 9.0]]])
    target = torch.tensor([3.0, 4.0])
    one = torch.tensor([[True, False, False]])
    two = torch.tensor([[True, True, False]])
    assert float(mean_squared_error(updated, target, one)) == 10.0
    assert float(mean_squared_error(updated, target, two)) == 6.0
    assert float(mean_squared_error(updated, target, torch.zeros_like(one))) == 0.0


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_the_formulas(adaptive, seed):
    rmu = RmuObjective(RmuSettings(coefficient=6.5, adaptive=adaptive), seed=seed)
    batch, updated = batch_of(seed=seed, domain=seed), normal(seed + 10, 3, 5, D)
    unit = rmu.direction(seed, D).double()
    scale = batch.frozen_BLD.double().norm(dim=-1, keepdim=True) if adaptive else torch.ones(3, 5, 1)
    expected = reference_error(updated, 6.5 * scale * unit, batch.counted_BL)
    assert float(rmu.forget_loss(updated, batch)) == pytest.approx(expected, rel=1e-5)
    expected = reference_error(updated, batch.frozen_BLD, batch.mask_BL)
    assert float(rmu.retain_loss(updated, batch)) == pytest.approx(expected, rel=1e-5)


def test_the_direction_is_uniform_positive_and_of_length_one():
    rmu, size = RmuObjective(RmuSettings(), seed=0), 4096
    direction = rmu.direction(0, size).double()
    assert float(direction.norm()) == pytest.approx(1, abs=1e-6) and bool((direction >= 0).all())
    # For uniform elements the mean square is 1/3 and the mean 1/2, so the cosine with ones is sqrt(3)/2.
    assert float(direction.sum() / size**0.5) == pytest.approx(3**0.5 / 2, abs=0.02)
    spread = np.sort((direction / direction.max()).numpy())
    assert np.abs(spread - np.linspace(0, 1, size)).max() < 0.04


def test_the_direction_depends_on_seed_and_domain_only():
    rmu = RmuObjective(RmuSettings(), seed=4)
    first = rmu.targets(batch_of())
    assert torch.equal(first, rmu.targets(batch_of((2, 5), step=9, seed=7)))
    assert torch.equal(first, RmuObjective(RmuSettings(), seed=4).targets(batch_of()))
    assert not torch.equal(first, rmu.targets(batch_of(domain=1)))
    assert not torch.equal(first, RmuObjective(RmuSettings(), seed=5).targets(batch_of()))


def test_adaptive_targets_have_the_length_of_each_frozen_state_times_the_coefficient():
    batch = batch_of()
    targets = RmuObjective(RmuSettings(coefficient=3.0, adaptive=True), seed=0).targets(batch)
    ratio = targets.double().norm(dim=-1) / batch.frozen_BLD.double().norm(dim=-1)
    assert (ratio - 3).abs().max() < 1e-5
    cosines = torch.nn.functional.cosine_similarity(targets, targets[:1, :1], dim=-1)
    assert cosines.min() > 1 - 1e-6


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_the_analytic_one_and_points_at_the_target(adaptive):
    rmu = RmuObjective(RmuSettings(coefficient=6.5, adaptive=adaptive), seed=0)
    batch, updated = batch_of(), normal(3, 3, 5, D).requires_grad_()
    for loss, targets, mask in (
        (rmu.forget_loss, rmu.targets(batch), batch.counted_BL),
        (rmu.retain_loss, batch.frozen_BLD, batch.mask_BL),
    ):
        gradient = torch.autograd.grad(loss(updated, batch), updated)[0].double()
        expected = 2 * (updated.detach().double() - targets.double()) / (int(mask.sum()) * D)
        assert (gradient - expected * mask[..., None]).abs().max() < 1e-6
        assert not gradient[~mask].any()


def test_the_gradient_agrees_with_finite_differences():
    mask = batch_of().counted_BL
    target = normal(6, D).double()

    def loss(updated):
        # The loss itself rounds to float32, so the step is wide; for a parabola the difference is exact.
        return mean_squared_error(updated, target, mask)

    updated = normal(5, 3, 5, D).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (updated,), eps=0.5, atol=1e-4, rtol=1e-3)


def test_masked_tokens_reach_neither_value_nor_gradient():
    rmu = RmuObjective(RmuSettings(adaptive=True), seed=0)
    batch, updated = batch_of(), normal(3, 3, 5, D)
    poisoned = batch.frozen_BLD.clone()
    poisoned[~batch.mask_BL] = float("nan")
    dirty = updated.clone()
    dirty[~batch.mask_BL] = float("inf")
    dirty.requires_grad_()
    bad = replace(batch, frozen_BLD=poisoned)
    for name in ("forget_loss", "retain_loss"):
        loss = getattr(rmu, name)(dirty, bad)
        assert float(loss.detach()) == float(getattr(rmu, name)(updated, batch))
        assert torch.isfinite(torch.autograd.grad(loss, dirty)[0]).all()


def test_half_precision_states_are_measured_in_float32():
    rmu, batch = RmuObjective(RmuSettings(coefficient=300.0), seed=0), batch_of()
    updated = normal(3, 3, 5, D).bfloat16()
    loss = rmu.forget_loss(updated, batch)
    expected = reference_error(updated.float(), rmu.targets(batch).expand(3, 5, D), batch.counted_BL)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(expected, rel=1e-5)


def test_nothing_moved_means_no_retain_loss_and_no_gradient():
    rmu, batch = RmuObjective(RmuSettings(), seed=0), batch_of()
    updated = batch.frozen_BLD.clone().requires_grad_()
    loss = rmu.retain_loss(updated, batch)
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, updated)[0].any()
