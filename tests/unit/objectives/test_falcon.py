from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from falcon_unlearn.config.objective import ObjectiveSettings, OffsetSettings
from falcon_unlearn.errors import NumericalError
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.falcon import (
    FalconObjective,
    RetainStatistics,
    fit_domain_directions,
    fit_retain_statistics,
    select_principal_states,
)
from falcon_unlearn.objectives.losses import info_nce_loss
from falcon_unlearn.objectives.offsets import principal_directions, reference_offset_vector, seeded_generator

D, K, L = 32, 4, 6
GRANULARITIES = ("domain", "batch", "sample", "token")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(samples, *, domain=0, step=0, length=L, seed=0):
    """Return a batch whose frozen states belong to the sample and not to its row."""
    frozen = torch.stack([normal(1000 * domain + sample, L, D)[:length] for sample in samples])
    mask = torch.ones(frozen.shape[:2], dtype=torch.bool)
    return StateBatch(frozen, mask, mask.clone(), ~mask, tuple(samples), domain, step)


def objective(granularity="auto", *, seed=0, negatives=1, retain=None, **offset):
    settings = ObjectiveSettings(
        negatives=negatives,
        offset=OffsetSettings(**({"directions": K, "granularity": granularity} | offset)),
    )
    directions = [principal_directions(normal(50 + domain, 40, D), K) for domain in range(2)]
    return FalconObjective(settings, directions, seed=seed, retain=retain)


@pytest.mark.parametrize(
    ("granularity", "shape"), [("domain", (D,)), ("batch", (D,)), ("sample", (3, 1, D)), ("token", (3, L, D))]
)
def test_target_shapes_and_their_guarantee(granularity, shape):
    falcon, batch = objective(granularity), batch_of([2, 5, 1])
    targets = falcon.targets(batch)
    assert targets.shape == shape
    assert (targets.norm(dim=-1) - 1).abs().max() < 1e-5
    directions = falcon.domain_directions[0]
    if granularity == "batch":
        directions = principal_directions(batch.frozen_BLD.reshape(-1, D), K)
    assert (targets.double() @ directions.double().T).abs().max() < 1e-6
    rows = targets.reshape(-1, D)
    assert len(torch.unique(rows, dim=0)) == len(rows), "every sample and token has its own target"


def test_auto_is_one_target_per_sample():
    assert torch.equal(
        objective("auto").targets(batch_of([2, 5])), objective("sample").targets(batch_of([2, 5]))
    )


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_a_target_depends_on_seed_domain_and_sample_only(granularity):
    falcon = objective(granularity)
    first = falcon.targets(batch_of([2, 5, 1]))
    elsewhere = falcon.targets(batch_of([9, 1, 7, 2], step=13))
    assert torch.equal(first[0], elsewhere[3]) and torch.equal(first[2], elsewhere[1])
    assert torch.equal(objective(granularity).targets(batch_of([5]))[0], first[1]), "a new object, no history"
    assert not torch.equal(falcon.targets(batch_of([2, 5, 1], domain=1)), first)
    assert not torch.equal(objective(granularity, seed=1).targets(batch_of([2, 5, 1])), first)
    falcon.domain_directions[1] = falcon.domain_directions[0]
    assert not torch.equal(falcon.targets(batch_of([2, 5, 1], domain=1)), first), "r differs by domain too"


@pytest.mark.parametrize("perturbation", [0.0, 0.1])
def test_the_target_of_a_token_does_not_depend_on_padding(perturbation):
    falcon = objective("token", perturbation=perturbation)
    long, short = falcon.targets(batch_of([2, 5])), falcon.targets(batch_of([2, 5], length=4))
    assert torch.equal(long[:, :4], short)


def test_a_domain_has_one_target_whatever_the_batch():
    falcon = objective("domain")
    first = falcon.targets(batch_of([1, 2]))
    assert torch.equal(first, falcon.targets(batch_of([7], step=3)))
    assert not torch.equal(first, falcon.targets(batch_of([1, 2], domain=1)))


def test_batch_targets_come_from_the_states_at_hand_and_counted_tokens_only():
    falcon, batch = objective("batch"), batch_of([1, 2])
    poisoned = batch.frozen_BLD.clone()
    poisoned[0, -1] = float("nan")
    counted = batch.counted_BL.clone()
    counted[0, -1] = False
    targets = falcon.targets(replace(batch, frozen_BLD=poisoned, counted_BL=counted))
    directions = principal_directions(batch.frozen_BLD[counted], K)
    assert (targets @ directions.T).abs().max() < 1e-6
    assert not torch.equal(targets, falcon.targets(replace(batch, step=1)))


def test_reference_mode_uses_the_released_codes_target_of_the_batch():
    falcon, batch = objective(mode="reference", directions=1000), batch_of([1, 2])
    expected = reference_offset_vector(
        batch.frozen_BLD.reshape(-1, D), 1000, seeded_generator(0, "reference", 0)
    )
    assert torch.equal(falcon.targets(batch), expected)


def test_losses_are_those_of_the_formulas():
    falcon, batch = objective("sample"), batch_of([3, 4])
    updated = normal(7, 2, L, D).requires_grad_()
    targets = falcon.targets(batch)
    expected = info_nce_loss(updated, targets, batch.frozen_BLD[None], batch.counted_BL, 0.7)
    assert torch.equal(falcon.forget_loss(updated, batch), expected)
    mask = batch.mask_BL.clone()
    mask[0, 3:] = False
    loss = falcon.retain_loss(updated.detach(), replace(batch, mask_BL=mask))
    new, old = updated.detach().double()[mask], batch.frozen_BLD.double()[mask]
    cosines = (new * old).sum(-1) / new.norm(dim=-1) / old.norm(dim=-1)
    assert float(loss) == pytest.approx(float(1 - cosines.mean()), rel=1e-6)


def test_forget_loss_leaves_uncounted_tokens_out_and_retain_loss_keeps_sinks_in():
    falcon, batch = objective("sample"), batch_of([3, 4])
    sinks = torch.zeros_like(batch.mask_BL)
    sinks[:, 0] = True
    batch = replace(batch, sinks_BL=sinks, counted_BL=batch.mask_BL & ~sinks)
    updated = normal(7, 2, L, D).requires_grad_()
    falcon.forget_loss(updated, batch).backward()
    assert not updated.grad[sinks].any() and updated.grad[~sinks].any(-1).all()
    updated.grad = None
    falcon.retain_loss(updated, batch).backward()
    assert updated.grad[sinks].any(-1).all()


@pytest.mark.parametrize("num_negatives", [2, 5])
def test_more_negatives_raise_the_loss_and_are_drawn_anew_each_step(num_negatives):
    batch, updated = batch_of([3, 4]), normal(7, 2, L, D)
    one, many = objective("sample"), objective("sample", negatives=num_negatives)
    losses = [float(many.forget_loss(updated, replace(batch, step=step))) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    # A further negative adds a positive term to the sum inside the logarithm.
    assert min(losses) > float(one.forget_loss(updated, batch))
    assert max(losses) < np.log(1 + num_negatives) + 2 / 0.7


# --- what counts as the knowledge -------------------------------------------------------------------------


def test_retain_statistics_are_mean_and_directions_around_it():
    states = normal(1, 300, D) * torch.logspace(0, -1, D) + 5 * normal(2, D)
    fitted = fit_retain_statistics(states.split(37), 3)
    centred = states.double().numpy() - states.double().numpy().mean(0)
    right = np.linalg.svd(centred, full_matrices=False)[2][:3]
    assert np.abs(fitted.mean_D.numpy() - states.double().numpy().mean(0)).max() < 1e-5
    cosines = np.linalg.svd(fitted.directions_KD.double().numpy() @ right.T)[1]
    assert cosines.min() > 0.999


def test_principal_options_select_what_they_say():
    states, mean = normal(3, 20, D), normal(4, D)
    directions = torch.linalg.qr(normal(5, D, 2))[0].T
    retain = RetainStatistics(mean, directions)
    assert torch.equal(select_principal_states(states, "literal", retain), states)
    assert torch.equal(select_principal_states(states, "literal", None), states)
    assert torch.equal(select_principal_states(states, "centred", retain), states - mean)
    contrast = select_principal_states(states, "contrast", retain)
    assert (contrast @ directions.T).abs().max() < 1e-5
    kept = np.eye(D) - directions.double().numpy().T @ directions.double().numpy()
    assert np.abs(contrast.numpy() - (states - mean).double().numpy() @ kept).max() < 1e-5


def shared_and_own(seed=0):
    """Return retain states, and forget states that add one own direction to the same mean and spread."""
    basis = torch.linalg.qr(normal(60, D, 5))[0].T
    shared, own, mean = basis[:3], basis[3], 60 * basis[4]

    def states(seed, count):
        return mean + normal(seed, count, 3) * 4 @ shared + 0.05 * normal(seed + 1, count, D)

    forget = states(70, 200) + 2 * normal(72, 200, 1) * own
    return states(80, 400), forget, mean / mean.norm(), shared, own


def test_contrast_finds_what_only_forget_states_have_and_literal_finds_the_mean():
    retain_states, forget, mean, shared, own = shared_and_own()
    retain = fit_retain_statistics([retain_states], 3)
    found = {
        principal: fit_domain_directions([forget], OffsetSettings(directions=1, principal=principal), retain)[
            0
        ]
        for principal in ("literal", "centred", "contrast")
    }
    assert abs(float(found["literal"] @ mean)) > 0.95
    assert abs(float(found["centred"] @ mean)) < 0.3 and float((shared @ found["centred"]).norm()) > 0.8
    assert abs(float(found["contrast"] @ own)) > 0.95


@pytest.mark.parametrize("principal", ["centred", "contrast"])
def test_batch_targets_avoid_the_selected_directions(principal):
    retain_states, forget, *_ = shared_and_own()
    retain = fit_retain_statistics([retain_states], K)
    falcon = objective("batch", principal=principal, retain=retain)
    frozen = forget[: 2 * L].reshape(2, L, D)
    mask = torch.ones(2, L, dtype=torch.bool)
    batch = StateBatch(frozen, mask, mask, ~mask, (0, 1), 0, 0)
    chosen = select_principal_states(frozen.reshape(-1, D), principal, retain)
    assert (falcon.targets(batch) @ principal_directions(chosen, K).T).abs().max() < 1e-6


def test_empty_chunks_are_skipped_and_nothing_at_all_is_an_error():
    states, settings = normal(3, 20, D), OffsetSettings(directions=K)
    found = fit_domain_directions([states[:0], states, states[:0]], settings, None)
    assert torch.equal(found, fit_domain_directions([states], settings, None))
    with pytest.raises(NumericalError, match="at least one state"):
        fit_domain_directions([states[:0]], settings, None)


def test_directions_that_fill_the_space_are_an_error():
    falcon = FalconObjective(ObjectiveSettings(), [torch.eye(D)], seed=0)
    with pytest.raises(NumericalError, match="fill the 32-dimensional space"):
        falcon.targets(batch_of([0]))
