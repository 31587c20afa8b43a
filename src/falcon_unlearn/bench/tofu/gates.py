"""Conditions on the reference models of a table; where one fails, the table means nothing.

Thresholds: the acceptance gates of the small-scale protocol; a 1B target reaches probability .88, exact
memorisation .97 and extraction strength .71.
"""

from __future__ import annotations

from falcon_unlearn.bench.records import BenchResult, Gate

MINIMUM_FORGET_ROWS = 200
"""Below this, an untouched model passes for one that has forgotten."""

_MISSING = 0.0


def tofu_gates(
    target: BenchResult,
    retain: BenchResult,
    retain_replicate: BenchResult | None = None,
    base: BenchResult | None = None,
) -> list[Gate]:
    """Return gates G1 to G5; what was not measured fails and says so.

    Args:
        target: the model that was trained on everything.
        retain: retain model A, the reference of forget quality and PrivLeak.
        retain_replicate: retain model B, another seed, measured against A.
        base: the model before any training, measured against A.
    """
    return [
        *target_memory(target),
        *retain_innocence(target, retain),
        *forget_quality_resolution(target, retain_replicate),
        *membership_resolution(target, retain, retain_replicate),
        base_innocence(retain, base),
    ]


def target_memory(target: BenchResult) -> list[Gate]:
    """Return G1: the target knows what is to be forgotten."""
    return [
        _at_least("G1 target probability", target, "forget_probability", 0.8),
        _at_least("G1 target exact memorisation", target, "exact_memorisation", 0.95),
        _at_least("G1 target extraction strength", target, "extraction_strength", 0.5),
    ]


def retain_innocence(target: BenchResult, retain: BenchResult) -> list[Gate]:
    """Return G2: the retain model does not know it and is otherwise as useful."""
    utilities = [_value(result, "model_utility") for result in (target, retain)]
    name, condition = "G2 utility of target and retain model", "|difference of model utility| <= 0.03"
    if utilities[0] is None or utilities[1] is None:
        utility = _unmeasured(name, condition)
    else:
        gap = abs(utilities[0] - utilities[1])
        utility = Gate(name=name, passed=gap <= 0.03, value=gap, condition=condition)
    return [
        _at_most("G2 retain probability", retain, "forget_probability", 0.25),
        _at_most("G2 retain extraction strength", retain, "extraction_strength", 0.12),
        utility,
    ]


def forget_quality_resolution(target: BenchResult, retain_replicate: BenchResult | None) -> list[Gate]:
    """Return G3: forget quality tells the target from a retain model, and not two retain models."""
    found = target.metric("forget_quality")
    num_rows = found.num_items if found is not None else 0
    return [
        Gate(
            name="G3 forget rows",
            passed=num_rows >= MINIMUM_FORGET_ROWS,
            value=float(num_rows),
            condition=f">= {MINIMUM_FORGET_ROWS} questions, below that forget quality cannot rank",
        ),
        _at_most("G3 target forget quality", target, "forget_quality", 1e-6),
        _at_least("G3 replicate forget quality", retain_replicate, "forget_quality", 0.2),
    ]


def membership_resolution(
    target: BenchResult, retain: BenchResult, retain_replicate: BenchResult | None
) -> list[Gate]:
    """Return G4: the attack finds the members of the target only, and two retain models leak alike."""
    auc = "mia_min_k_auc"
    return [
        _at_least("G4 target AUC", target, auc, 0.95),
        _between("G4 retain AUC", retain, auc, (0.4, 0.6)),
        _between("G4 replicate PrivLeak", retain_replicate, "privleak", (-5.0, 5.0)),
    ]


def base_innocence(retain: BenchResult, base: BenchResult | None) -> Gate:
    """Return G5: the base model shows no memory; the value is its probability less the retain model's."""
    name, condition = "G5 base probability", "forget probability <= that of the retain model + 0.05"
    before, reference = _value(base, "forget_probability"), _value(retain, "forget_probability")
    if before is None or reference is None:
        return _unmeasured(name, condition)
    return Gate(name=name, passed=before <= reference + 0.05, value=before - reference, condition=condition)


def _at_least(name: str, result: BenchResult | None, metric: str, limit: float) -> Gate:
    return _between(name, result, metric, (limit, None))


def _at_most(name: str, result: BenchResult | None, metric: str, limit: float) -> Gate:
    return _between(name, result, metric, (None, limit))


def _between(
    name: str, result: BenchResult | None, metric: str, limits: tuple[float | None, float | None]
) -> Gate:
    low, high = limits
    parts = [f">= {low:g}" if low is not None else "", f"<= {high:g}" if high is not None else ""]
    condition = f"{metric} {' and '.join(filter(None, parts))}"
    value = _value(result, metric)
    if value is None:
        return _unmeasured(name, condition)
    passed = (low is None or value >= low) and (high is None or value <= high)
    return Gate(name=name, passed=passed, value=value, condition=condition)


def _value(result: BenchResult | None, metric: str) -> float | None:
    found = result.metric(metric) if result is not None else None
    return found.value if found is not None else None


def _unmeasured(name: str, condition: str) -> Gate:
    return Gate(name=name, passed=False, value=_MISSING, condition=f"{condition} (not measured)")
