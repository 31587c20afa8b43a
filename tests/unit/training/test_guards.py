from __future__ import annotations

import pytest
import torch

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.events import Notice
from falcon_unlearn.training.guards import (
    FIRST_LOSSES,
    PATIENCE,
    SILENT_STEPS,
    NormGuard,
    RetainGuard,
    check_finite_loss,
    check_finite_optimizer,
    check_finite_tensors,
    check_loss_growth,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_says_which_and_when(value):
    with pytest.raises(NumericalError, match=r"step 7: the forget loss is") as caught:
        check_finite_loss("forget", value, 7)
    assert "learning_rate" in caught.value.hint
    assert caught.value.exit_code == 2
    check_finite_loss("forget", 1e30, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(value):
    good, bad = torch.ones(3), torch.tensor([0.0, value])
    with pytest.raises(NumericalError, match=r"step 2: the gradient of second is not finite"):
        check_finite_tensors("gradient", {"first": good, "second": bad}, 2)
    check_finite_tensors("gradient", {"first": good}, 2)


def test_growth_is_measured_against_the_frozen_norm():
    guard = NormGuard(3.0)
    guard.check(3.0, 1.0, 0)
    guard.check(0.0, 0.0, 0)
    with pytest.raises(NumericalError, match=r"from norm 1 to 3\.1.*divergence_factor=3") as caught:
        guard.check(3.1, 1.0, 0)
    assert "divergence_factor" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_a_moment_that_is_not_finite_is_named(moment, value):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    check_finite_optimizer(optimizer, ["down"], 4)
    optimizer.state[weight][moment][1] = value
    with pytest.raises(NumericalError, match=rf"step 4: the optimizer state of down \({moment}\)"):
        check_finite_optimizer(optimizer, ["down"], 4)


def test_a_loss_that_stays_high_ends_the_run_and_a_spike_does_not():
    calm = [1.0] * FIRST_LOSSES
    check_loss_growth([*calm, *[11.0] * (PATIENCE - 1)], 10.0)
    check_loss_growth([*calm, *[11.0] * (PATIENCE - 1), 9.0], 10.0)
    with pytest.raises(NumericalError, match="10 times its initial median 1") as caught:
        check_loss_growth([*calm, *[11.0] * PATIENCE], 10.0)
    assert "loss_factor" in caught.value.hint


def test_losses_below_zero_have_no_limit_of_growth():
    check_loss_growth([-1.0] * FIRST_LOSSES + [-100.0] * PATIENCE, 10.0)


def test_a_silent_retain_gradient_is_told_once():
    told = []
    guard = RetainGuard(1.0)
    for step in range(3 * SILENT_STEPS):
        guard.note(0.0, step, told.append)
    assert [event.level for event in told if isinstance(event, Notice)] == ["warning"]
    assert "retain gradient has been zero" in told[0].message


def test_a_retain_gradient_that_comes_back_or_is_not_wanted_is_no_warning():
    told = []
    guard = RetainGuard(1.0)
    for step in range(4 * SILENT_STEPS):
        guard.note(float(step % SILENT_STEPS == 0), step, told.append)
    unwanted = RetainGuard(0.0)
    for step in range(2 * SILENT_STEPS):
        unwanted.note(0.0, step, told.append)
    assert told == []
