"""Relations between the losses, and where they must vanish or stay finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from falcon_unlearn.objectives.outputs.grad_ascent import GradAscent
from falcon_unlearn.objectives.outputs.grad_diff import GradDiff
from falcon_unlearn.objectives.outputs.idk_dpo import IdkDpo
from falcon_unlearn.objectives.outputs.npo import Npo
from falcon_unlearn.objectives.outputs.scrub import Scrub
from falcon_unlearn.objectives.outputs.simnpo import SimNpo
from falcon_unlearn.objectives.outputs.undial import Undial


def gradient(loss_of, logits, batch):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf, batch), leaf)[0]


def test_npo_becomes_gradient_ascent_as_beta_vanishes(make_batch):
    logits, batch = make_batch((4, 4, 4))
    ascent = gradient(GradAscent().forget_loss, logits, batch)
    # Whole answers against tokens: the constant is their common length.
    torch.testing.assert_close(gradient(Npo(beta=1e-8).forget_loss, logits, batch), 4 * ascent)
    far = gradient(Npo(beta=5.0).forget_loss, logits, batch)
    assert not torch.allclose(far, 4 * ascent, rtol=0.1)


def test_simnpo_is_npo_per_token_without_a_reference(make_batch):
    logits, batch = make_batch((4, 4, 4))
    zero = replace(batch, reference_M=torch.zeros_like(batch.reference_M))
    # 2 / (beta / length) is length times 2 / beta.
    expected = Npo(beta=4.5 / 4).forget_loss(logits, zero) / 4
    torch.testing.assert_close(SimNpo(beta=4.5).forget_loss(logits, batch), expected)


def test_simnpo_needs_no_reference_and_weighs_short_answers_like_long_ones(make_batch, without):
    logits, batch = make_batch((1, 1))
    bare = without(batch, "reference_M", "reference_logits_MV")
    # The same token repeated keeps its likelihood per token.
    repeats = torch.tensor([0, 0, 0, 0, 1])
    longer = replace(bare, labels_M=batch.labels_M[repeats], owners_M=repeats)
    expected = SimNpo().forget_loss(logits, bare)
    torch.testing.assert_close(SimNpo().forget_loss(logits[repeats], longer), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_divergence_and_its_gradient_vanish_where_the_models_agree(make_batch, dtype):
    _, batch = make_batch(dtype=dtype)
    frozen = batch.reference_logits_MV
    for loss_of in (GradDiff(retain="kl").retain_loss, Scrub().forget_loss):
        assert float(loss_of(frozen, batch)) == 0.0
        assert gradient(loss_of, frozen, batch).abs().max() < 10 * torch.finfo(dtype).eps
        # A constant added to all logits of a position changes no probability.
        torch.testing.assert_close(loss_of(frozen + 3, batch), torch.zeros((), dtype=dtype))


def test_divergence_is_of_the_model_from_the_frozen_one(make_batch):
    """KL(q || p) is not symmetric; a model that gives up what q can say pays more than one that adds."""
    _, batch = make_batch((1,))
    spread, sharp = torch.zeros(1, 7, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)
    sharp[0, 0] = 20.0
    forgets = GradDiff(retain="kl").retain_loss(sharp, replace(batch, reference_logits_MV=spread))
    adds = GradDiff(retain="kl").retain_loss(spread, replace(batch, reference_logits_MV=sharp))
    # 6/7 of q sits where log p is about -20; the other way the sharp q loses ln 7.
    assert float(forgets) == pytest.approx(20 * 6 / 7 - 1.9459, abs=1e-3)
    assert float(adds) == pytest.approx(1.9459, abs=1e-3)


def test_undial_without_adjustment_has_its_optimum_at_the_frozen_model(make_batch):
    _, batch = make_batch()
    frozen = batch.reference_logits_MV
    assert gradient(Undial(beta=0.0).forget_loss, frozen, batch).abs().max() < 1e-15
    adjusted = gradient(Undial(beta=3.0).forget_loss, frozen, batch)
    # Descending must lower the true token and raise every other one.
    at_label = adjusted.gather(1, batch.labels_M[:, None])
    others = adjusted.scatter(1, batch.labels_M[:, None], -1.0)
    assert bool((at_label > 0).all()) and bool((others < 0).all())


def test_dpo_starts_at_the_same_value_whatever_the_answers(mixed):
    logits, batch = mixed
    loss = IdkDpo(beta=0.1).forget_loss(batch.reference_logits_MV, batch)
    assert float(loss) == pytest.approx(20 * 0.6931471805599453)
    assert float(IdkDpo(beta=0.1).forget_loss(logits, batch)) != pytest.approx(float(loss), rel=1e-3)


@pytest.mark.parametrize(
    "share, total, expected",
    [
        (0.5, 8, "rfrfrrrr"),
        (1.0, 5, "rfrfr"),
        (0.75, 5, "rfrfr"),
        (0.1, 30, "rf" + 28 * "r"),
        (0.01, 4, "rfrr"),
    ],
)
def test_scrub_alternates_and_then_repairs(share, total, expected):
    turns = [Scrub(maximising_share=share).turn(step, total) for step in range(total)]
    assert "".join(turn[0] for turn in turns) == expected


@pytest.mark.parametrize(
    "share, total", [(share, total) for share in (1e-6, 0.3, 1.0) for total in (2, 3, 50)]
)
def test_scrub_always_forgets_at_least_once(share, total):
    turns = [Scrub(maximising_share=share).turn(step, total) for step in range(total)]
    assert set(turns) == {"retain", "forget"}
