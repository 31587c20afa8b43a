from __future__ import annotations

import pytest

from falcon_unlearn.bench.muse import gates
from falcon_unlearn.bench.records import BenchMetric, BenchResult
from falcon_unlearn.errors import DataError


def _result(role="target", setting=None, **values):
    return BenchResult(
        benchmark="muse",
        setting=setting or {"tier": "M-S"},
        role=role,
        label=role,
        model="m",
        metrics=[BenchMetric(name=name, value=value) for name, value in values.items()],
        forget_axis="verbmem_rouge",
        utility_axis="retain2_probability",
    )


@pytest.mark.parametrize(
    ("gate", "values", "passed"),
    [
        (gates.memorised_gate, (0.45,), True),
        (gates.memorised_gate, (0.449,), False),
        (gates.memorised_ratio_gate, (0.5, 0.25), True),
        (gates.memorised_ratio_gate, (0.5, 0.26), False),
        (gates.target_auc_gate, (0.95,), True),
        (gates.target_auc_gate, (0.94,), False),
        (gates.retain_auc_gate, (0.4,), True),
        (gates.retain_auc_gate, (0.61,), False),
        (gates.base_auc_gate, (0.55,), True),
        (gates.base_auc_gate, (0.44,), False),
        (gates.replicate_gate, (-10.0,), True),
        (gates.replicate_gate, (10.5,), False),
        (gates.knowledge_gate, (0.5, 0.3), True),
        (gates.knowledge_gate, (0.35, 0.3), False),
    ],
)
def test_each_gate_opens_at_its_condition(gate, values, passed):
    assert gate(*values).passed is passed


def test_models_that_are_not_given_have_no_gates():
    target = _result(verbmem_rouge=0.6, min_k_auc=0.99, knowmem_forget_rouge=0.5)
    retain = _result("retain", verbmem_rouge=0.2, min_k_auc=0.5, knowmem_forget_rouge=0.3)
    found = gates.muse_gates(target, retain)
    assert len(found) == 5 and all(gate.passed for gate in found)
    replicate = _result("retain_replicate", privleak=12.0)
    base = _result("base", min_k_auc=0.5)
    found = gates.muse_gates(target, retain, replicate=replicate, base=base)
    assert [gate.name for gate in found if not gate.passed] == ["|PrivLeak| of the second retrained model"]


def test_knowmem_is_judged_only_where_it_was_measured():
    target = _result(verbmem_rouge=0.6, min_k_auc=0.99, knowmem_forget_rouge=None)
    retain = _result("retain", verbmem_rouge=0.2, min_k_auc=0.5, knowmem_forget_rouge=None)
    assert not any("KnowMem" in gate.name for gate in gates.muse_gates(target, retain))


def test_a_missing_metric_or_another_setting_is_refused():
    target = _result(verbmem_rouge=0.6, min_k_auc=0.99)
    with pytest.raises(DataError, match="'retain' has no min_k_auc"):
        gates.muse_gates(target, _result("retain", verbmem_rouge=0.2, min_k_auc=None))
    other = _result("retain", {"tier": "M-M"}, verbmem_rouge=0.2, min_k_auc=0.5)
    with pytest.raises(DataError, match="differ in tier"):
        gates.muse_gates(target, other)
