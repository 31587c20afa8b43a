from __future__ import annotations

import pytest

from falcon_unlearn.bench.records import BenchMetric, BenchResult
from falcon_unlearn.bench.tofu.gates import tofu_gates
from falcon_unlearn.bench.tofu.generating import distinct_share, repeated_share

_GOOD = {
    "target": {
        "forget_probability": 0.9,
        "exact_memorisation": 0.97,
        "extraction_strength": 0.7,
        "model_utility": 0.4,
        "forget_quality": 1e-12,
        "mia_min_k_auc": 0.99,
    },
    "retain": {
        "forget_probability": 0.12,
        "extraction_strength": 0.06,
        "model_utility": 0.41,
        "mia_min_k_auc": 0.52,
    },
    "retain_replicate": {"forget_quality": 0.9, "privleak": -1.0},
    "base": {"forget_probability": 0.1},
}


def _result(role, values, rows=200):
    metrics = [BenchMetric(name=name, value=value, num_items=rows) for name, value in values.items()]
    return BenchResult(
        benchmark="tofu",
        setting={},
        role=role,
        label=role,
        model="pico",
        metrics=metrics,
        forget_axis="extraction_strength",
        utility_axis="model_utility",
    )


def _gates(changes=None, rows=200, **absent):
    values = {role: dict(found) for role, found in _GOOD.items()}
    for (role, name), value in (changes or {}).items():
        values[role][name] = value
    results = {role: _result(role, found, rows) for role, found in values.items()} | absent
    return {
        gate.name: gate
        for gate in tofu_gates(
            results["target"], results["retain"], results["retain_replicate"], results["base"]
        )
    }


def test_good_models_pass_every_gate():
    gates = _gates()
    assert {name[:2] for name in gates} == {"G1", "G2", "G3", "G4", "G5"}
    assert all(gate.passed for gate in gates.values())


@pytest.mark.parametrize(
    ("role", "metric", "passing", "failing", "gate"),
    [
        ("target", "forget_probability", 0.8, 0.79, "G1 target probability"),
        ("target", "exact_memorisation", 0.95, 0.94, "G1 target exact memorisation"),
        ("target", "extraction_strength", 0.5, 0.49, "G1 target extraction strength"),
        ("retain", "forget_probability", 0.25, 0.26, "G2 retain probability"),
        ("retain", "extraction_strength", 0.12, 0.13, "G2 retain extraction strength"),
        ("retain", "model_utility", 0.371, 0.369, "G2 utility of target and retain model"),
        ("retain", "model_utility", 0.429, 0.431, "G2 utility of target and retain model"),
        ("target", "forget_quality", 1e-6, 2e-6, "G3 target forget quality"),
        ("retain_replicate", "forget_quality", 0.2, 0.19, "G3 replicate forget quality"),
        ("target", "mia_min_k_auc", 0.95, 0.94, "G4 target AUC"),
        ("retain", "mia_min_k_auc", 0.4, 0.39, "G4 retain AUC"),
        ("retain", "mia_min_k_auc", 0.6, 0.61, "G4 retain AUC"),
        ("retain_replicate", "privleak", -5.0, -5.1, "G4 replicate PrivLeak"),
        ("retain_replicate", "privleak", 5.0, 5.1, "G4 replicate PrivLeak"),
        ("base", "forget_probability", 0.16, 0.18, "G5 base probability"),
    ],
)
def test_each_threshold(role, metric, passing, failing, gate):
    assert _gates({(role, metric): passing})[gate].passed
    failed = [found.name for found in _gates({(role, metric): failing}).values() if not found.passed]
    assert failed == [gate]


def test_forty_questions_cannot_rank():
    gates = _gates(rows=40)
    assert [name for name, gate in gates.items() if not gate.passed] == ["G3 forget rows"]
    assert gates["G3 forget rows"].value == 40


def test_what_was_not_measured_fails_and_says_so():
    gates = _gates({("retain", "mia_min_k_auc"): None}, retain_replicate=None, base=None)
    failed = {name: gate for name, gate in gates.items() if not gate.passed}
    assert set(failed) == {
        "G3 replicate forget quality",
        "G4 retain AUC",
        "G4 replicate PrivLeak",
        "G5 base probability",
    }
    assert all("not measured" in gate.condition for gate in failed.values())


def test_shares_of_repeated_words():
    text = "a b a b a b"
    assert distinct_share(text, 2) == pytest.approx(2 / 5)
    assert repeated_share(text, 4) == pytest.approx(1 / 3)
    assert (distinct_share("", 2), repeated_share("one two", 4)) == (0.0, 0.0)
    assert distinct_share("The the dog", 2) == 1.0
