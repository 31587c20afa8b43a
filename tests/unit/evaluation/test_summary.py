from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from falcon_unlearn.evaluation.summary import (
    ItemValue,
    Summariser,
    desired_direction,
    exponential,
    item_records,
)


def _summary(**changes):
    values = {"set_name": "s", "role": "forget", "seed": 0, "confidence": 0.95, "resamples": 2000}
    return Summariser(**(values | changes))


def _items(values, clusters=None):
    names = clusters or [""] * len(values)
    return [ItemValue(str(i), c, float(v)) for i, (v, c) in enumerate(zip(values, names, strict=True))]


def test_independent_hits_get_the_wilson_interval():
    metric = _summary().share("accuracy_text", _items([1] * 7 + [0] * 17), chance=0.25)
    expected = stats.binomtest(7, 24).proportion_ci(0.95, method="wilson")
    assert metric.interval == "wilson"
    assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (metric.value, metric.chance, metric.num_items, metric.unit) == (7 / 24, 0.25, 24, "share")


def test_wordings_of_one_fact_are_one_cluster():
    values = [1, 1, 1, 0, 0, 0] * 6
    clusters = [f"fact {i // 3}" for i in range(36)]
    alone = _summary().share("accuracy_text", _items(values))
    together = _summary().share("accuracy_text", _items(values, clusters))
    assert (alone.interval, together.interval) == ("wilson", "bootstrap")
    assert together.value == alone.value == 0.5
    assert together.high - together.low > 1.4 * (alone.high - alone.low)


def test_cluster_bootstrap_covers_the_true_share():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rates = generator.beta(1, 1, size=30)
        values = np.concatenate([generator.random(4) < rate for rate in rates])
        clusters = [str(i // 4) for i in range(120)]
        metric = _summary(seed=trial, resamples=300).share("accuracy_text", _items(values, clusters))
        covered += metric.low <= 0.5 <= metric.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(("value", "low", "high"), [(1, 0.51, 1.0), (0, 0.0, 0.49)])
def test_an_interval_never_collapses_when_all_answers_agree(value, low, high):
    clusters = [str(i // 5) for i in range(20)]
    metric = _summary().share("accuracy_letter", _items([value] * 20, clusters))
    expected = stats.binomtest(4 * value, 4).proportion_ci(0.95, method="wilson")
    assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert metric.low == pytest.approx(low, abs=0.01)
    assert metric.high == pytest.approx(high, abs=0.01)


def test_shares_between_zero_and_one_are_bootstrapped():
    values = np.tile([0.0, 0.25, 0.5, 1.0], 10)
    metric = _summary().share("accuracy_letter", _items(values))
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", random_state=np.random.default_rng(1)
    )
    assert metric.interval == "bootstrap"
    assert metric.value == pytest.approx(values.mean())
    assert metric.low == pytest.approx(expected.confidence_interval.low, abs=0.02)
    assert metric.high == pytest.approx(expected.confidence_interval.high, abs=0.02)


def test_perplexity_weighs_texts_by_their_tokens():
    generator = np.random.default_rng(3)
    tokens = generator.integers(5, 60, size=50).astype(float)
    losses = tokens * generator.normal(3.0, 0.3, size=50)
    items = [ItemValue(str(i), "", n, d) for i, (n, d) in enumerate(zip(losses, tokens, strict=True))]
    metric = _summary().ratio("perplexity", items, unit="per token", transform=exponential)
    assert metric.value == pytest.approx(np.exp(losses.sum() / tokens.sum()))
    expected = stats.bootstrap(
        (losses, tokens),
        lambda n, d, axis: np.exp(n.sum(axis) / d.sum(axis)),
        paired=True,
        n_resamples=5000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high), rel=0.02)
    records = item_records("perplexity", items, exponential)
    assert records[4].value == pytest.approx(np.exp(losses[4] / tokens[4]))


def test_intervals_depend_on_the_seed_only():
    items = _items(np.linspace(0, 1, 17))
    assert _summary().share("rouge_l", items) == _summary().share("rouge_l", items)
    assert _summary().share("rouge_l", items) != _summary(seed=1).share("rouge_l", items)


def test_a_destroyed_model_has_a_finite_perplexity():
    metric = _summary().ratio(
        "perplexity_word", [ItemValue("0", "", 9e5, 1.0)], unit="ratio", transform=exponential
    )
    assert np.isfinite(metric.value)


def test_an_id_equal_to_a_cluster_name_stays_apart():
    items = [ItemValue("gold", "", 1.0), ItemValue("b", "gold", 0.0), ItemValue("c", "gold", 0.0)]
    half = [ItemValue("gold", "", 1.0), ItemValue("b", "other", 0.0), ItemValue("c", "other", 0.0)]
    assert _summary().share("accuracy_text", items) == _summary().share("accuracy_text", half)
    assert _summary().share("accuracy_text", items).low < _summary().share("accuracy_text", items).high


@pytest.mark.parametrize(
    ("name", "role", "desired"),
    [
        ("accuracy_text", "forget", "lower"),
        ("perplexity", "forget", "higher"),
        ("divergence", "forget", "higher"),
        ("letter_mass", "forget", "unchanged"),
        ("accuracy_text", "neighbour", "unchanged"),
        ("perplexity", "general", "unchanged"),
    ],
)
def test_only_forget_sets_should_move(name, role, desired):
    assert desired_direction(name, role) == desired
