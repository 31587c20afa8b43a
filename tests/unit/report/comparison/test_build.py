"""What the numbers of a comparison mean: grouping, seeds, the retain model, the target, the front."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.report.comparison import Comparison, Group, compare_results
from falcon_unlearn.report.comparison.build import build_group
from falcon_unlearn.report.comparison.picture import draw
from falcon_unlearn.report.comparison.sources import Entry
from falcon_unlearn.report.comparison.words import conclusions
from falcon_unlearn.results_bench import BenchMetric, BenchResult, Gate


def group_of(*results: BenchResult, tolerance: float = 0.02) -> Group:
    entries = [Entry(f"{number}.bench.json", result) for number, result in enumerate(results)]
    return build_group(entries, tolerance)


def cells(group: Group, metric: str = "extraction") -> dict[str, object]:
    return {row.label: row.cell(metric) for row in group.rows}


def test_benchmarks_and_settings_are_never_mixed(make, save) -> None:
    folder = save(
        make("NPO", 0.2, 0.5),
        make("NPO", 0.3, 0.5, setting={"split": "forget10"}),
        make("NPO", 0.4, 0.5, benchmark="muse"),
        make("RMU", 0.1, 0.6),
    )
    groups = compare_results([folder]).groups
    assert [(group.benchmark, group.setting["split"]) for group in groups] == [
        ("tofu", "forget05"),
        ("tofu", "forget10"),
        ("muse", "forget05"),
    ]
    assert [[row.label for row in group.rows] for group in groups] == [["NPO", "RMU"], ["NPO"], ["NPO"]]


def test_order_of_the_keys_of_a_setting_does_not_matter(make) -> None:
    one = make("NPO", 0.2, 0.5, setting={"a": "1", "b": "2"})
    other = make("RMU", 0.2, 0.5, setting={"b": "2", "a": "1"})
    assert len(group_of(one, other).rows) == 2


def test_models_to_compare_to_come_first_in_order(make, references) -> None:
    group = group_of(make("NPO", 0.2, 0.5), *references)
    assert [row.label for row in group.rows] == ["base", "target", "retain A", "retain B", "NPO"]
    assert (group.target, group.retain) == ("target", "retain A")


def test_seeds_of_a_label_are_averaged(make, references) -> None:
    seeds = [make("NPO", value, 0.5 + value, seed=seed) for seed, value in enumerate([0.12, 0.15, 0.21])]
    group = group_of(*seeds, *references)
    row = group.rows[-1]
    cell = row.cell("extraction")
    assert row.seeds == [0, 1, 2]
    assert cell.value == pytest.approx(0.16)
    assert (cell.minimum, cell.maximum, cell.num_seeds, cell.interval) == (0.12, 0.21, 3, "seeds")
    # Standard deviation 0.045826, t(0.975, 2) = 4.3027.
    half = 4.3027 * 0.0458258 / math.sqrt(3)
    assert (cell.low, cell.high) == pytest.approx((0.16 - half, 0.16 + half), abs=1e-4)
    assert cell.distance == pytest.approx(0.06)


def test_single_seed_shows_the_interval_over_items(make) -> None:
    cell = group_of(make("NPO", 0.2, 0.5, half=0.04)).rows[0].cell("extraction")
    assert (cell.low, cell.high) == pytest.approx((0.16, 0.24))
    assert (cell.interval, cell.num_seeds) == ("items", 1)
    bare = group_of(make("NPO", 0.2, 0.5, half=-1)).rows[0].cell("extraction")
    assert (bare.value, bare.low, bare.high, bare.interval) == (0.2, None, None, "none")


def test_over_forgetting_is_flagged_and_not_rewarded(make, references) -> None:
    group = group_of(
        *references,
        make("deep", 0.01, 0.58),
        make("right", 0.12, 0.58),
        make("shallow", 0.19, 0.58),
    )
    states = {label: cell.state for label, cell in cells(group).items()}
    assert (states["deep"], states["right"], states["shallow"]) == ("over-forgetting", "like retain", "")
    # The base model never saw the data: less knowledge is no fault of it.
    assert states["base"] == states["retain B"] == states["retain A"] == ""
    # 0.01 is as far from 0.10 as 0.19 is, and so costs the same.
    costs = {row.label: row.forgetting_cost for row in group.rows}
    assert costs["deep"] == pytest.approx(costs["shallow"]) == pytest.approx(0.09)
    assert {row.label: row.on_front for row in group.rows if not row.is_reference} == {
        "deep": False,
        "right": True,
        "shallow": False,
    }


def test_range_of_the_retain_models_includes_replicates_and_seeds(make, references) -> None:
    column = group_of(*references, make("retain A", 0.04, 0.6, role="retain", seed=7)).column("extraction")
    assert column.retain == pytest.approx(0.07)
    assert (column.retain_low, column.retain_high) == pytest.approx((0.01, 0.16))
    assert column.forgetting == "lower"


def test_side_of_forgetting_comes_from_the_target(make, make_metric, references) -> None:
    """A metric that rises with forgetting, such as a loss, is judged on its other side."""

    def loss(value: float) -> tuple[BenchMetric, ...]:
        return (make_metric("loss", value, "retain model"),)

    rows = [
        make("target", 0.7, 0.6, role="target", more=loss(0.5)),
        make("retain A", 0.1, 0.6, role="retain", more=loss(2.0)),
        make("deep", 0.1, 0.6, more=loss(9.0)),
        make("shallow", 0.1, 0.6, more=loss(1.0)),
    ]
    found = {label: cell.state for label, cell in cells(group_of(*rows), "loss").items()}
    assert (found["deep"], found["shallow"]) == ("over-forgetting", "")
    found = {label: cell.state for label, cell in cells(group_of(*rows[1:]), "loss").items()}
    assert (found["deep"], found["shallow"]) == ("outside retain", "outside retain")


def test_retain_model_without_an_interval(make) -> None:
    """Only the interval of the row can then tell a difference from noise."""
    retain = make("retain A", 0.10, 0.6, role="retain", half=-1)
    group = group_of(
        retain, make("near", 0.08, 0.6), make("far", 0.02, 0.6), make("bare", 0.09, 0.6, half=-1)
    )
    states = {label: cell.state for label, cell in cells(group).items()}
    assert (states["near"], states["far"], states["bare"]) == (
        "like retain",
        "over-forgetting",
        "over-forgetting",
    )


def test_group_without_a_retain_model_uses_the_value(make) -> None:
    group = group_of(
        make("target", 0.7, 0.6, role="target", desired="lower"),
        make("A", 0.05, 0.5, desired="lower"),
        make("B", 0.20, 0.6, desired="lower"),
        make("C", 0.25, 0.5, desired="lower"),
    )
    assert group.retain is None
    assert group.cost_name == "extraction"
    assert [row.forgetting_cost for row in group.rows[1:]] == [0.05, 0.20, 0.25]
    assert [row.on_front for row in group.rows] == [None, True, True, False]
    assert all(cell.distance is None and cell.state == "" for row in group.rows for cell in row.cells)
    assert any("no retain model" in note for note in group.notes)


def test_axes_where_the_other_direction_is_better(make) -> None:
    """Perplexity of forgotten text should rise, perplexity of kept text should not."""
    rows = [
        make("A", 90.0, 12.0, desired="higher", utility_desired="lower"),
        make("B", 40.0, 11.0, desired="higher", utility_desired="lower"),
        make("C", 30.0, 12.0, desired="higher", utility_desired="lower"),
    ]
    group = group_of(*rows)
    assert not group.higher_utility
    assert [row.on_front for row in group.rows] == [True, True, False]


def test_equal_utility_is_the_tolerance_around_the_target(make, references) -> None:
    rows = [make(str(utility), 0.12, utility) for utility in (0.57, 0.58, 0.6, 0.62, 0.63)]
    group = group_of(*references, *rows)
    assert [row.equal_utility for row in group.rows[4:]] == [False, True, True, True, False]
    assert all(row.equal_utility is None for row in group.rows[:4])
    assert [row.equal_utility for row in group_of(*references, *rows, tolerance=0.0).rows[4:]] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert all(row.equal_utility is None for row in group_of(*references[1:], *rows).rows)


def test_methods_at_equal_utility_are_ranked_by_cost(make, references) -> None:
    rows = [make("worse", 0.3, 0.6), make("better", 0.2, 0.59), make("cheater", 0.1, 0.3)]
    words = " ".join(conclusions(group_of(*references, *rows), 0.02))
    assert "better 0.100 and worse 0.200" in words
    assert "cheater" not in words.split("At equal utility")[1]
    words = " ".join(conclusions(group_of(*references, make("cheater", 0.1, 0.3)), 0.02))
    assert "No method keeps utility within 0.02 of target (0.600)" in words


def test_missing_values_keep_their_row_and_say_why(make, make_metric, references) -> None:
    gone = make_metric("quality", None, "higher", note="needs 40 questions")
    group = group_of(*references, make("A", None, 0.5), make("B", 0.2, 0.5, more=(gone,)))
    rows = {row.label: row for row in group.rows}
    assert (rows["A"].forgetting_cost, rows["A"].on_front, rows["A"].utility) == (None, None, 0.5)
    assert rows["B"].on_front is True
    assert rows["B"].cell("quality").value is None
    assert "quality, B: needs 40 questions" in group.notes
    assert "Without a number on both axes, so not in the picture: A." in conclusions(group, 0.02)


def test_seed_without_a_value_is_counted(make) -> None:
    group = group_of(make("A", 0.2, 0.5, seed=0), make("A", None, 0.5, seed=1))
    cell = group.rows[0].cell("extraction")
    assert (cell.value, cell.num_seeds, cell.interval) == (0.2, 1, "items")
    assert any("1 of 2 seeds" in note for note in group.notes)


def test_retain_model_without_the_forget_metric_judges_nothing(make) -> None:
    group = group_of(make("retain A", None, 0.6, role="retain"), make("A", 0.2, 0.5))
    assert group.rows[1].forgetting_cost == 0.2
    assert group.cost_name == "extraction"


def test_cost_columns(make) -> None:
    seeds = [
        make(
            "NPO",
            0.2,
            0.5,
            seed=seed,
            seconds={"cache": 10.0, "train": 50.0 + 20 * seed, "evaluation": 500.0},
            peak_memory_bytes=1000 + seed,
            recipe={"learning_rate": "1e-5", "number of trials": "12"},
        )
        for seed in range(2)
    ]
    row = group_of(*seeds).rows[0]
    assert row.seconds == {"cache": 10.0, "train": 60.0, "evaluation": 500.0}
    assert (row.seconds_total, row.peak_memory_bytes, row.trials) == (70.0, 1001, 12)
    bare = group_of(make("NPO", 0.2, 0.5, recipe={"trials": "many"})).rows[0]
    assert (bare.seconds_total, bare.peak_memory_bytes, bare.trials) == (None, None, None)


def test_notes_and_failed_gates_are_told_with_their_rows(make, references) -> None:
    gates = [
        Gate(name="G2", passed=False, value=0.31, condition="at most 0.25"),
        Gate(name="G1", passed=True, value=1.0, condition="at least 0.9"),
    ]
    common = {"notes": ["stand-in data"]}
    group = group_of(
        make("target", 0.7, 0.6, role="target", **common),
        make("retain A", 0.1, 0.6, role="retain", **common),
        make("NPO", 0.2, 0.5, seed=3, gates=gates, notes=["stand-in data", "stopped early"]),
    )
    assert group.failed_gates == ["NPO, seed 3: G2 is 0.31, needed: at most 0.25"]
    assert group.notes == ["stand-in data", "NPO: stopped early"]


def test_one_note_for_many_metrics(make, make_metric) -> None:
    more = tuple(make_metric(f"subject {number}", 0.5, "none", note="part of all") for number in range(57))
    notes = group_of(make("A", 0.2, 0.5, more=more)).notes
    assert [note for note in notes if "part of all" in note] == [
        "subject 0, subject 1, subject 2, subject 3 and 53 more: part of all"
    ]


def test_reasons_not_to_compare_are_notes(make, references) -> None:
    rows = [
        make(
            "A", 0.2, 0.5, seed=seed, data={"q.json": "a" * 8}, recipe={"lr": str(seed)},
            hardware="two cores", seconds={"train": 1.0}, versions={"torch": "2.13"},
        )
        for seed in range(2)
    ]  # fmt: skip
    rows.append(
        make(
            "B", 0.2, 0.5, data={"q.json": "b" * 8}, hardware="a GPU", seconds={"train": 1.0},
            versions={"torch": "2.14"},
        )
    )  # fmt: skip
    notes = "\n".join(group_of(*references, *rows).notes)
    for expected in (
        "q.json is not the same file in all rows: aaaaaaaa (A); bbbbbbbb (B)",
        "A: its seeds differ in lr",
        "versions differ: torch 2.13 (A); torch 2.14 (B)",
        "times were measured on different machines: two cores (A); a GPU (B)",
    ):
        assert expected in notes
    notes = "\n".join(group_of(*references, make("retain C", 0.1, 0.6, role="retain")).notes)
    assert "retain A and retain C all have the role retain; measured against retain A" in notes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "NPO", "seed": 0}, "'NPO' with seed 0 appears twice"),
        ({"label": "NPO", "seed": 1, "method": "rmu"}, "names two methods"),
        ({"forget_axis": "other"}, "forget_axis"),
        ({"utility_axis": "other"}, "utility_axis"),
        ({"desired": "lower"}, "metric 'extraction'"),
    ],
)
def test_contradictions_are_refused(make, save, change, words) -> None:
    first = make("NPO", 0.2, 0.5, seed=0)
    second = make(change.pop("label", "RMU"), 0.3, 0.5, **change)
    with pytest.raises(DataError, match=words) as caught:
        compare_results([save(first, second)])
    assert "00.bench.json" in caught.value.message and "01.bench.json" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_impossible_tolerance_is_refused(make, save, tolerance) -> None:
    with pytest.raises(UsageError, match="utility tolerance"):
        compare_results([save(make("NPO", 0.2, 0.5))], utility_tolerance=tolerance)


def test_record_can_be_read_back(make, save, references) -> None:
    comparison = compare_results([save(*references, make("A", None, 0.5), make("B", 0.2, 0.5))])
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
    assert "NaN" not in json.dumps(comparison.model_dump(mode="json"))


NUMBER = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 0.1, 0.5])


@given(retain=st.none() | st.sampled_from([0.1, 0.3]), values=st.lists(st.tuples(NUMBER, NUMBER), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_front_of_any_group_is_what_brute_force_finds(make, retain, values) -> None:
    """Whatever the numbers: every row stays, and the front is that of the rows with two usable numbers."""
    rows = [make(f"m{index}", *pair, half=-1) for index, pair in enumerate(values)]
    references = [] if retain is None else [make("retain", retain, 0.5, role="retain", half=-1)]
    group = group_of(*references, *rows)
    assert len(group.rows) == len(references) + len(rows)
    good = {
        f"m{index}": (forget if retain is None else abs(forget - retain), utility)
        for index, (forget, utility) in enumerate(values)
        if all(value is not None and abs(value) <= 1e100 for value in (forget, utility))
    }
    expected = {
        label: not any(o[0] <= p[0] and o[1] >= p[1] and o != p for o in good.values())
        for label, p in good.items()
    }
    found = {row.label: row.on_front for row in group.rows if not row.is_reference}
    assert {label: flag for label, flag in found.items() if flag is not None} == expected
    assert draw(group, 0.02) is not None or not (good or references)
