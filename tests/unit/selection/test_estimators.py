from __future__ import annotations

import math

import pytest
import torch

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.information import mutual_information
from falcon_unlearn.linalg.pca import fit_shared_pca
from falcon_unlearn.selection import score as flags
from falcon_unlearn.selection.estimators import score_layers
from falcon_unlearn.selection.settings import InformationSettings

Layers = dict[int, torch.Tensor]


def activations(shifts: list[float], num_samples: int = 80, seed: int = 0, width: int = 12) -> Layers:
    """Return float32 activations per layer; `shifts` moves each layer's first coordinate."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer, shift in enumerate(shifts):
        states = torch.randn(num_samples, width, generator=generator) * 0.7 ** torch.arange(width)
        states[:, 0] += shift
        layers[layer] = states + 3.0
    return layers


def paired_with(base: Layers, correlations: list[float], seed: int = 9) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    partners = {}
    for (layer, states), correlation in zip(base.items(), correlations, strict=True):
        noise = torch.randn(states.shape, generator=generator) * states.std(dim=0)
        centred = states - states.mean(dim=0)
        partners[layer] = correlation * centred + math.sqrt(1 - correlation**2) * noise + 3.0
    return partners


def quick(**changes) -> InformationSettings:
    return InformationSettings(**{"num_permutations": 30, "num_resamples": 100, "num_pairings": 4, **changes})


def test_pooled_information_grows_with_separation_up_to_ln_2() -> None:
    result = score_layers(
        {"facts": activations([0.0, 1.0, 2.5, 40.0])}, activations([0.0] * 4, seed=1), quick()
    )
    values = [score.value for score in result.scores]
    assert values == sorted(values)
    assert abs(values[0]) < 0.05
    assert values[3] == pytest.approx(math.log(2), abs=1e-3)
    assert flags.INSIDE_NULL in result.scores[0].flags
    assert flags.INSIDE_NULL not in result.scores[2].flags
    assert flags.SATURATED in result.scores[3].flags
    for score in result.scores:
        assert score.low <= score.value <= score.high
        # Reweighting thins the sample and biases replicates; they are centred on the estimate.
        assert sum(score.replicates) / len(score.replicates) == pytest.approx(score.value, abs=1e-12)
        assert score.null_low <= score.null_mean <= score.null_high
        assert score.null_high < 0.1


@pytest.mark.parametrize("density", ["kde", "gaussian", "ksg"])
def test_given_pairs_show_their_information_above_the_null(density: str) -> None:
    forget = activations([0.0, 0.0])
    retain = paired_with(forget, [0.0, 0.95])
    settings = quick(estimator="paired", pairs="given", density=density, maximum_components=3)
    independent, dependent = score_layers({"facts": forget}, retain, settings).scores
    assert flags.RANDOM_PAIRING not in dependent.flags
    assert dependent.value > dependent.null_high + 0.5
    assert dependent.low > dependent.null_high
    assert independent.excess < 0.5


def test_random_pairs_lie_inside_their_null_and_say_so() -> None:
    forget = activations([0.0, 0.0])
    settings = quick(estimator="paired", maximum_components=3)
    # Rows correspond, but random pairing must not use that.
    result = score_layers({"facts": forget}, paired_with(forget, [0.95, 0.95]), settings)
    for score in result.scores:
        assert {flags.RANDOM_PAIRING, flags.INSIDE_NULL} <= set(score.flags)


def test_given_pairing_value_is_the_estimator_in_one_shared_pca() -> None:
    forget = activations([0.0])
    retain = paired_with(forget, [0.6])
    score = score_layers(
        {"facts": forget}, retain, quick(estimator="paired", pairs="given", maximum_components=5)
    ).scores[0]
    components = fit_shared_pca(torch.cat([forget[0], retain[0]]), 0.95, 5)
    expected = mutual_information(components.transform(forget[0]), components.transform(retain[0]))
    assert score.value == pytest.approx(expected, abs=1e-8)
    assert score.num_components == components.num_components
    assert score.explained_share == pytest.approx(components.explained_share)


@pytest.mark.parametrize("estimator", ["paired", "pooled"])
def test_data_order_changes_nothing_bit_for_bit(estimator: str) -> None:
    forget, other = activations([0.5, 1.0], 60), activations([2.0, 0.1], 50, seed=5)
    retain = activations([0.0, 0.0], 70, seed=1)
    settings = quick(estimator=estimator, eta=0.3)

    def shuffled(layers: Layers, seed: int) -> Layers:
        number = layers[0].shape[0]
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        return {layer: states[order] for layer, states in reversed(layers.items())}

    first = score_layers({"a": forget, "b": other}, retain, settings)
    second = score_layers({"b": shuffled(other, 1), "a": shuffled(forget, 2)}, shuffled(retain, 3), settings)
    assert first == second


def test_given_pairs_survive_a_common_reordering() -> None:
    forget = activations([0.0])
    retain = paired_with(forget, [0.8])
    settings = quick(estimator="paired", pairs="given", maximum_components=3)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    first = score_layers({"a": forget}, retain, settings)
    second = score_layers({"a": {0: forget[0][order]}}, {0: retain[0][order]}, settings)
    assert first == second


def test_the_seed_decides_the_resamples_only() -> None:
    sets = ({"a": activations([1.0])}, activations([0.0], seed=1))
    first, again, other = (score_layers(*sets, quick(seed=seed)).scores[0] for seed in (1, 1, 2))
    assert first == again
    assert first.value == pytest.approx(other.value, abs=1e-9)
    assert first.replicates != other.replicates


@pytest.mark.parametrize("estimator", ["paired", "pooled"])
def test_equation_5_adds_domains_and_weighted_pairs(estimator: str) -> None:
    domains = {"a": activations([1.0]), "b": activations([2.0], seed=2), "c": activations([0.3], seed=3)}
    retain = activations([0.0], seed=1)

    def value(eta: float) -> float:
        return score_layers(domains, retain, quick(estimator=estimator, eta=eta)).scores[0].value

    without, half, whole = value(0.0), value(0.5), value(1.0)
    assert half - without == pytest.approx((whole - without) / 2, abs=1e-9)
    assert whole != pytest.approx(without, abs=1e-6)
    if estimator == "pooled":
        # All four sets are in the shared PCA either way; the pair terms are those of pairs of domains.
        pairs = [
            score_layers({first: domains[first]}, domains[second], quick()).scores[0].value
            for first, second in (("a", "b"), ("a", "c"), ("b", "c"))
        ]
        assert whole - without == pytest.approx(sum(pairs), abs=0.15)


def test_intervals_cover_repeated_sampling() -> None:
    values, widths = [], []
    for seed in range(25):
        score = score_layers(
            {"a": activations([2.0], 60, seed=100 + seed)}, activations([0.0], 60, seed=200 + seed), quick()
        ).scores[0]
        values.append(score.value)
        widths.append(score.high - score.low)
    ratio = (sum(widths) / 25) / (2 * 1.96 * float(torch.tensor(values).std()))
    assert 0.6 < ratio < 1.6


def test_too_few_samples_for_the_dimensions_are_flagged() -> None:
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(2, 16, 50, generator=generator)
    score = score_layers({"a": {3: forget}}, {3: retain}, quick()).scores[0]
    assert score.layer == 3
    assert score.num_components == 4
    assert {flags.COMPONENTS_CAPPED, flags.FEW_SAMPLES} <= set(score.flags)
    unequal = score_layers({"a": {3: forget[:12]}}, {3: retain}, quick(estimator="paired")).scores[0]
    assert flags.SUBSAMPLED in unequal.flags


def test_constant_activations_raise_or_are_recorded_but_never_scored() -> None:
    forget, retain = activations([0.0, 1.0]), activations([0.0, 0.0], seed=1)
    forget[0] = torch.full_like(forget[0], 2.5) + 1e-7 * torch.randn_like(forget[0])
    with pytest.raises(NumericalError, match="layer 0: the activations of 'a' are constant"):
        score_layers({"a": forget}, retain, quick())
    result = score_layers({"a": forget}, retain, quick(on_failure="record"))
    assert [score.layer for score in result.scores] == [1]
    assert "constant" in result.missing[0]
    with pytest.raises(NumericalError, match="no layer could be scored"):
        score_layers({"a": {0: forget[0]}}, {0: retain[0]}, quick(on_failure="record"))


def test_forget_equal_to_retain_is_not_informative_when_pooled() -> None:
    forget = activations([0.0])
    score = score_layers({"a": forget}, {0: forget[0].clone()}, quick()).scores[0]
    assert score.value < 0.01


def test_non_finite_activations_name_layer_and_domain() -> None:
    forget, retain = activations([0.0]), activations([0.0], seed=1)
    retain[0][3, 1] = float("nan")
    with pytest.raises(NumericalError, match="layer 0: activations of 'retain'"):
        score_layers({"a": forget}, retain, quick())


def test_bad_data_is_named() -> None:
    forget, retain = activations([0.0, 0.0]), activations([0.0, 0.0], seed=1)
    with pytest.raises(DataError, match="'a' has 7 samples"):
        score_layers({"a": {layer: states[:7] for layer, states in forget.items()}}, retain, quick())
    with pytest.raises(DataError, match=r"'a' has layers \[0\]"):
        score_layers({"a": {0: forget[0]}}, retain, quick())
    with pytest.raises(DataError, match="one N for all layers"):
        score_layers({"a": {0: forget[0], 1: forget[1][:20]}}, retain, quick())
    with pytest.raises(DataError, match="at least one forget domain"):
        score_layers({}, retain, quick())
    with pytest.raises(DataError, match="'retain'"):
        score_layers({"retain": forget}, retain, quick())
    short = {layer: states[:40] for layer, states in forget.items()}
    with pytest.raises(DataError, match="equally many samples"):
        score_layers({"a": short}, retain, quick(estimator="paired", pairs="given"))


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="estimator must be one of paired, pooled, got 'mi'"):
        InformationSettings(estimator="mi")
    with pytest.raises(UsageError, match="num_permutations"):
        InformationSettings(num_permutations=1)
    with pytest.raises(UsageError, match="confidence"):
        InformationSettings(confidence=1.0)
