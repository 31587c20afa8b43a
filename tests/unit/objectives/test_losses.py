from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from falcon_unlearn.objectives.losses import draw_negatives, info_nce_loss, masked_mean, retention_loss

B, L, D, TAU = 3, 5, 8, 0.7


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half_mask():
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[0, 2:] = False
    mask[2, 4:] = False
    return mask


def cosine64(first, second):
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)


def info_nce64(anchors, positives, negatives, mask, tau):
    """Mean over tokens of -log softmax of the positive, by SciPy in float64."""
    logits = np.stack([cosine64(anchors, positives), *(cosine64(anchors, n) for n in negatives)]) / tau
    return float(-log_softmax(logits, axis=0)[0][np.asarray(mask, bool)].mean())


@pytest.mark.parametrize("num_negatives", [1, 2, 7])
@pytest.mark.parametrize("target_shape", [(D,), (B, 1, D), (B, L, D)], ids=["domain", "sample", "token"])
@pytest.mark.parametrize("tau", [0.05, 0.7, 3.0])
def test_info_nce_is_the_cross_entropy_of_the_positive(num_negatives, target_shape, tau):
    anchors, positives, negatives = (
        draws(0, B, L, D),
        draws(1, *target_shape),
        draws(2, num_negatives, B, L, D),
    )
    loss = info_nce_loss(anchors, positives, negatives, half_mask(), tau)
    expected = info_nce64(anchors, positives.expand(B, L, D), negatives, half_mask(), tau)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=2e-6)


def test_one_negative_is_softplus_of_the_difference():
    anchors, positives, negatives = draws(0, B, L, D), draws(1, D), draws(2, 1, B, L, D)
    difference = (cosine64(anchors, negatives[0]) - cosine64(anchors, positives)) / TAU
    expected = np.logaddexp(0, difference).mean()
    loss = info_nce_loss(anchors, positives, negatives, torch.ones(B, L), TAU)
    assert float(loss) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("tau", [0.07, 0.7])
def test_at_the_start_the_negative_is_the_anchor_itself(tau):
    frozen, target = draws(0, B, L, D), draws(1, D)
    loss = info_nce_loss(frozen, target, frozen[None], torch.ones(B, L), tau)
    expected = np.logaddexp(0, (1 - cosine64(frozen, target)) / tau).mean()
    assert float(loss) == pytest.approx(expected, rel=2e-6)


def test_published_start_and_floor_at_temperature_0_7():
    target = torch.eye(D)[0]
    orthogonal, opposite = torch.eye(D)[1].expand(1, 1, D), -target.expand(1, 1, D)
    start = info_nce_loss(orthogonal, target, orthogonal[None], torch.ones(1, 1), 0.7)
    assert float(start) == pytest.approx(1.64, abs=0.005)  # method.md B.3
    floor = info_nce_loss(target.expand(1, 1, D), target, opposite[None], torch.ones(1, 1), 0.7)
    assert float(floor) == pytest.approx(math.log1p(math.exp(-2 / 0.7)), rel=1e-6)
    assert float(floor) == pytest.approx(0.056, abs=0.0005)
    # Nothing goes below it.
    for seed in range(20):
        loss = info_nce_loss(
            draws(seed, 1, 1, D), target, draws(seed + 99, 1, 1, 1, D), torch.ones(1, 1), 0.7
        )
        assert float(loss) >= float(floor)


def numeric_gradient(function, point, step=1e-5):
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        high, low = point.copy(), point.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = (function(high) - function(low)) / (2 * step)
    return gradient


def test_info_nce_gradient_is_that_of_the_float64_formula():
    anchors, positives, negatives, mask = draws(0, B, L, D), draws(1, D), draws(2, 3, B, L, D), half_mask()
    variable = anchors.float().requires_grad_()
    info_nce_loss(variable, positives, negatives, mask, TAU).backward()
    expected = numeric_gradient(
        lambda a: info_nce64(a, positives.expand(B, L, D), negatives, mask, TAU), anchors.numpy()
    )
    assert np.abs(variable.grad.numpy() - expected).max() < 1e-6
    assert np.abs(expected).max() > 1e-2


def test_retention_gradient_is_that_of_one_minus_cosine():
    updated, frozen, mask = draws(3, B, L, D), draws(4, B, L, D), half_mask()
    variable = updated.float().requires_grad_()
    retention_loss(variable, frozen, mask).backward()
    expected = numeric_gradient(lambda u: 1 - cosine64(u, frozen)[mask.numpy()].mean(), updated.numpy())
    assert np.abs(variable.grad.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_retention_is_one_minus_the_mean_cosine(scale):
    updated, frozen = draws(3, B, L, D) * scale, draws(4, B, L, D)
    loss = retention_loss(updated, frozen, half_mask())
    expected = 1 - cosine64(updated, frozen)[half_mask().numpy()].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("drift", [1e-2, 1e-4, 1e-6])
def test_retention_keeps_its_digits_when_the_drift_is_small(drift):
    """In float32, 1 - cosine would be a multiple of 6e-8; the true value is about half the drift squared."""
    frozen = torch.nn.functional.normalize(draws(5, B, L, D), dim=-1)
    sideways = draws(6, B, L, D)
    sideways -= (sideways * frozen).sum(-1, keepdim=True) * frozen
    angle_tangent = drift * torch.nn.functional.normalize(sideways, dim=-1)
    expected = 1 - 1 / math.sqrt(1 + drift**2) if drift > 1e-3 else drift**2 / 2
    loss = retention_loss(frozen + angle_tangent, frozen, torch.ones(B, L))
    # 1e-6 is some 8 units in the last place of float32 itself: the inputs carry no more digits than that.
    assert float(loss) == pytest.approx(expected, rel={1e-2: 1e-4, 1e-4: 1e-2, 1e-6: 0.2}[drift])


def test_no_drift_means_no_loss_and_no_gradient_at_all():
    states = draws(7, B, L, D).float() * 37
    variable = states.clone().requires_grad_()
    loss = retention_loss(variable, states, torch.ones(B, L))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not variable.grad.any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_masked_tokens_reach_neither_loss_nor_gradient(poison):
    anchors, frozen, mask = draws(0, B, L, D).float(), draws(1, B, L, D).float(), half_mask()
    targets, negatives = draws(2, B, L, D).float(), draws(3, 2, B, L, D).float()
    poisoned = [tensor.clone() for tensor in (anchors, frozen, targets, negatives)]
    for tensor in poisoned:
        tensor[..., ~mask, :] = poison
    results = []
    for a, f, t, n in ((anchors, frozen, targets, negatives), poisoned):
        a = a.clone().requires_grad_()
        losses = (info_nce_loss(a, t, n, mask, TAU), retention_loss(a, f, mask))
        sum(losses).backward()
        results.append((*(float(loss.detach()) for loss in losses), a.grad))
    (forget, retain, gradient), (forget_p, retain_p, gradient_p) = results
    assert forget_p == forget and retain_p == retain
    assert torch.equal(gradient_p, gradient)
    assert not gradient_p[~mask].any() and gradient_p[mask].any()


def test_the_mean_is_over_tokens_not_over_rows():
    values = torch.tensor([[1.0, 5.0, 9.0], [3.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert float(masked_mean(values, mask)) == 4.5


def test_an_empty_mask_gives_zero_with_zero_gradient():
    anchors = draws(0, B, L, D).float().requires_grad_()
    empty = torch.zeros(B, L, dtype=torch.bool)
    loss = info_nce_loss(anchors, draws(1, D), draws(2, 1, B, L, D), empty, TAU)
    loss = loss + retention_loss(anchors, draws(3, B, L, D), empty)
    loss.backward()
    assert float(loss.detach()) == 0.0 and not anchors.grad.any()


def test_losses_are_in_float32_whatever_the_states():
    anchors, frozen = draws(0, B, L, D).bfloat16(), draws(1, B, L, D).bfloat16()
    loss = info_nce_loss(anchors, draws(2, D), frozen[None], torch.ones(B, L), TAU)
    exact = info_nce64(
        anchors.double(), draws(2, D).expand(B, L, D), frozen[None].double(), np.ones((B, L)), TAU
    )
    assert float(loss) == pytest.approx(exact, rel=1e-6)
    assert retention_loss(anchors, frozen, torch.ones(B, L)).dtype == torch.float32


def test_negatives_are_the_own_state_then_states_of_allowed_tokens():
    frozen, mask = draws(0, B, L, D).float(), half_mask()
    negatives = draw_negatives(frozen, mask, 5, torch.Generator().manual_seed(0))
    assert negatives.shape == (5, B, L, D)
    assert torch.equal(negatives[0], frozen)
    pool = {tuple(row) for row in frozen[mask].tolist()}
    drawn = [tuple(row) for row in negatives[1:].reshape(-1, D).tolist()]
    assert set(drawn) <= pool
    assert len(set(drawn)) > len(pool) // 2
    again = draw_negatives(frozen, mask, 5, torch.Generator().manual_seed(0))
    assert torch.equal(negatives, again)
    assert not torch.equal(negatives, draw_negatives(frozen, mask, 5, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("num_negatives", [1, 4])
def test_negatives_of_an_empty_mask_leave_a_loss_of_zero(num_negatives):
    frozen, empty = draws(0, B, L, D).float(), torch.zeros(B, L, dtype=torch.bool)
    negatives = draw_negatives(frozen, empty, num_negatives, torch.Generator())
    assert float(info_nce_loss(frozen, draws(1, D), negatives, empty, TAU)) == 0.0
