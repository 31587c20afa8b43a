from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from falcon_unlearn.objectives.offsets import (
    principal_directions,
    principal_offset_vectors,
    reference_offset_vector,
)
from offset_states import decaying_states, energy_inside, generator


def reference_by_loops(states, num_directions, noise):
    """Follow method.md B.3 step by step in float64, one direction and one element at a time."""
    states = states.double().numpy()
    num_hidden = states.shape[1]
    _, singular, right = np.linalg.svd(states, full_matrices=False)
    count = min(num_directions, int((singular > 1e-6 * singular[0]).sum()))
    matrix = np.eye(num_hidden)
    for i in range(count):
        matrix += 1000.0 / (1.0 + math.exp(-singular[i] / singular[0])) * np.outer(right[i], right[i])
    for row in range(num_hidden):
        for column in range(num_hidden):
            matrix[row, column] = math.tanh(matrix[row, column] + 0.01 * noise[row, column])
    vector = np.ones(num_hidden) / math.sqrt(num_hidden)
    for _ in range(6):
        vector = np.array([math.tanh(float(vector @ matrix[:, j])) for j in range(num_hidden)])
        vector /= math.sqrt(float((vector**2).sum())) + 1e-6
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("num_rows", "num_hidden", "num_directions"), [(20, 48, 1000), (90, 48, 12), (90, 48, 1000)]
)
def test_reference_target_follows_the_released_code(num_rows, num_hidden, num_directions):
    states = decaying_states(num_rows, num_hidden, 6)
    noise = torch.randn((num_hidden, num_hidden), generator=generator(11)).double().numpy()
    expected = reference_by_loops(states, num_directions, noise)
    found = reference_offset_vector(states, num_directions, generator(11))
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-4
    assert float(found.norm()) == pytest.approx(1.0, abs=1e-6)


def test_reference_target_runs_in_the_models_dtype():
    states = decaying_states(60, 48, 6)
    single, half = (
        reference_offset_vector(states, 1000, generator(1), d) for d in (torch.float32, torch.bfloat16)
    )
    assert not torch.equal(single, half)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert float(half.norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("num_directions", [97, 128], ids=["K/D=.19", "K/D=.25"])
def test_reference_amplifies_the_span_that_paper_mode_removes(num_directions, seed):
    """The replica of method.md B.2 and B.3: D = 512, decaying spectrum plus mean; chance is K/D."""
    states = decaying_states(num_directions, 512, seed, rate=0.5)  # rank K: the code takes min(1000, rank)
    span = principal_directions(states, num_directions)
    assert len(span) == num_directions
    reference = reference_offset_vector(states, 1000, generator(seed))
    paper = principal_offset_vectors(span, (), generator(seed))
    assert energy_inside(reference, span) > 0.8
    assert energy_inside(paper, span) < 1e-12
