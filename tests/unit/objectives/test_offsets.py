from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from falcon_unlearn.errors import NumericalError
from falcon_unlearn.objectives import offsets
from falcon_unlearn.objectives.offsets import (
    StreamingDirections,
    principal_directions,
    principal_offset_vectors,
    remove_directions,
    seeded_generator,
)
from offset_states import decaying_states, energy_inside, generator


@settings(deadline=None, max_examples=60)
@given(
    num_hidden=st.integers(2, 96),
    share=st.floats(0, 1),
    rows=st.integers(1, 200),
    seed=st.integers(0, 2**31 - 1),
    leading=st.sampled_from([(), (1,), (3,), (2, 4)]),
)
def test_no_energy_in_the_principal_span(num_hidden, share, rows, seed, leading):
    num_directions = max(1, min(round(share * num_hidden), num_hidden - 1))
    directions = principal_directions(decaying_states(rows, num_hidden, seed), num_directions)
    if len(directions) >= num_hidden:
        return
    vectors = principal_offset_vectors(directions, leading, generator(seed))
    assert vectors.shape == (*leading, num_hidden) and vectors.dtype == torch.float32
    assert np.abs(np.linalg.norm(vectors.numpy(), axis=-1) - 1).max() < 1e-5
    # An orthonormal basis of the same span, exact in float64.
    exact = np.linalg.qr(directions.double().numpy().T)[0].T
    assert np.sqrt(energy_inside(vectors, exact)).max() < 1e-6


@pytest.mark.parametrize(
    ("num_rows", "num_hidden", "num_directions"), [(40, 16, 3), (9, 33, 9), (300, 64, 12)]
)
@pytest.mark.parametrize("suppression", [1.0, 0.5, 3.0])
def test_equals_the_matrix_form_of_equation_8(num_rows, num_hidden, num_directions, suppression):
    states = decaying_states(num_rows, num_hidden, 1)
    right = np.linalg.svd(states.double().numpy())[2][:num_directions]
    projector = np.eye(num_hidden) - suppression * sum(np.outer(v, v) for v in right)
    random = torch.randn((5, num_hidden), generator=generator(7)).double().numpy()
    expected = random @ projector
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    vectors = principal_offset_vectors(
        principal_directions(states, num_directions), (5,), generator(7), suppression=suppression
    )
    # Folding a tall matrix truncates its tail, which turns the weakest direction by a little.
    assert np.abs(vectors.numpy() - expected).max() < (2e-5 if num_rows < 100 else 2e-3)


def test_perturbation_and_operator_follow_equation_8():
    directions = principal_directions(decaying_states(30, 32, 0), 4)
    draw = generator(3)
    pairs = torch.randn((6, 2, 32), generator=draw).double().numpy()
    random, noise = pairs[:, 0], pairs[:, 1]
    kept = random - (random @ directions.double().numpy().T) @ directions.double().numpy()
    expected = np.tanh(kept + 0.3 * noise)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    vectors = principal_offset_vectors(directions, (6,), generator(3), perturbation=0.3, operator="tanh")
    assert np.abs(vectors.numpy() - expected).max() < 1e-5
    assert energy_inside(vectors, directions).max() > 1e-3, (
        "both put energy back, so the guarantee is not claimed"
    )


@pytest.mark.parametrize("perturbation", [0.0, 0.2])
def test_the_first_vectors_do_not_depend_on_how_many_follow(perturbation):
    directions = principal_directions(decaying_states(30, 32, 0), 4)
    long, short = (
        principal_offset_vectors(directions, (n,), generator(5), perturbation=perturbation) for n in (9, 4)
    )
    assert torch.equal(long[:4], short)


@pytest.mark.parametrize("num_directions", [31, 32])
def test_directions_that_fill_the_space_are_an_error(num_directions):
    directions = torch.eye(32)[:num_directions]
    if num_directions == 31:
        vector = principal_offset_vectors(directions, (), generator(0))
        assert vector.abs().tolist() == [0.0] * 31 + [1.0]
        return
    with pytest.raises(NumericalError, match="32 principal directions fill the 32-dimensional") as caught:
        principal_offset_vectors(directions, (), generator(0))
    assert "objective.offset.directions" in caught.value.hint


def test_targets_of_different_seeds_are_unrelated():
    directions = principal_directions(decaying_states(200, 128, 0), 8)
    vectors = torch.stack(
        [principal_offset_vectors(directions, (), generator(s)) for s in range(40)]
    ).double()
    cosines = (vectors @ vectors.T).fill_diagonal_(0)
    # Independent unit vectors in 120 dimensions: standard deviation .09.
    assert cosines.abs().max() < 5 / math.sqrt(120)
    assert abs(float(cosines.sum()) / (40 * 39)) < 0.02


# --- directions -------------------------------------------------------------------------------------------


def largest_angle(first, second):
    return float(np.max(subspace_angles(np.asarray(first, float).T, np.asarray(second, float).T)))


@pytest.mark.parametrize(("num_rows", "num_hidden"), [(5, 40), (40, 40), (41, 40), (500, 40)])
def test_directions_are_the_leading_right_singular_vectors(num_rows, num_hidden):
    states = decaying_states(num_rows, num_hidden, 2)
    found = principal_directions(states, 4)
    exact = np.linalg.svd(states.double().numpy(), full_matrices=False)[2][:4]
    assert found.shape == (4, num_hidden)
    assert np.abs(found.numpy() @ found.numpy().T - np.eye(4)).max() < 1e-5
    # Vector by vector, up to sign, in order of strength; the last may mix with the first left out.
    assert np.abs(np.abs((found.numpy() * exact).sum(-1)) - 1).max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_rows", "num_hidden", "num_directions"), [(700, 128, 8), (2000, 200, 20)])
def test_folded_decomposition_finds_the_subspace_of_the_full_one(num_rows, num_hidden, num_directions, seed):
    states = decaying_states(num_rows, num_hidden, seed)
    assert 2 * offsets.OVERSAMPLING * num_directions <= num_hidden, "otherwise nothing is folded"
    exact = np.linalg.svd(states.double().numpy(), full_matrices=False)
    found = principal_directions(states, num_directions)
    share_found = ((states.double().numpy() @ found.double().numpy().T) ** 2).sum() / (exact[1] ** 2).sum()
    share_best = (exact[1][:num_directions] ** 2).sum() / (exact[1] ** 2).sum()
    assert share_best - share_found < 1e-5, "less energy than the best subspace of this size"
    assert math.sin(largest_angle(found, exact[2][:num_directions])) < 0.1


def test_folding_is_exact_when_the_rank_fits_into_the_summary():
    draw = np.random.default_rng(0)
    states = torch.tensor(draw.standard_normal((900, 12)) @ draw.standard_normal((12, 160))).float()
    found = principal_directions(states, 5)
    exact = np.linalg.svd(states.double().numpy(), full_matrices=False)[2][:5]
    assert largest_angle(found, exact) < 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_streaming_finds_what_one_shot_finds(chunk):
    states = decaying_states(600, 96, 4, rate=1.5)
    streaming = StreamingDirections(6)
    for part in states.split(chunk):
        streaming.update(part)
    exact = np.linalg.svd(states.double().numpy(), full_matrices=False)[2][:6]
    assert math.sin(largest_angle(streaming.directions(), exact)) < 0.05


def test_the_order_of_the_states_does_not_matter():
    states = decaying_states(600, 96, 4, rate=1.5)
    shuffled = states[torch.randperm(600, generator=generator(0))]
    assert math.sin(largest_angle(principal_directions(states, 6), principal_directions(shuffled, 6))) < 0.05


def test_centring_subtracts_the_vector():
    states = decaying_states(50, 20, 5)
    mean = states.mean(0)
    found = principal_directions(states, 3, centre_D=mean)
    exact = np.linalg.svd((states.double() - mean.double()).numpy(), full_matrices=False)[2][:3]
    assert largest_angle(found, exact) < 1e-3
    assert largest_angle(found, principal_directions(states, 3)) > 0.1


def test_fewer_directions_than_asked_when_the_rank_is_lower():
    states = torch.randn(2, 10, generator=generator(0)).repeat(8, 1)
    assert principal_directions(states, 6).shape == (2, 10)


@pytest.mark.parametrize(
    "states",
    [
        torch.zeros(4, 6),
        torch.zeros(0, 6),
        torch.full((3, 6), float("nan")),
        torch.tensor([[1.0, float("inf")]]),
    ],
    ids=["zero", "none", "nan", "inf"],
)
def test_states_without_directions_are_an_error(states):
    with pytest.raises(NumericalError, match="principal directions"):
        principal_directions(states, 2)
    with pytest.raises(NumericalError, match="principal directions"):
        StreamingDirections(2).update(states).directions()


def test_streaming_without_states_is_an_error():
    with pytest.raises(NumericalError, match="at least one state"):
        StreamingDirections(2).directions()


def test_paper_mode_never_forms_a_square_matrix(monkeypatch):
    """Every tensor made between 2-D states and the final vectors has a side below D."""
    from torch.utils._python_dispatch import TorchDispatchMode

    num_hidden, largest = 256, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            results = function(*args, **(kwargs or {}))
            tensors = results if isinstance(results, tuple | list) else (results,)
            made = [r for r in tensors if isinstance(r, torch.Tensor) and r.ndim == 2]
            largest.extend((len(r), str(function)) for r in made if r.shape[1] == num_hidden)
            return results

    states = decaying_states(4000, num_hidden, 0)
    with Watch():
        directions = principal_directions(states, 16)
        principal_offset_vectors(directions, (3,), generator(0))
        streaming = StreamingDirections(16)
        for part in states.split(100):
            streaming.update(part)
        streaming.directions()
    made = [(rows, name) for rows, name in largest if rows < len(states)]  # the states themselves are given
    assert made and max(made)[0] < num_hidden, max(made)


def test_removing_directions_is_the_projector():
    directions = torch.linalg.qr(torch.randn(12, 3, generator=generator(0)))[0].T
    vectors = torch.randn(5, 12, generator=generator(1))
    projector = np.eye(12) - 0.5 * directions.double().numpy().T @ directions.double().numpy()
    removed = remove_directions(vectors, directions, 0.5)
    assert np.abs(removed.numpy() - vectors.double().numpy() @ projector).max() < 1e-6


def test_seeded_generators_depend_on_their_parts_only():
    first = torch.rand(3, generator=seeded_generator(1, "sample", 2, 3))
    torch.rand(5)
    assert torch.equal(first, torch.rand(3, generator=seeded_generator(1, "sample", 2, 3)))
    others = [
        (2, "sample", 2, 3),
        (1, "token", 2, 3),
        (1, "sample", 3, 2),
        (1, "sample", 23),
        (1, "sample2", 3),
    ]
    for parts in others:
        assert not torch.equal(first, torch.rand(3, generator=seeded_generator(*parts)))
