from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hmean

from falcon_unlearn.errors import DataError, NumericalError
from falcon_unlearn.metrics.model_utility import (
    PARTS,
    harmonic_mean,
    model_utility,
    model_utility_difference,
    normalised_probability,
)

NUMBER = {"retain": 400, "real_authors": 100, "world_facts": 117}


def _samples(seed=0):
    generator = np.random.default_rng(seed)
    return {part: generator.beta(2, 2, NUMBER[part.split("/")[0]]) for part in PARTS}


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.9, 0.0]) == 0.0
    values = np.random.default_rng(0).random(9)
    assert harmonic_mean(values) == pytest.approx(hmean(values))
    for wrong in ([], [0.5, -0.1]):
        with pytest.raises(DataError):
            harmonic_mean(wrong)
    with pytest.raises(NumericalError):
        harmonic_mean([np.nan, 1.0])


def test_normalised_probability_by_hand():
    assert normalised_probability([0.2], [[0.1, 0.05, 0.05]], epsilon=0.0) == pytest.approx([0.5])
    # All probabilities vanish: 0 instead of 0/0.
    assert normalised_probability([0.0], [[0.0, 0.0, 0.0]]).tolist() == [0.0]
    with pytest.raises(DataError):
        normalised_probability([0.1, 0.2], [[0.1]])


def test_nine_parts():
    samples = _samples()
    found = model_utility(samples)
    assert tuple(found.parts) == PARTS
    means = [samples[part].mean() for part in PARTS]
    assert found.value == pytest.approx(hmean(means))
    assert found.retain_only == pytest.approx(hmean(means[:3]))
    assert found.interval is None


def test_one_part_of_zero_destroys_the_utility():
    samples = _samples() | {"world_facts/rouge_l_recall": np.zeros(117)}
    found = model_utility(samples, generator=np.random.default_rng(0), num_resamples=50)
    assert found.value == 0.0
    assert found.interval == (0.0, 0.0)
    assert found.retain_only > 0


def test_bootstrap_equals_resampling_questions_one_by_one():
    samples = _samples()
    found = model_utility(samples, generator=np.random.default_rng(0), num_resamples=4000)
    generator = np.random.default_rng(1)
    replicates = []
    for _ in range(4000):
        rows = {name: generator.integers(0, number, number) for name, number in NUMBER.items()}
        replicates.append(hmean([samples[part][rows[part.split("/")[0]]].mean() for part in PARTS]))
    assert found.interval == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=0.002)
    assert found.retain_only_interval.high - found.retain_only_interval.low < 0.06


def test_the_paired_difference():
    before = _samples()
    after = {part: np.minimum(1.0, values + 0.02) for part, values in before.items()}
    found = model_utility_difference(before, after, generator=np.random.default_rng(0))
    assert found.value == pytest.approx(model_utility(after).value - model_utility(before).value)
    assert 0.0 < found.low < found.value < found.high
    # The questions are the same: far narrower than the interval of one utility.
    single = model_utility(before, generator=np.random.default_rng(0)).interval
    assert found.high - found.low < 0.2 * (single.high - single.low)


def test_unusable_samples():
    samples = _samples()
    with pytest.raises(DataError, match="retain/probability"):
        model_utility({part: samples[part] for part in PARTS[1:]})
    with pytest.raises(DataError, match="fluency"):
        model_utility(samples | {"fluency": np.ones(3)})
    with pytest.raises(DataError, match=r"400, 400, 399"):
        model_utility(samples | {"retain/truth_ratio": np.ones(399)})
    with pytest.raises(NumericalError, match="world_facts/probability"):
        model_utility(samples | {"world_facts/probability": np.full(117, np.nan)})
    fewer = {part: values[:50] for part, values in samples.items()}
    with pytest.raises(DataError, match="400 questions before, 50 after"):
        model_utility_difference(samples, fewer, generator=np.random.default_rng(0))
