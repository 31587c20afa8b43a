"""Properties that hold for any numbers: scales, order and monotony."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_unlearn.audit.scoring import leak_at
from falcon_unlearn.audit.statistics import RECOVERED, resample

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=4, max_size=30)


def drawn_of(tables: dict[str, np.ndarray], order: np.ndarray):
    clusters = [int(index) // 2 for index in order]
    values = {name: table[order] for name, table in tables.items()}
    return resample(values, clusters, generator=np.random.default_rng(0), num_resamples=200)


@pytest.mark.parametrize(("attacked", "recovered"), [("original", 1.0), ("unlearned", 0.0)])
def test_an_attack_that_returns_the_original_recovers_all_and_one_without_effect_nothing(attacked, recovered):
    tables = {"original": np.repeat([1.0, 0.0], [45, 5]), "unlearned": np.repeat([1.0, 0.0], [10, 40])}
    tables["null"] = np.repeat([1.0, 0.0], [8, 42])
    tables |= {f"{name}^a": tables[name] for name in ("original", "null")}
    tables["unlearned^a"] = tables[attacked]
    ratio = drawn_of(tables, np.arange(50)).ratio(*RECOVERED["recovered"])
    assert ratio.value == pytest.approx(recovered)


@settings(max_examples=30)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_facts_changes_no_estimate(answers, draw):
    tables = dict(zip(("original", "unlearned", "null"), np.array(answers, dtype=float).T, strict=True))
    order = np.arange(len(answers))
    shuffled = np.array(draw.sample(list(order), len(order)))
    for contrast in ({"original": 1.0, "unlearned": -1.0}, {"unlearned": 1.0, "null": -1.0}):
        first, _ = drawn_of(tables, order).combination(contrast)
        second, _ = drawn_of(tables, shuffled).combination(contrast)
        assert second == pytest.approx(first)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_more_answers_never_leak_less(counts):
    leaked, drawn = counts
    rates = [leak_at(leaked, drawn, k) for k in range(1, drawn + 1)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(leaked / drawn) and rates[-1] == float(leaked > 0)
