from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

from falcon_unlearn.report.compare import Change, changes, sign_test
from falcon_unlearn.report.limits import general_limits
from falcon_unlearn.report.verdict import AUDIT_NOTE, Verdict, judge
from falcon_unlearn.results import EvaluationResult, Metric

CHANCE = 0.25


def metric(value: float, *, half: float = 0.08, name: str = "accuracy_text", **fields: Any) -> dict[str, Any]:
    base = {
        "name": name,
        "value": value,
        "low": value - half,
        "high": value + half,
        "interval": "wilson",
        "unit": "share",
        "chance": CHANCE if name.startswith("accuracy_t") else None,
        "desired": "unchanged",
        "num_items": 100,
    }
    return {**base, **fields}


def evaluation(label: str, **sets: tuple[str, list[dict[str, Any]]]) -> EvaluationResult:
    return EvaluationResult.model_validate(
        {
            "label": label,
            "model": "m",
            "seconds": 1.0,
            "sets": [
                {"name": name, "role": role, "kind": "choice", "num_items": 100, "metrics": metrics}
                for name, (role, metrics) in sets.items()
            ],
        }
    )


def verdict(forget: tuple[float, float], kept: tuple[float, float] | None = (0.9, 0.9)) -> Verdict:
    pair = []
    for index, label in enumerate(("before", "after")):
        sets = {"facts": ("forget", [metric(forget[index])])}
        if kept:
            sets["other"] = ("retain", [metric(kept[index])])
        pair.append(evaluation(label, **sets))
    return judge(changes(pair[0], pair[1], 0.95))


@pytest.mark.parametrize(
    ("forget", "kept", "level", "title"),
    [
        ((0.95, 0.26), (0.9, 0.9), "good", "no longer answered better than by guessing; nothing kept"),
        ((0.95, 0.26), (0.9, 0.89), "good", "nothing kept was measurably hurt"),
        ((0.95, 0.26), (0.9, 0.85), "mixed", "whether kept sets were hurt cannot be told"),
        ((0.95, 0.26), (0.9, 0.4), "bad", "but at a price: kept sets got worse"),
        ((0.95, 0.26), None, "mixed", "what was kept was not measured"),
        ((0.95, 0.60), (0.9, 0.9), "mixed", "partial: answers got worse, but not down to guessing"),
        ((0.95, 0.93), (0.9, 0.9), "bad", "Forgetting failed: the forget set is answered as before"),
        ((0.95, 0.93), (0.9, 0.3), "bad", "answered as before, and kept sets got worse"),
        ((0.95, 1.00), (0.9, 0.9), "bad", "Forgetting failed"),
        ((0.95, 0.05), (0.9, 0.9), "mixed", "worse than by guessing, which is too much"),
        ((0.27, 0.26), (0.9, 0.9), "unknown", "did not know the forget set either"),
    ],
)
def test_headline_follows_the_numbers(
    forget: tuple[float, float], kept: tuple[float, float] | None, level: str, title: str
) -> None:
    found = verdict(forget, kept)
    assert found.level == level
    assert title in found.title


def test_one_untouched_domain_spoils_the_verdict() -> None:
    before = evaluation("before", a=("forget", [metric(0.9)]), b=("forget", [metric(0.9)]))
    after = evaluation("after", a=("forget", [metric(0.25)]), b=("forget", [metric(0.9)]))
    found = judge(changes(before, after, 0.95))
    assert found.level == "mixed"
    assert "at least one forget set is answered as before" in found.title


def test_one_format_above_guessing_is_not_forgetting() -> None:
    free = {"name": "accuracy_generation", "chance": None}
    before = evaluation("before", a=("forget", [metric(0.9), metric(0.9, **free)]))
    after = evaluation("after", a=("forget", [metric(0.25), metric(0.7, **free)]))
    assert "partial" in judge(changes(before, after, 0.95)).title


def test_rising_perplexity_of_kept_text_is_a_loss() -> None:
    text = {"name": "perplexity", "unit": "per token", "half": 1.0}
    before = evaluation("before", a=("forget", [metric(0.9)]), t=("general", [metric(30.0, **text)]))
    for later, state in (
        (30.5, "intact"),
        (31.9, "unsure"),
        (36.0, "hurt"),
        (25.0, "intact"),
        (float("inf"), "hurt"),
    ):
        after = evaluation("after", a=("forget", [metric(0.25)]), t=("general", [metric(later, **text)]))
        assert judge(changes(before, after, 0.95)).kept == state, later


def test_forget_text_without_questions_is_not_evidence() -> None:
    text = {"name": "perplexity", "unit": "per token", "half": 1.0}
    pair = [evaluation(label, a=("forget", [metric(30.0, **text)])) for label in ("before", "after")]
    assert judge(changes(pair[0], pair[1], 0.95)).level == "unknown"


def test_no_verdict_claims_removal() -> None:
    assert "does not show that the knowledge was removed" in AUDIT_NOTE.replace("\n", " ")
    assert AUDIT_NOTE in general_limits()
    for after in (0.0, 0.25, 0.6, 0.95):
        found = verdict((0.95, after))
        assert not any(word in found.title.lower() for word in ("removed", "erased", "forgotten"))


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (6, 0), (5, 0), (9, 2), (30, 30), (0, 41), (2000, 1800)]
)
def test_sign_test_agrees_with_scipy(lost: int, gained: int) -> None:
    total = lost + gained
    expected = binomtest(lost, total).pvalue if total else 1.0
    assert sign_test(lost, gained) == pytest.approx(expected, rel=1e-9)


def _paired(moves: list[tuple[str, float, float]]) -> Change:
    sides = []
    for side in (1, 2):
        items = [
            {"id": str(i), "cluster": move[0], "metric": "accuracy_text", "value": move[side]}
            for i, move in enumerate(moves)
        ]
        value = sum(move[side] for move in moves) / len(moves)
        result = evaluation("before", s=("retain", [metric(value, half=0.2)])).model_dump()
        result["sets"][0]["items"] = items
        sides.append(EvaluationResult.model_validate(result))
    return changes(sides[0], sides[1], 0.95)[0]


def test_pairing_sees_what_overlapping_intervals_hide() -> None:
    change = _paired([(f"c{i}", 1.0, float(i >= 8)) for i in range(60)])
    assert (change.lost, change.gained) == (8, 0)
    assert change.after.high > change.before.low
    assert change.is_clear


def test_wordings_of_one_fact_count_once() -> None:
    change = _paired([("one fact", 1.0, 0.0)] * 8 + [(f"c{i}", 1.0, 1.0) for i in range(52)])
    assert (change.lost, change.gained) == (1, 0)
    assert not change.is_clear


def test_unpaired_changes_need_separate_intervals() -> None:
    wide = Metric.model_validate(metric(0.9, half=0.1))
    for later, clear in ((0.75, False), (0.69, True)):
        after = Metric.model_validate(metric(later, half=0.1))
        assert Change("s", "retain", wide, after, 0, 0, 0.05).is_clear is clear
