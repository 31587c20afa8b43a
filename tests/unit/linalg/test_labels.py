from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import norm

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg import kernels
from falcon_unlearn.linalg.labels import label_entropy, label_information


def two_classes(
    num_forget: int, num_retain: int, num_dimensions: int, shift: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    forget = torch.randn(num_forget, num_dimensions, generator=generator, dtype=torch.float64)
    retain = torch.randn(num_retain, num_dimensions, generator=generator, dtype=torch.float64)
    retain[:, 0] += shift
    return forget, retain


def true_information(shift: float) -> float:
    """Return the label information of two unit Gaussians at a distance, by quadrature."""

    def integrand(x: float) -> float:
        first, second = norm.pdf(x), norm.pdf(x - shift)
        mixture = (first + second) / 2
        terms = [value / 2 * math.log(value / mixture) for value in (first, second) if value > 0]
        return sum(terms)

    return float(integrate.quad(integrand, -12, 12 + shift, limit=200)[0])


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 4.0])
def test_approaches_the_true_information_in_one_dimension(shift: float) -> None:
    result = label_information(*two_classes(1500, 1500, 1, shift))
    assert result.value == pytest.approx(true_information(shift), abs=0.04)


@pytest.mark.parametrize("num_dimensions", [10, 50])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 4.0])
def test_stays_below_the_truth_in_many_dimensions(num_dimensions: int, shift: float) -> None:
    result = label_information(*two_classes(300, 300, num_dimensions, shift))
    assert result.value <= true_information(shift) + 0.05
    assert result.value >= 0.3 * true_information(shift) - 0.01


@pytest.mark.parametrize(("num_forget", "num_retain"), [(50, 50), (20, 90)])
def test_never_exceeds_the_entropy_of_the_label(num_forget: int, num_retain: int) -> None:
    result = label_information(*two_classes(num_forget, num_retain, 3, 1000.0))
    bound = label_entropy(num_forget, num_retain)
    assert bound <= math.log(2) + 1e-12
    assert result.value == pytest.approx(bound, abs=1e-9)


def test_scott_width_equals_a_loop_over_points() -> None:
    forget, retain = two_classes(25, 40, 2, 1.5)
    within = (24 * torch.cov(forget.T) + 39 * torch.cov(retain.T)) / 63
    bandwidth = within * kernels.scott_factor(25, 2) ** 2
    samples, is_forget = torch.cat([forget, retain]), torch.arange(65) < 25
    total = 0.0
    for index in range(65):
        normal = torch.distributions.MultivariateNormal(samples, bandwidth)
        density = normal.log_prob(samples[index]).exp()
        other = torch.arange(65) != index
        own_class = is_forget == is_forget[index]
        own = density[own_class & other].mean()
        share = own_class.double().mean()
        mixture = share * own + (1 - share) * density[~own_class].mean()
        total += float(own.log() - mixture.log()) / 65
    assert label_information(forget, retain, width_factors=(1.0,)).value == pytest.approx(total, abs=1e-10)


def test_relabelling_equals_exchanged_samples() -> None:
    # Both classes get the same within-class residuals, so that exchanging labels keeps the kernel.
    forget, _ = two_classes(30, 30, 2, 0.0)
    retain = forget + torch.tensor([1.0, 0.0], dtype=torch.float64)
    exchanged = torch.cat([torch.arange(30, 60), torch.arange(30)]).unsqueeze(0)
    result = label_information(forget, retain, relabellings_PN=exchanged)
    assert float(result.null[0]) == pytest.approx(result.value, abs=1e-10)


def test_null_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    num_inside = 0
    for seed in range(60):
        forget, retain = two_classes(40, 40, 4, 0.0, seed)
        relabellings = torch.stack([torch.randperm(80, generator=generator) for _ in range(60)])
        result = label_information(forget, retain, relabellings_PN=relabellings)
        num_inside += result.value <= float(result.null.quantile(0.95))
    assert num_inside >= 51


def test_bootstrap_spread_matches_the_sampling_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = -torch.rand(2, 80, 200, generator=generator, dtype=torch.float64).log()
    values, spreads = [], []
    for seed in range(60):
        forget, retain = two_classes(80, 80, 3, 2.0, seed)
        result = label_information(forget, retain, forget_weights_FW=weights[0], retain_weights_RW=weights[1])
        values.append(result.value)
        spreads.append(float(result.replicates.std()))
    ratio = np.mean(spreads) / np.std(values)
    assert 0.7 < ratio < 1.4


def test_equal_weights_and_chunks_change_nothing(monkeypatch) -> None:
    forget, retain = two_classes(40, 30, 3, 1.0)
    relabellings = torch.randperm(70, generator=torch.Generator().manual_seed(0)).unsqueeze(0)

    def estimate():
        return label_information(
            forget,
            retain,
            forget_weights_FW=torch.full((40, 1), 2.0),
            retain_weights_RW=torch.ones(30, 1),
            relabellings_PN=relabellings,
        )

    whole = estimate()
    assert float(whole.replicates[0]) == pytest.approx(whole.value, abs=1e-12)
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 11 * 70)
    parts = estimate()
    assert parts.value == pytest.approx(whole.value, abs=1e-12)
    torch.testing.assert_close(parts.null, whole.null, rtol=0, atol=1e-12)


def test_outlier_next_to_the_other_class_stays_finite() -> None:
    forget, retain = two_classes(200, 200, 2, 500.0)
    forget[0] = retain[0]
    result = label_information(
        forget, retain, relabellings_PN=torch.arange(400).flip(0).unsqueeze(0), width_factors=(1.0,)
    )
    assert math.isfinite(result.value)
    assert bool(torch.isfinite(result.null).all())


def test_bad_input_is_named() -> None:
    forget, retain = two_classes(20, 20, 2, 0.0)
    with pytest.raises(DataError, match="same width"):
        label_information(forget, retain[:, :1])
    with pytest.raises(UsageError, match="width_factors"):
        label_information(forget, retain, width_factors=(0.0,))
    with pytest.raises(NumericalError, match="singular"):
        label_information(torch.zeros(20, 2), torch.ones(20, 2))
