from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import MGDA, PCGrad

from falcon_unlearn.conflict.gramian import Gramian, cosine
from falcon_unlearn.conflict.rules import (
    REFERENCE_ALIGNED_WEIGHTS,
    REFERENCE_CONFLICT_WEIGHTS,
    RULES,
    conflicts,
    falcon,
    mgda,
    pcgrad,
    plain_sum,
    resolve_rule,
)
from falcon_unlearn.errors import UsageError

entries = st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-6)
vectors = st.lists(entries, min_size=4, max_size=4)


def gramian_of(forget: torch.Tensor, retain: torch.Tensor) -> Gramian:
    return Gramian(float(forget @ forget), float(forget @ retain), float(retain @ retain))


def as_vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None)
@given(forget=vectors, retain=vectors)
def test_projected_forget_gradient_never_opposes_the_retain_gradient(
    forget: list[float], retain: list[float]
) -> None:
    forget_D, retain_D = as_vector(forget), as_vector(retain)
    weights = falcon(gramian_of(forget_D, retain_D), (1.0, 0.0), (1.0, 0.0))
    projected = weights.forget_weight * forget_D + weights.retain_weight * retain_D
    rounding = 1e-12 * float(forget_D.norm() * retain_D.norm())
    assert float(projected @ retain_D) >= -rounding


@settings(deadline=None)
@given(forget=vectors, retain=vectors, alpha=st.floats(0, 5), beta=st.floats(0, 5))
def test_falcon_is_equations_12_to_14(
    forget: list[float], retain: list[float], alpha: float, beta: float
) -> None:
    forget_D, retain_D = as_vector(forget), as_vector(retain)
    inner = forget_D @ retain_D
    if inner < 0:
        expected = alpha * (forget_D - inner / retain_D.square().sum() * retain_D) + beta * retain_D
    else:
        expected = 0.3 * forget_D + 1.7 * retain_D
    weights = falcon(gramian_of(forget_D, retain_D), (alpha, beta), (0.3, 1.7))
    combined = weights.forget_weight * forget_D + weights.retain_weight * retain_D
    scale = float(forget_D.norm() + retain_D.norm())
    torch.testing.assert_close(combined, expected, rtol=0, atol=1e-11 * (1 + scale) * (1 + alpha))


@settings(deadline=None, max_examples=60)
@given(forget=vectors.filter(any), retain=vectors.filter(any))
def test_pcgrad_agrees_with_torchjd(forget: list[float], retain: list[float]) -> None:
    matrix = torch.stack([as_vector(forget), as_vector(retain)])
    weights = pcgrad(gramian_of(*matrix))
    ours = weights.forget_weight * matrix[0] + weights.retain_weight * matrix[1]
    torch.testing.assert_close(ours, PCGrad()(matrix), rtol=0, atol=1e-9 * (1 + float(matrix.norm())))


@settings(deadline=None, max_examples=60)
@given(forget=vectors.filter(any), retain=vectors.filter(any))
def test_mgda_agrees_with_torchjd(forget: list[float], retain: list[float]) -> None:
    matrix = torch.stack([as_vector(forget), as_vector(retain)])
    weights = mgda(gramian_of(*matrix))
    ours = weights.forget_weight * matrix[0] + weights.retain_weight * matrix[1]
    oracle = MGDA(epsilon=1e-12, max_iters=1000)(matrix)
    assert weights.forget_weight + weights.retain_weight == pytest.approx(1.0)
    torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-7 * (1 + float(matrix.norm())))


@settings(deadline=None)
@given(forget=vectors.filter(any), retain=vectors.filter(any))
def test_pcgrad_and_mgda_oppose_neither_gradient(forget: list[float], retain: list[float]) -> None:
    forget_D, retain_D = as_vector(forget), as_vector(retain)
    for rule in (pcgrad, mgda):
        weights = rule(gramian_of(forget_D, retain_D))
        combined = weights.forget_weight * forget_D + weights.retain_weight * retain_D
        size = float(forget_D.norm() + retain_D.norm()) ** 2
        if abs(float(forget_D @ retain_D)) < 0.999 * float(forget_D.norm() * retain_D.norm()):
            assert float(combined @ forget_D) >= -1e-9 * size
            assert float(combined @ retain_D) >= -1e-9 * size


@pytest.mark.parametrize("rule", RULES.values())
def test_zero_retain_gradient_is_no_conflict(rule) -> None:
    gramian = Gramian(4.0, 0.0, 0.0)
    assert not conflicts(gramian)
    assert rule(gramian).forget_weight == 1.0
    assert cosine(gramian) is None


def test_orthogonal_gradients_are_no_conflict() -> None:
    assert not conflicts(Gramian(1.0, 0.0, 1.0))
    assert conflicts(Gramian(1.0, -1e-12, 1.0))


def test_reference_weights_are_the_published_ones() -> None:
    rule = resolve_rule("falcon", REFERENCE_CONFLICT_WEIGHTS, REFERENCE_ALIGNED_WEIGHTS)
    assert rule(Gramian(1.0, -0.5, 2.0)) == pytest.approx((0.8, 1.2 + 0.8 * 0.25))
    assert rule(Gramian(1.0, 0.5, 2.0)) == (0.1, 1.9)


def test_plain_sum_ignores_conflicts() -> None:
    assert plain_sum(Gramian(1.0, -1.0, 1.0)) == (1.0, 1.0)


def test_mgda_of_equal_gradients() -> None:
    assert mgda(Gramian(2.0, 2.0, 2.0)) == (0.5, 0.5)


def test_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="falcon, sum, pcgrad, mgda"):
        resolve_rule("nash")
    assert resolve_rule(plain_sum) is plain_sum


def test_cosine_stays_in_range() -> None:
    assert cosine(Gramian(1.0, 1.0000001, 1.0)) == 1.0
    assert cosine(Gramian(1e-200, -0.5e-200, 1e-200)) == pytest.approx(-0.5)
    assert cosine(Gramian(1e200, math.sqrt(0.5) * 1e200, 1e200)) == pytest.approx(math.sqrt(0.5))
