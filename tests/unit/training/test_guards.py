from __future__ import annotations

import pytest
import torch

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.training.guards import NormGuard, check_finite_loss, check_finite_tensors


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
