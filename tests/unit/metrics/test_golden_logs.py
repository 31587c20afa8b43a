"""Published logs of open-unlearning, where the benchmark data lie beside the project.

The numbers are the reference values of the benchmark specification (section 1.6).
"""

from __future__ import annotations

import numpy as np
import pytest

from falcon_unlearn.metrics.forget_quality import forget_quality
from falcon_unlearn.metrics.model_utility import model_utility
from falcon_unlearn.metrics.open_unlearning import (
    aggregate_log,
    disagreements,
    model_utility_samples,
    truth_ratios,
)
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.metrics.open_unlearning_samples import sample_disagreements
from falcon_unlearn.metrics.truth_ratio import forget_truth_ratio, knowledge_truth_ratio
from shared_data import shared_data

FULL_10 = "tofu_Llama-3.2-1B-Instruct_full_evals_forget10_TOFU_EVAL.json"
FULL_05 = "tofu_Llama-3.2-1B-Instruct_full_evals_forget05_TOFU_EVAL.json"
RETAIN_90 = "tofu_Llama-3.2-1B-Instruct_retain90_TOFU_EVAL.json"
RETAIN_95 = "tofu_Llama-3.2-1B-Instruct_retain95_TOFU_SUMMARY.json"
NEWS = "muse_Llama-2-7b-hf_News_target_MUSE_EVAL.json"
NEWS_RETRAIN = "muse_Llama-2-7b-hf_News_retrain_MUSE_SUMMARY.json"
ATTACKS = ("mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "mia_gradnorm")


def _log(name):
    return shared_data("open_unlearning_eval_logs", name)


@pytest.mark.parametrize("name", [FULL_10, FULL_05, RETAIN_90, NEWS])
def test_every_aggregate_agrees_with_its_samples(name):
    found = aggregate_log(_log(name))
    assert disagreements(found, relative=1e-12) == []
    missing = {metric for metric, entry in found.items() if entry.value is None}
    assert missing <= {"forget_quality", "privleak"}
    assert all(found[attack].value is not None for attack in ATTACKS)


@pytest.mark.parametrize("name", [FULL_10, FULL_05, RETAIN_90, NEWS])
def test_every_sample_follows_from_losses_and_texts(name):
    assert sample_disagreements(read_log(_log(name))) == []


@pytest.mark.parametrize(
    ("name", "reference", "metric", "value"),
    [
        (FULL_10, RETAIN_90, "forget_quality", 3.9054713571083378e-22),
        (FULL_10, RETAIN_90, "privleak", -99.45739100654656),
        (FULL_05, RETAIN_95, "privleak", -99.9921580771656),
        (NEWS, NEWS_RETRAIN, "privleak", -99.81108310247458),
        (FULL_10, None, "model_utility", 0.5991534707368931),
        (RETAIN_90, None, "model_utility", 0.5911246639353407),
        (RETAIN_90, RETAIN_90, "forget_quality", 1.0),
        (RETAIN_90, RETAIN_90, "privleak", 0.0),
    ],
)
def test_golden_values(name, reference, metric, value):
    found = aggregate_log(_log(name), _log(reference) if reference else None)[metric]
    assert found.value == pytest.approx(value, rel=1e-12)


def test_the_distance_behind_the_forget_quality():
    model, reference = (truth_ratios(read_log(_log(name)), "forget").values for name in (FULL_10, RETAIN_90))
    result = forget_quality(model, reference, generator=np.random.default_rng(0), paired=True)
    assert result.distance == pytest.approx(0.35)
    assert result.p_value == pytest.approx(3.9054713571083378e-22, rel=1e-12)
    assert result.method == "exact"
    assert 0.25 < result.interval.low < 0.35 < result.interval.high < 0.45
    assert knowledge_truth_ratio(model) == pytest.approx(0.685, abs=5e-4)
    assert knowledge_truth_ratio(reference) == pytest.approx(0.567, abs=5e-4)
    assert forget_truth_ratio(reference) == pytest.approx(0.6274597698541176, rel=1e-8)


def test_rows_of_another_split_as_reference():
    """The retain90 log holds the forget05 questions as rows 200 to 399, scored by another gold model."""
    model = truth_ratios(read_log(_log(FULL_05)), "forget").values
    reference = truth_ratios(read_log(_log(RETAIN_90)), "forget").values[200:]
    assert forget_quality(model, reference).p_value == pytest.approx(6.5e-13, rel=0.01)


def test_noise_of_model_utility():
    found = model_utility(
        model_utility_samples(read_log(_log(FULL_10))), generator=np.random.default_rng(0), num_resamples=1000
    )
    # Standard error .016 in the specification (section 1.7), rounded.
    assert (found.interval.high - found.interval.low) / (2 * 1.96) == pytest.approx(0.016, abs=0.0015)
    assert found.parts["world_facts/truth_ratio"] == pytest.approx(0.620, abs=5e-4)
    assert found.parts["retain/rouge_l_recall"] == pytest.approx(0.793, abs=5e-4)
