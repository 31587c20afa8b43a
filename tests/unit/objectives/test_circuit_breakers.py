from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from falcon_unlearn.config.methods import CircuitBreakerSettings
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.circuit_breakers import (
    CircuitBreakerObjective,
    displacement_loss,
    rerouting_loss,
)

D = 32


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(lengths=(5, 3, 4), *, step=1, seed=0, samples=None, frozen=None):
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    frozen = normal(seed, len(lengths), max(lengths), D) * 3 if frozen is None else frozen
    sinks = torch.zeros_like(mask)
    sinks[:, 0] = True
    samples = tuple(range(len(lengths))) if samples is None else samples
    return StateBatch(frozen, mask, mask & ~sinks, sinks, samples, 0, step)


def objective(alpha=10.0, total_steps=20, seed=0, displacement="absolute"):
    settings = CircuitBreakerSettings(alpha=alpha, displacement=displacement)
    return CircuitBreakerObjective(settings, total_steps=total_steps, seed=seed)


def test_golden_values():
    """Cosines .6, -.8 and 0; displacements 5 and 13."""
    updated = torch.tensor([[[3.0, 4.0], [3.0, 4.0], [0.0, 2.0]]])
    frozen = torch.tensor([[[2.0, 0.0], [0.0, -7.0], [1.0, 0.0]]])
    all_three, last = torch.ones(1, 3), torch.tensor([[0, 0, 1]])
    assert float(rerouting_loss(updated, frozen, all_three)) == pytest.approx(0.2)
    assert float(rerouting_loss(updated, frozen, last)) == 0.0
    updated = torch.tensor([[[3.0, 4.0], [5.0, 0.0], [9.0, 9.0]]])
    frozen = torch.tensor([[[0.0, 0.0], [0.0, -12.0], [0.0, 0.0]]])
    assert float(displacement_loss(updated, frozen, torch.tensor([[1, 1, 0]]))) == 9.0
    assert float(displacement_loss(updated, frozen, torch.zeros(1, 3))) == 0.0
    frozen = torch.tensor([[[0.0, 10.0], [0.0, -12.0], [0.0, 0.0]]])
    relative = displacement_loss(updated, frozen, torch.tensor([[1, 1, 0]]), relative=True)
    assert float(relative) == pytest.approx((math.sqrt(9 + 36) / 10 + 13 / 12) / 2)


@pytest.mark.parametrize("step", [1, 7, 19])
def test_losses_are_those_of_the_formulas(step):
    breaker, batch = objective(), batch_of(step=step)
    updated = batch.frozen_BLD + 2 * normal(9, 3, 5, D)
    new, old = updated.double().numpy(), batch.frozen_BLD.double().numpy()
    cosine = (new * old).sum(-1) / np.linalg.norm(new, axis=-1) / np.linalg.norm(old, axis=-1)
    forget = np.maximum(cosine, 0)[batch.counted_BL.numpy()].mean()
    retain = np.linalg.norm(new - old, axis=-1)[batch.mask_BL.numpy()].mean()
    falling, rising = 10 * (1 - step / 40), 10 * step / 40
    assert float(breaker.forget_loss(updated, batch)) == pytest.approx(falling * forget, rel=1e-5)
    assert float(breaker.retain_loss(updated, batch)) == pytest.approx(rising * retain, rel=1e-5)


def test_by_default_both_terms_ignore_how_long_states_are():
    """Scaling all states must not shift the balance; an absolute displacement grows with them."""
    batch = batch_of(step=7)
    updated = batch.frozen_BLD + normal(9, 3, 5, D)
    longer = replace(batch, frozen_BLD=50 * batch.frozen_BLD)
    relative, absolute = objective(displacement="relative"), objective()
    assert CircuitBreakerSettings().displacement == "relative"
    for loss in (relative.forget_loss, relative.retain_loss):
        assert float(loss(50 * updated, longer)) == pytest.approx(float(loss(updated, batch)), rel=1e-5)
    grown = float(absolute.retain_loss(50 * updated, longer))
    assert grown == pytest.approx(50 * float(absolute.retain_loss(updated, batch)), rel=1e-5)


def test_the_forget_weight_falls_to_a_half_and_the_retain_weight_rises_to_it():
    weights = [objective(alpha=4.0, total_steps=8).weights(step) for step in range(9)]
    assert weights[0] == (4.0, 0.0) and weights[4] == (3.0, 1.0) and weights[8] == (2.0, 2.0)
    assert all(sum(pair) == pytest.approx(4.0) for pair in weights)
    assert np.ptp(np.diff([pair[1] for pair in weights])) < 1e-12


def test_the_rerouting_gradient_is_the_analytic_one_and_stops_at_orthogonality():
    batch = batch_of()
    updated = normal(8, 3, 5, D).requires_grad_()
    loss = rerouting_loss(updated, batch.frozen_BLD, batch.counted_BL)
    gradient = torch.autograd.grad(loss, updated)[0].double().numpy()
    new, old = updated.detach().double().numpy(), batch.frozen_BLD.double().numpy()
    new_norm, old_norm = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (new, old))
    cosine = (new * old).sum(-1, keepdims=True) / new_norm / old_norm
    active = (cosine > 0) & batch.counted_BL.numpy()[..., None]
    expected = (old / old_norm - cosine * new / new_norm) / new_norm * active / int(batch.counted_BL.sum())
    assert 0 < active.sum() < int(batch.counted_BL.sum()), "both sides of the ReLU are seen"
    assert np.abs(gradient - expected).max() < 1e-6


def test_the_displacement_gradient_is_a_unit_vector_per_token_and_zero_where_nothing_moved():
    batch = batch_of()
    updated = (batch.frozen_BLD + normal(8, 3, 5, D)).detach()
    updated[0, 1] = batch.frozen_BLD[0, 1]
    updated.requires_grad_()
    loss = displacement_loss(updated, batch.frozen_BLD, batch.mask_BL)
    gradient = torch.autograd.grad(loss, updated)[0] * int(batch.mask_BL.sum())
    lengths = gradient.norm(dim=-1)
    moved = batch.mask_BL.clone()
    moved[0, 1] = False
    assert (lengths[moved] - 1).abs().max() < 1e-5 and not lengths[~moved].any()
    change = (updated - batch.frozen_BLD).detach()
    assert torch.nn.functional.cosine_similarity(gradient, change, dim=-1)[moved].min() > 1 - 1e-5


def test_masked_tokens_reach_neither_value_nor_gradient():
    breaker, batch = objective(), batch_of()
    updated = batch.frozen_BLD + normal(9, 3, 5, D)
    poisoned, dirty = batch.frozen_BLD.clone(), updated.clone()
    poisoned[~batch.mask_BL] = float("nan")
    dirty[~batch.mask_BL] = float("inf")
    dirty.requires_grad_()
    for step in (0, 1):
        clean, bad = replace(batch, step=step), replace(batch, frozen_BLD=poisoned, step=step)
        for name in ("forget_loss", "retain_loss"):
            loss = getattr(breaker, name)(dirty, bad)
            assert float(loss.detach()) == float(getattr(breaker, name)(updated, clean))
            assert torch.isfinite(torch.autograd.grad(loss, dirty)[0]).all()


def test_uncounted_tokens_are_left_out_and_the_retain_loss_keeps_sinks_in():
    breaker, batch = objective(), batch_of(step=3)
    updated = (batch.frozen_BLD + 0.1 * normal(9, 3, 5, D)).requires_grad_()
    forget = torch.autograd.grad(breaker.forget_loss(updated, batch), updated)[0]
    assert not forget[~batch.counted_BL].any() and forget[batch.counted_BL].any(-1).all()
    retain = torch.autograd.grad(breaker.retain_loss(updated, batch), updated)[0]
    assert retain[batch.sinks_BL].any(-1).all()


# --- the first step ---------------------------------------------------------------------------------------


def first_gradient(batch, **keywords):
    updated = batch.frozen_BLD.clone().requires_grad_()
    loss = objective(**keywords).forget_loss(updated, batch)
    return torch.autograd.grad(loss, updated)[0], float(loss.detach())


def test_the_first_gradient_is_no_rounding_noise():
    """At equal states the cosine is at its maximum; the seeded offset gives the run a direction to start."""
    batch = batch_of(step=0)
    gradient, loss = first_gradient(batch)
    still, _ = first_gradient(replace(batch, step=1))
    counted = batch.counted_BL
    # Relative size .01 times the share of the offset that is orthogonal to the state.
    size = gradient[counted].norm(dim=-1) * batch.frozen_BLD[counted].norm(dim=-1) * int(counted.sum()) / 10
    assert size.min() > 0.005 and size.max() < 0.0105
    assert still.norm() < 1e-3 * gradient.norm()
    assert loss == pytest.approx(10.0, rel=1e-4) and math.isfinite(loss)


def test_the_offset_depends_on_seed_and_sample_only():
    frozen = normal(2, 3, 5, D)
    first, _ = first_gradient(batch_of(step=0, samples=(4, 7, 9), frozen=frozen, lengths=(5, 5, 5)))
    again, _ = first_gradient(
        batch_of(step=0, samples=(9, 4, 7), frozen=frozen[[2, 0, 1]], lengths=(5, 5, 5))
    )
    assert (first[[2, 0, 1]] - again).abs().max() < 1e-9 < first.abs().max()
    other, _ = first_gradient(batch_of(step=0, samples=(4, 7, 9), frozen=frozen, lengths=(5, 5, 5)), seed=1)
    assert (first - other).norm() > 0.5 * first.norm()
