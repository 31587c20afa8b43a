"""Metrics from the per-question logs that open-unlearning published (Llama-3.2-1B-Instruct)."""

from __future__ import annotations

import pytest

from falcon_unlearn.bench.tofu.summary import tofu_metrics
from falcon_unlearn.metrics.open_unlearning_log import read_log
from shared_data import shared_data

_PREFIX = "tofu_Llama-3.2-1B-Instruct"


def _log(name):
    return read_log(shared_data("open_unlearning_eval_logs", f"{_PREFIX}_{name}.json"))


def _metrics(name, retain):
    found = tofu_metrics(_log(name), _log(retain) if retain else None)
    return {metric.name: metric for metric in found}


def test_the_target_on_forget10_has_its_published_numbers():
    found = _metrics("full_evals_forget10_TOFU_EVAL", "retain90_TOFU_EVAL")
    values = {name: metric.value for name, metric in found.items()}
    assert values["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-9)
    assert values["forget_quality_distance"] == pytest.approx(0.35)
    assert values["model_utility"] == pytest.approx(0.5991534707368931, rel=1e-7)
    assert values["privleak"] == pytest.approx(-99.45739100654656, rel=1e-7)
    rounded = {
        "forget_probability": 0.880,
        "forget_rouge_l": 0.820,
        "forget_truth_ratio": 0.476,
        "extraction_strength": 0.706,
        "exact_memorisation": 0.974,
        "mia_min_k_auc": 0.997,
        "retain_probability": 0.871,
        "real_authors_rouge_l": 0.797,
        "world_facts_truth_ratio": 0.620,
    }
    assert {name: round(values[name], 3) for name in rounded} == rounded
    assert found["privleak"].low < values["privleak"] < found["privleak"].high
    assert found["mia_reference_auc"].value == pytest.approx(0.99848125)


def test_the_aggregates_of_a_retain_model_are_enough_for_privleak():
    found = _metrics("full_evals_forget05_TOFU_EVAL", "retain95_TOFU_SUMMARY")
    assert found["privleak"].value == pytest.approx(-99.9921580771656, rel=1e-7)
    assert found["privleak"].low is None
    assert found["forget_quality"].value is None and found["forget_quality"].note


def test_a_retain_model_has_no_default_privleak():
    found = _metrics("retain90_TOFU_EVAL", None)
    assert found["privleak"].value is None and found["forget_quality"].value is None
    assert found["model_utility"].value == pytest.approx(0.5911246639353407, rel=1e-7)
    assert round(found["extraction_strength"].value, 3) == 0.059
