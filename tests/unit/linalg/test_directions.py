from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from falcon_unlearn.linalg.directions import (
    ablated,
    ablated_writer,
    contrast_directions,
    leading_directions,
    random_directions,
    without_outliers,
)


def gaussian(rows, size=24, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 24), seed=st.integers(0, 999))
def test_ablation_is_idempotent_and_leaves_nothing_along_the_directions(rank, seed):
    rows = random_directions(rank, 24, torch.Generator().manual_seed(seed))
    states = 10 * gaussian(7, seed=seed)
    kept = states.clone()
    once = ablated(states, rows)
    assert torch.equal(states, kept), "changed in place"
    torch.testing.assert_close(once @ rows.T, torch.zeros(7, rank), atol=1e-4, rtol=0)
    torch.testing.assert_close(ablated(once, rows), once, atol=1e-4, rtol=0)
    # The part orthogonal to the directions is kept: what was taken lies in their span.
    taken = states - once
    torch.testing.assert_close((taken @ rows.T) @ rows, taken, atol=1e-4, rtol=0)


def test_writer_writes_nothing_along_the_directions():
    rows = random_directions(3, 24, torch.Generator().manual_seed(1))
    weight, bias, inputs = gaussian(24, 10), gaussian(24, 1, 2)[:, 0], gaussian(10, 5, 3)
    written = ablated_writer(weight, rows) @ inputs + ablated_writer(bias, rows)[:, None]
    expected = ablated((weight @ inputs + bias[:, None]).T, rows).T
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-5)


def test_leading_directions_span_what_numpy_finds():
    rows = gaussian(50) @ torch.diag(torch.linspace(3, 0.1, 24)) + 2.0
    found = leading_directions(rows, 4)
    _, _, right = np.linalg.svd(rows.double().numpy())
    assert subspace_angles(found.double().numpy().T, right[:4].T).max() < 1e-5
    torch.testing.assert_close(found @ found.T, torch.eye(4))


def test_rank_is_what_there_is():
    shift = gaussian(1)
    assert leading_directions(shift.repeat(9, 1), 4).shape == (1, 24)
    assert leading_directions(torch.zeros(9, 24), 4).shape == (0, 24)
    assert leading_directions(torch.empty(0, 24), 4).shape == (0, 24)
    cosine = torch.cosine_similarity(leading_directions(shift.repeat(9, 1), 1), shift)
    assert float(cosine.abs()) == pytest.approx(1.0, abs=1e-5)


def test_contrast_starts_with_the_difference_of_means():
    first, second = gaussian(80) + 3.0, gaussian(60, seed=1)
    rows = contrast_directions(first, second, 5)
    difference = first.mean(0) - second.mean(0)
    assert float(torch.cosine_similarity(rows[0], difference, dim=0).abs()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5), atol=1e-5, rtol=0)


def test_outliers_are_dropped():
    rows = gaussian(60)
    rows[7] *= 40
    assert torch.equal(without_outliers(rows), torch.cat([rows[:7], rows[8:]]))
    assert len(without_outliers(torch.ones(4, 3))) == 4
