"""Small logs made here: aggregates by hand, missing parts, mismatched references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from falcon_unlearn.errors import DataError
from falcon_unlearn.metrics.model_utility import PARTS, model_utility
from falcon_unlearn.metrics.open_unlearning import aggregate_log, disagreements, model_utility_samples
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.metrics.open_unlearning_samples import sample_disagreements


def _metric(field, values, aggregate=None, order=None):
    rows = {str(index): {field: value} for index, value in enumerate(values)}
    keys = list(rows) if order is None else [str(index) for index in order]
    return {"agg_value": aggregate, "value_by_index": {key: rows[key] for key in keys}}


def _losses(losses, order=None):
    """Return a probability metric with one loss, or several, per sample."""
    rows = {}
    for index, loss in enumerate(losses):
        rows[str(index)] = {"prob": np.exp(-np.asarray(loss)).tolist(), "avg_loss": loss}
    keys = list(rows) if order is None else [str(index) for index in order]
    mean = float(np.exp(-np.asarray(losses)).mean())
    return {"agg_value": mean, "value_by_index": {key: rows[key] for key in keys}}


def _attack(forget, holdout, auc=None):
    return {
        "forget": _metric("score", forget),
        "holdout": _metric("score", holdout),
        "auc": auc,
        "agg_value": auc,
    }


def _rouge(pairs, field_values):
    rows = {}
    for index, ((truth, generation), values) in enumerate(zip(pairs, field_values, strict=True)):
        rows[str(index)] = {**values, "input": "", "ground_truth": truth, "generation": generation}
    return {"agg_value": None, "value_by_index": rows}


def _write(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture
def tofu():
    """Return a complete small TOFU log; no aggregate of the three derived metrics is in it."""
    generator = np.random.default_rng(0)
    entries = {}
    for name, number, options in (("forget", 12, 5), ("retain", 9, 5), ("ra", 7, 3), ("wf", 8, 3)):
        entries[f"{name}_Q_A_Prob"] = _losses(generator.gamma(2, 1, number).tolist())
        entries[f"{name}_Q_A_PERT_Prob"] = _losses(generator.gamma(2, 1, (number, options)).tolist())
        entries[f"{name}_Q_A_ROUGE"] = _metric("rougeL_recall", generator.random(number).tolist())
        if name in ("forget", "retain"):
            entries[f"{name}_Q_A_PARA_Prob"] = _losses(generator.gamma(2, 1, number).tolist())
    entries["mia_min_k"] = _attack(generator.normal(size=12).tolist(), generator.normal(size=12).tolist())
    return entries


def _ratios(entries, right, wrong):
    rows = entries[right]["value_by_index"]
    others = entries[wrong]["value_by_index"]
    return np.array(
        [math.exp(-np.mean(others[key]["avg_loss"])) / (rows[key]["prob"] + 1e-10) for key in rows]
    )


def test_everything_is_derived_from_losses(tmp_path, tofu):
    found = aggregate_log(_write(tmp_path / "log.json", tofu))
    parts = []
    for name, right in (("retain", "retain_Q_A_PARA_Prob"), ("ra", "ra_Q_A_Prob"), ("wf", "wf_Q_A_Prob")):
        rows = tofu[f"{name}_Q_A_Prob"]["value_by_index"].values()
        others = tofu[f"{name}_Q_A_PERT_Prob"]["value_by_index"].values()
        plain = np.array([row["prob"] for row in rows])
        total = plain + np.array([sum(row["prob"]) for row in others]) + 1e-10
        parts.append((plain if name == "retain" else plain / total).mean())
        rouge = tofu[f"{name}_Q_A_ROUGE"]["value_by_index"].values()
        parts.append(np.mean([row["rougeL_recall"] for row in rouge]))
        parts.append(np.maximum(0, 1 - _ratios(tofu, right, f"{name}_Q_A_PERT_Prob")).mean())
    assert found["model_utility"].value == pytest.approx(hmean(parts))
    assert found["model_utility"].published is None
    assert found["model_utility"].num_samples == 9 + 7 + 8
    assert "forget_quality" not in found
    assert disagreements(found) == []


def test_samples_for_model_utility(tmp_path, tofu):
    path = _write(tmp_path / "log.json", tofu)
    samples = model_utility_samples(read_log(path))
    assert set(samples) == set(PARTS)
    assert model_utility(samples).value == pytest.approx(aggregate_log(path)["model_utility"].value)


def test_forget_quality_and_privleak_with_a_reference(tmp_path, tofu):
    other = json.loads(json.dumps(tofu))
    other["forget_Q_A_PARA_Prob"] = _losses([2.5] * 12)
    other["mia_min_k"] = _attack([1.0, 2.0] * 6, [1.0, 3.0] * 6)
    paths = _write(tmp_path / "log.json", tofu), _write(tmp_path / "retain.json", other)
    found = aggregate_log(*paths)
    right, wrong = "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"
    expected = ks_2samp(_ratios(tofu, right, wrong), _ratios(other, right, wrong)).pvalue
    assert found["forget_quality"].value == pytest.approx(expected, rel=1e-12)
    # Of the pairs (1, 2) x (1, 3): one win against 1, one tie, two wins of 3: 2.5 of 4.
    own = aggregate_log(paths[0])["mia_min_k"].value
    assert found["privleak"].value == pytest.approx(100 * ((1 - own) - 0.375) / 0.375)
    summary = _write(tmp_path / "summary.json", {"mia_min_k": 0.625, "forget_Q_A_Prob": 0.1})
    from_summary = aggregate_log(paths[0], summary)
    assert from_summary["privleak"].value == found["privleak"].value
    assert "forget_quality" not in from_summary


def test_order_of_the_samples_does_not_matter(tmp_path):
    right, wrong = [0.1, 0.9, 2.0], [[1.0, 2.0], [0.5, 0.7], [3.0, 3.1]]
    entries = {
        "forget_Q_A_PARA_Prob": _losses(right),
        "forget_Q_A_PERT_Prob": _losses(wrong, order=[2, 0, 1]),
        "forget_truth_ratio": {"agg_value": None},
    }
    found = aggregate_log(_write(tmp_path / "log.json", entries))["forget_truth_ratio"]
    ratios = np.exp(np.array(right) - np.mean(wrong, axis=1))
    assert found.value == pytest.approx(np.minimum(ratios, 1 / ratios).mean(), rel=1e-8)


def test_which_rouge_is_averaged(tmp_path):
    values = [{"rouge1_recall": 0.9, "rougeL_f1": 0.2, "rougeL_recall": 0.6}]
    entries = {
        name: _rouge([("a", "a")], values)
        for name in ("forget_Q_A_ROUGE", "forget_verbmem_ROUGE", "retain_knowmem_ROUGE", "other_ROUGE")
    }
    found = aggregate_log(_write(tmp_path / "log.json", entries))
    assert [entry.value for entry in found.values()] == [0.6, 0.2, 0.2, None]


def test_missing_parts_give_no_value_but_a_reason(tmp_path, tofu):
    del tofu["wf_Q_A_PERT_Prob"]
    tofu |= {
        "model_utility": {"agg_value": 0.5},
        "forget_quality": {"agg_value": None},
        "privleak": {"agg_value": -3.0},
        "novel_measure": {"agg_value": 1.0},
        "extraction_strength": {"agg_value": 0.1},
    }
    found = aggregate_log(_write(tmp_path / "log.json", tofu))
    for name, reason in (
        ("model_utility", "world_facts/probability, world_facts/truth_ratio"),
        ("forget_quality", "retrained"),
        ("privleak", "retrained"),
        ("novel_measure", "not known"),
        ("extraction_strength", "no samples"),
    ):
        assert found[name].value is None
        assert found[name].num_samples == 0
        assert reason in found[name].note
    assert found["privleak"].published == -3.0
    assert disagreements(found) == []


def test_the_default_reference_of_a_half_is_recognised(tmp_path):
    entries = {"mia_min_k": _attack([1.0, 2.0], [1.0, 3.0]), "privleak": {"agg_value": -25.0}}
    found = aggregate_log(_write(tmp_path / "log.json", entries))
    assert "default, not a result" in found["privleak"].note


def test_samples_that_were_not_scored_are_left_out(tmp_path):
    entries = {
        "exact_memorization": _metric("score", [1.0, None, 0.5]),
        "forget_Q_A_Prob": _losses([0.0, 1.0]),
    }
    entries["forget_Q_A_Prob"]["value_by_index"]["1"] = None
    found = aggregate_log(_write(tmp_path / "log.json", entries))
    assert (found["exact_memorization"].value, found["exact_memorization"].num_samples) == (0.75, 2)
    assert (found["forget_Q_A_Prob"].value, found["forget_Q_A_Prob"].num_samples) == (1.0, 1)


def test_a_reference_on_other_questions_is_refused(tmp_path, tofu):
    shorter = json.loads(json.dumps(tofu))
    for name in ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"):
        shorter[name]["value_by_index"].pop("11")
    paths = _write(tmp_path / "log.json", tofu), _write(tmp_path / "retain.json", shorter)
    with pytest.raises(DataError, match=r"12 and 11.*"):
        aggregate_log(*paths)


def test_disagreements_are_listed(tmp_path):
    entries = {
        "exact_memorization": _metric("score", [0.5, 1.0], aggregate=0.75),
        "extraction_strength": _metric("score", [0.5, 1.0], aggregate=0.7501),
        "mia_loss": _attack([1.0], [2.0], auc=0.0),
    }
    found = disagreements(aggregate_log(_write(tmp_path / "log.json", entries)))
    assert [(entry.metric, round(entry.difference, 6)) for entry in found] == [
        ("extraction_strength", -0.0001),
        ("mia_loss", 1.0),
    ]


def test_a_wrong_tiny_p_value_is_a_disagreement(tmp_path, tofu):
    tofu["forget_Q_A_PARA_Prob"] = _losses([0.1] * 12)
    other = json.loads(json.dumps(tofu))
    other["forget_Q_A_PARA_Prob"] = _losses([30.0] * 12)
    tofu["forget_quality"] = {"agg_value": 1e-16}
    found = aggregate_log(_write(tmp_path / "log.json", tofu), _write(tmp_path / "retain.json", other))
    assert [entry.metric for entry in disagreements(found)] == ["forget_quality"]


def test_samples_are_checked_against_each_other(tmp_path, tofu):
    tofu["forget_truth_ratio"] = _metric(
        "score", _ratios(tofu, "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob").tolist()
    )
    values = [{"rouge1_recall": 1.0, "rougeL_f1": 1.0, "rougeL_recall": 1.0}] * 2
    tofu["retain_knowmem_ROUGE"] = _rouge([("two books", "two books"), ("a b", "a b")], values)
    path = tmp_path / "log.json"
    assert sample_disagreements(read_log(_write(path, tofu))) == []
    tofu["forget_truth_ratio"]["value_by_index"]["3"]["score"] += 0.01
    tofu["ra_Q_A_Prob"]["value_by_index"]["5"]["prob"] += 0.01
    tofu["retain_knowmem_ROUGE"]["value_by_index"]["1"]["generation"] = "b"
    found = sample_disagreements(read_log(_write(path, tofu)))
    assert {(entry.metric, entry.index) for entry in found} == {
        ("forget_truth_ratio", 3),
        ("ra_Q_A_Prob", 5),
        ("retain_knowmem_ROUGE/rouge1_recall", 1),
        ("retain_knowmem_ROUGE/rougeL_recall", 1),
        ("retain_knowmem_ROUGE/rougeL_f1", 1),
    }
    assert len(sample_disagreements(read_log(path), include_rouge=False)) == 2
