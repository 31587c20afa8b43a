from __future__ import annotations

import numpy as np
import pytest
import torch

from falcon_unlearn.linalg.affine import fit_affine

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_equals_ridge_regression_of_scikit_learn(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs = drawn(60, 7) @ drawn(7, 7) + 3.0
    targets = drawn(60, 7)
    found = fit_affine(inputs, targets, seed=0, penalties=(penalty,))
    centred = inputs - inputs.mean(dim=0)
    alpha = penalty * float(centred.square().sum()) / 7
    oracle = linear_model.Ridge(alpha=alpha).fit(inputs.numpy(), (targets - inputs).numpy())
    assert np.allclose(found.weight_DD.numpy(), oracle.coef_, atol=1e-5)
    assert np.allclose(found.bias_D.numpy(), oracle.intercept_, atol=1e-4)


def test_an_affine_relation_is_found_and_none_is_not_invented():
    inputs = drawn(200, 6)
    turn, shift = torch.linalg.qr(drawn(6, 6)).Q, drawn(6)
    known = fit_affine(inputs, inputs @ turn.T + shift, seed=0)
    unseen = drawn(20, 6)
    assert torch.allclose(known(unseen), (unseen @ turn.T + shift).float(), atol=1e-3)
    assert known.explained > 0.999
    assert fit_affine(inputs, drawn(200, 6), seed=0).explained < 0.2


def test_more_features_than_rows_and_constant_rows_stay_finite():
    for inputs in (drawn(4, 9), drawn(30, 64), torch.ones(20, 5)):
        found = fit_affine(inputs, torch.zeros_like(inputs), seed=0)
        assert bool(found(inputs).isfinite().all())
    assert fit_affine(torch.ones(20, 5), torch.full((20, 5), 3.0), seed=0)(torch.ones(1, 5)).tolist() == [
        [3.0] * 5
    ]
