"""Where results are found, and what is refused."""

from __future__ import annotations

import copy
import json
import re

import pytest

from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.report.comparison import compare_results
from falcon_unlearn.report.comparison.sources import read_results


def labels(paths) -> list[str]:
    return [entry.result.label for entry in read_results(paths)]


def test_files_and_folders_one_level_deep_in_any_mix(make, save, tmp_path) -> None:
    single = tmp_path / "any-name.json"
    single.write_text(make("single", 0.1, 0.5).model_dump_json())
    save(make("one", 0.1, 0.5), make("two", 0.1, 0.5), folder="sweep")
    (tmp_path / "sweep" / "deeper").mkdir()
    save(make("three", 0.1, 0.5), folder="sweep/deeper")
    (tmp_path / "sweep" / "deeper" / "too-deep").mkdir()
    save(make("unseen", 0.1, 0.5), folder="sweep/deeper/too-deep")
    save(make("staged", 0.1, 0.5), folder="sweep/.new.partial-0")
    (tmp_path / "sweep" / "notes.json").write_text("{}")
    assert labels([single, tmp_path / "sweep"]) == ["single", "one", "two", "three"]


def test_file_reached_twice_counts_once(make, save, tmp_path) -> None:
    folder = save(make("one", 0.1, 0.5))
    (tmp_path / "link").symlink_to(folder)
    assert labels([folder, folder / "00.bench.json", tmp_path / "link"]) == ["one"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("[]", "no field `benchmark`"),
        ('{"sets": []}', "no field `benchmark`"),
        ('{"benchmark": "tofu", "version": 2}', "format version 2, this release reads version 1"),
        ('{"benchmark": "tofu", "version": true}', "format version True"),
        ('{"benchmark": "mmlu", "version": 1}', "benchmark: Input should be"),
        ('{"benchmark": "tofu", "version": 1}', "setting: Field required"),
    ],
)
def test_file_without_a_result_is_refused(tmp_path, content, words) -> None:
    file = tmp_path / "x.bench.json"
    file.write_text(content)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_results([file])
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_unknown_field_is_refused(make, tmp_path) -> None:
    values = make("A", 0.1, 0.5).model_dump() | {"verdict": "best"}
    (tmp_path / "x.bench.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="verdict"):
        read_results([tmp_path])


def test_file_that_is_not_text_is_refused(tmp_path) -> None:
    (tmp_path / "x.bench.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a JSON file"):
        read_results([tmp_path])


def test_nothing_to_read_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no result"):
        read_results([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no such file or folder"):
        read_results([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no such file or folder"):
        read_results([tmp_path / ("x" * 5000)])
    with pytest.raises(UsageError, match="nothing to compare"):
        read_results([])


def test_numbers_that_json_cannot_say_count_as_missing(make, tmp_path) -> None:
    text = make("A", 0.125, 0.5, half=-1).model_dump_json()
    (tmp_path / "a.bench.json").write_text(text.replace("0.125", "NaN"))
    (tmp_path / "b.bench.json").write_text(text.replace("0.125", "1e999").replace('"A"', '"B"'))
    rows = compare_results([tmp_path]).groups[0].rows
    assert [row.cell("extraction").value for row in rows] == [None, None]


def test_run_folder_gives_the_model_before_and_after(run, write) -> None:
    before, after = read_results([write(run)])
    assert (before.result.benchmark, before.result.role, before.result.label) == ("run", "target", "before")
    assert (after.result.role, after.result.label, after.result.seed) == ("unlearned", "falcon", 0)
    assert after.result.forget_axis == "symbols: choice, text"
    assert after.result.utility_axis == "capitals: choice, text"
    values = {metric.name: metric.value for metric in after.result.metrics}
    assert values["symbols: choice, text"] == 0.2625
    assert values["symbols_free: free answer"] == pytest.approx(1 / 60)
    assert values["general_text: perplexity"] == 36.52
    desired = {metric.name: metric.desired for metric in after.result.metrics}
    assert desired["symbols: choice, text"] == "lower"
    assert desired["capitals: choice, text"] == "higher"
    assert desired["general_text: perplexity"] == "lower"
    assert before.result.metric("symbols: choice, text").value == 0.9625
    group = compare_results([write(run)]).groups[0]
    assert group.title.startswith("Own data, model HuggingFaceTB/SmolLM2-135M-Instruct")
    assert group.rows[1].seconds_total == pytest.approx(0.6 + 17.3 + 9.4 + 27.9 + 1.2)
    assert group.rows[1].peak_memory_bytes == 1_420_000_000
    assert group.rows[1].equal_utility is True


@pytest.fixture
def several(run, write, tmp_path):
    """Write several runs of which each one is changed by a function, and return their folders."""

    def make_all(*changes):
        folders = []
        for number, change in enumerate(changes):
            records = copy.deepcopy(run)
            change(records)
            folders.append(write(records).rename(tmp_path / f"run-{number}"))
        return folders

    return make_all


def seed(number):
    def change(records):
        records["recipe.resolved.yaml"]["seed"] = number
        records["evaluation.after.json"]["sets"][0]["metrics"][0]["value"] = 0.25 + number / 100

    return change


def test_runs_that_differ_in_the_seed_are_averaged(several) -> None:
    group = compare_results(several(seed(0), seed(1))).groups[0]
    assert [(row.label, row.seeds) for row in group.rows] == [("before", [None]), ("falcon", [0, 1])]
    assert group.rows[1].cell("symbols: choice, text").value == pytest.approx(0.255)


def test_runs_with_other_settings_are_rows_of_their_own(several) -> None:
    def longer(records):
        records["recipe.resolved.yaml"]["train"] = {"steps": 99}

    group = compare_results(several(seed(0), longer)).groups[0]
    assert [row.label for row in group.rows] == ["before", "falcon (run-0)", "falcon (run-1)"]


def test_same_run_twice_is_refused(several) -> None:
    with pytest.raises(DataError, match="'falcon' with seed 0 appears twice"):
        compare_results(several(seed(0), seed(0)))


def test_runs_measured_on_other_items_are_not_mixed(several) -> None:
    def other_items(records):
        for when in ("before", "after"):
            for item in records[f"evaluation.{when}.json"]["sets"][0]["items"]:
                item["id"] += "-new"

    assert len(compare_results(several(seed(0), other_items)).groups) == 2


def test_original_model_measured_differently_is_noted(several) -> None:
    def noisy(records):
        seed(1)(records)
        records["evaluation.before.json"]["sets"][0]["metrics"][0]["value"] = 0.95

    group = compare_results(several(seed(0), noisy)).groups[0]
    assert group.rows[0].cell("symbols: choice, text").value == 0.9625
    assert any("with different values" in note for note in group.notes)


@pytest.mark.parametrize("missing", ["before", "after"])
def test_run_without_evaluation_is_refused(run, write, missing) -> None:
    del run[f"evaluation.{missing}.json"]
    with pytest.raises(DataError, match=f"holds no evaluation {missing}"):
        compare_results([write(run)])


@pytest.mark.parametrize(("role", "words"), [("forget", "to be kept"), ("general", "to be forgotten")])
def test_run_that_measures_one_side_only_is_refused(run, write, role, words) -> None:
    for when in ("before", "after"):
        for one in run[f"evaluation.{when}.json"]["sets"]:
            one["role"] = role
    with pytest.raises(DataError, match=words):
        compare_results([write(run)])


def test_run_on_texts_alone_is_compared_by_perplexity(run, write) -> None:
    for when in ("before", "after"):
        sets = run[f"evaluation.{when}.json"]["sets"]
        text = sets[-1]
        run[f"evaluation.{when}.json"]["sets"] = [text | {"name": "secret", "role": "forget"}, text]
    group = compare_results([write(run)]).groups[0]
    assert (group.forget_axis, group.utility_axis) == ("secret: perplexity", "general_text: perplexity")
    assert not group.higher_utility
    # Forgetting raises the perplexity of the secret, so that the cost is its negative.
    assert group.rows[1].forgetting_cost == -36.52
