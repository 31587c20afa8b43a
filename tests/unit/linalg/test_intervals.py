from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from falcon_unlearn.errors import DataError, NumericalError, UsageError
from falcon_unlearn.linalg.intervals import (
    bootstrap_interval,
    clopper_pearson_upper,
    paired_bootstrap_difference,
    percentile_interval,
    wilson_interval,
)


@given(data=st.data(), trials=st.integers(1, 500), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(data: st.DataObject, trials: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    oracle = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(successes, trials, confidence)
    assert low == pytest.approx(oracle.low, abs=1e-12)
    assert high == pytest.approx(oracle.high, abs=1e-12)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


@given(data=st.data(), trials=st.integers(1, 500), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_the_exact_upper_limit_equals_scipy(data: st.DataObject, trials: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    oracle = stats.binomtest(successes, trials, alternative="less").proportion_ci(confidence, method="exact")
    assert clopper_pearson_upper(successes, trials, confidence) == pytest.approx(oracle.high, abs=1e-9)


def test_no_leak_among_fifty_leaves_up_to_six_in_a_hundred() -> None:
    assert clopper_pearson_upper(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert clopper_pearson_upper(0, 200) == pytest.approx(0.0149, abs=1e-4)
    with pytest.raises(DataError, match="3 of 2"):
        clopper_pearson_upper(3, 2)


def test_wilson_covers_the_share_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).binomial(60, 0.25, size=4000)
    covered = np.mean([wilson_interval(int(count), 60).contains(0.25) for count in draws])
    assert 0.93 < covered < 0.97


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=120)
    ours = bootstrap_interval(values, generator=np.random.default_rng(2), num_resamples=20_000)
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(3)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(oracle.low, abs=0.01)
    assert ours.high == pytest.approx(oracle.high, abs=0.01)


def test_bootstrap_takes_other_statistics() -> None:
    values = np.arange(101.0)
    result = bootstrap_interval(values, generator=np.random.default_rng(0), statistic=np.median)
    assert result.value == 50.0
    assert result.low < 50.0 < result.high


def test_pairing_cancels_the_variation_between_units() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(0, 10, size=80)
    after = before + generator.normal(0.5, 0.1, size=80)
    paired = paired_bootstrap_difference(before, after, generator=np.random.default_rng(1))
    alone = bootstrap_interval(after, generator=np.random.default_rng(1))
    assert paired.value == pytest.approx(0.5, abs=0.05)
    assert paired.high - paired.low < 0.1
    assert alone.high - alone.low > 2.0
    differences = bootstrap_interval(after - before, generator=np.random.default_rng(1))
    assert (paired.low, paired.high) == pytest.approx((differences.low, differences.high))


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first, second, other = (
        bootstrap_interval(values, generator=np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_chunked_resampling_covers_every_resample() -> None:
    values = np.random.default_rng(0).normal(size=3_000)
    result = bootstrap_interval(values, generator=np.random.default_rng(1), num_resamples=3_000)
    error = values.std() / np.sqrt(3_000)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_percentile_interval_holds_the_central_share() -> None:
    assert percentile_interval(np.arange(1001.0), 0.9) == pytest.approx((50.0, 950.0))


def test_bad_input_is_named() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="trials >= 1"):
        wilson_interval(0, 0)
    with pytest.raises(DataError, match="4 of 3"):
        wilson_interval(4, 3)
    with pytest.raises(UsageError, match="confidence"):
        wilson_interval(1, 3, confidence=95)
    with pytest.raises(DataError, match="non-empty"):
        bootstrap_interval([], generator=generator)
    with pytest.raises(NumericalError, match="1 non-finite"):
        bootstrap_interval([1.0, float("nan")], generator=generator)
    with pytest.raises(DataError, match="equally many"):
        paired_bootstrap_difference([1.0], [1.0, 2.0], generator=generator)
    with pytest.raises(UsageError, match="num_resamples"):
        bootstrap_interval([1.0], generator=generator, num_resamples=0)


def test_needs_neither_torch_nor_scipy() -> None:
    script = (
        "import sys; import falcon_unlearn.linalg.intervals; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
