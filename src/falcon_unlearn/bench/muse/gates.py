"""Conditions without which a table of the small tiers means nothing (pure functions of results).

A failed gate is answered by more training (a higher rate, more epochs), not by a looser gate.
"""

from __future__ import annotations

from falcon_unlearn.bench.records import BenchResult, Gate
from falcon_unlearn.errors import DataError

SMALLEST_VERBMEM = 0.45
"""The 7B target of MUSE reaches .58, its retrained model .20."""
VERBMEM_RATIO = 2.0
SMALLEST_TARGET_AUC = 0.95
RETAIN_AUC = (0.4, 0.6)
BASE_AUC = (0.45, 0.55)
LARGEST_REPLICATE_PRIVLEAK = 10.0
SMALLEST_KNOWMEM_GAP = 0.1
NOT_MEASURABLE = (
    "KnowMem is not measurable at this scale: the target knows no more answers than the retrained model."
)


def muse_gates(
    target: BenchResult,
    retain: BenchResult,
    *,
    replicate: BenchResult | None = None,
    base: BenchResult | None = None,
) -> list[Gate]:
    """Judge a set of start models; gates of models that are not given are left out.

    Args:
        target: Trained on forget and retain texts.
        retain: Trained on retain texts only; the reference.
        replicate: The same with another seed.
        base: Trained on neither.

    Raises:
        DataError: A needed metric is absent, or the settings differ.
    """
    others = [result for result in (retain, replicate, base) if result is not None]
    for other in others:
        _check_same_setting(target, other)
    verbmem, retain_verbmem = _value(target, "verbmem_rouge"), _value(retain, "verbmem_rouge")
    gates = [
        memorised_gate(verbmem),
        memorised_ratio_gate(verbmem, retain_verbmem),
        target_auc_gate(_value(target, "min_k_auc")),
        retain_auc_gate(_value(retain, "min_k_auc")),
    ]
    if replicate is not None:
        gates.append(replicate_gate(_value(replicate, "privleak")))
    if base is not None:
        gates.append(base_auc_gate(_value(base, "min_k_auc")))
    known = [result.metric("knowmem_forget_rouge") for result in (target, retain)]
    values = [metric.value for metric in known if metric is not None and metric.value is not None]
    if len(values) == 2:
        gates.append(knowledge_gate(values[0], values[1]))
    return gates


def memorised_gate(target: float) -> Gate:
    """Ask whether the target recites the forget texts."""
    return Gate(
        name="VerbMem of the target",
        passed=target >= SMALLEST_VERBMEM,
        value=target,
        condition=f">= {SMALLEST_VERBMEM:g}",
    )


def memorised_ratio_gate(target: float, retain: float) -> Gate:
    """Ask whether the target recites them much better than the retrained model guesses them."""
    return Gate(
        name="VerbMem of the target less twice that of the retrained model",
        passed=target >= VERBMEM_RATIO * retain,
        value=target - VERBMEM_RATIO * retain,
        condition=">= 0",
    )


def target_auc_gate(auc: float) -> Gate:
    """Ask whether membership shows in the target."""
    return Gate(
        name="Min-K AUC of the target",
        passed=auc >= SMALLEST_TARGET_AUC,
        value=auc,
        condition=f">= {SMALLEST_TARGET_AUC:g}",
    )


def retain_auc_gate(auc: float) -> Gate:
    """Ask whether forget and holdout texts are alike for a model that saw neither."""
    return _between("Min-K AUC of the retrained model", auc, RETAIN_AUC)


def base_auc_gate(auc: float) -> Gate:
    """Ask whether the pretraining data held both sides equally: its crawl may contain news articles."""
    return _between("Min-K AUC of the base model", auc, BASE_AUC)


def replicate_gate(privleak: float) -> Gate:
    """Ask whether a second retrained model lies near the zero of PrivLeak."""
    return Gate(
        name="|PrivLeak| of the second retrained model",
        passed=abs(privleak) <= LARGEST_REPLICATE_PRIVLEAK,
        value=abs(privleak),
        condition=f"<= {LARGEST_REPLICATE_PRIVLEAK:g}",
    )


def knowledge_gate(target: float, retain: float) -> Gate:
    """Ask whether KnowMem measures anything; where it does not, the condition says `NOT_MEASURABLE`."""
    passed = target - retain >= SMALLEST_KNOWMEM_GAP
    return Gate(
        name="KnowMem of the target less that of the retrained model",
        passed=passed,
        value=target - retain,
        condition=f">= {SMALLEST_KNOWMEM_GAP:g}" + ("" if passed else f". {NOT_MEASURABLE}"),
    )


def _between(name: str, value: float, bounds: tuple[float, float]) -> Gate:
    low, high = bounds
    return Gate(name=name, passed=low <= value <= high, value=value, condition=f"{low:g} to {high:g}")


def _value(result: BenchResult, name: str) -> float:
    metric = result.metric(name)
    if metric is None or metric.value is None:
        raise DataError(
            f"result {result.label!r} has no {name}, which the gates need",
            hint="evaluate it with VerbMem and membership texts; the replicate with the first retrained "
            "model as reference",
        )
    return metric.value


def _check_same_setting(first: BenchResult, second: BenchResult) -> None:
    if first.setting != second.setting:
        names = sorted(
            key
            for key in first.setting.keys() | second.setting.keys()
            if first.setting.get(key) != second.setting.get(key)
        )
        raise DataError(
            f"{first.label!r} and {second.label!r} differ in {', '.join(names)}",
            hint="compare models on the same tier, seed and texts",
        )
