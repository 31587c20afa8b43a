from __future__ import annotations

import json
import sys
import types

import pytest

from falcon_unlearn.bench.tofu.data import (
    forget_rows,
    holdout_rows,
    load_tofu,
    question_examples,
    retained_rows,
    target_rows,
)
from falcon_unlearn.bench.tofu.settings import author_ranges, official_setting, tofu_setting
from falcon_unlearn.errors import DataError, PrerequisiteError, UsageError
from shared_data import shared_data

_FILES = ("full", "forget05_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")


def _raw(name):
    return [json.loads(line) for line in (shared_data("tofu") / f"{name}.json").read_text().splitlines()]


@pytest.fixture
def copy(tmp_path):
    """Return a function that lays out a folder of the real files with some rows replaced."""

    def make(**replaced):
        for name in _FILES:
            rows = replaced.get(name, None) or _raw(name)
            # `/` as `\/` and no final newline, as in the published files.
            text = "\n".join(json.dumps(row).replace("/", "\\/") for row in rows)
            (tmp_path / f"{name}.json").write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(("split", "rows"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_canonical_files_load_without_remarks(split, rows):
    data = load_tofu(shared_data("tofu"), split)
    assert (len(data.full), len(data.forget), len(data.retain)) == (4000, rows, 400)
    assert (len(data.real_authors), len(data.world_facts), data.holdout) == (100, 117, None)
    assert data.notes == ()
    assert [(row.question, row.answer) for row in data.forget] == [
        (row["question"], row["answer"]) for row in _raw(split)
    ]
    assert {len(row.perturbed_answers) for row in data.forget + data.retain} == {5}
    assert all(row.paraphrased_answer and row.paraphrased_question for row in data.forget + data.retain)
    assert {len(row.perturbed_answers) for row in data.real_authors + data.world_facts} == {3}
    assert all(row.paraphrased_answer is None for row in data.real_authors + data.world_facts)
    assert len(data.files) == 5 and all("rows)" in text for text in data.files.values())


def test_settings_choose_the_rows_of_the_specification():
    raw = _raw("full")
    expected = {
        "T-S": (range(3960, 4000), [*range(200), *range(400, 560)], range(2000, 2040)),
        "T-M": (range(3800, 4000), range(1000), range(2000, 2200)),
        "T-L": (range(3600, 4000), [*range(2000), *range(2200, 3600)], range(2000, 2200)),
        "full": (range(3600, 4000), range(3600), []),
    }
    for tier, (forget, retain, holdout) in expected.items():
        setting = tofu_setting(tier)
        data = load_tofu(shared_data("tofu"), setting.forget)
        for rows, numbers in (
            (forget_rows(data, setting), forget),
            (retained_rows(data, setting), retain),
            (target_rows(data, setting), [*retain, *forget]),
            (holdout_rows(data, setting), holdout),
        ):
            assert [(row.question, row.answer) for row in rows] == [
                (raw[number]["question"], raw[number]["answer"]) for number in numbers
            ]
        assert setting.num_forget_rows == len(data.forget)


def test_examples_are_questions_with_answers():
    data = load_tofu(shared_data("tofu"), "forget01")
    example = question_examples(data.full[:1])[0]
    assert (example.prompt, example.completion, example.is_question) == (
        data.full[0].question,
        data.full[0].answer,
        True,
    )


def test_the_continual_variant_is_refused(copy):
    rows = [
        {**row, "task_id": str(1 + index // 200)} for index, row in enumerate(_raw("forget05_perturbed") * 10)
    ]
    with pytest.raises(DataError, match=r"forget05_perturbed has 2000 rows instead of 200.*continual"):
        load_tofu(copy(forget05_perturbed=rows), "forget05")


def test_a_task_id_is_refused_even_with_the_right_number_of_rows(copy):
    rows = [{**row, "task_id": "1"} for row in _raw("forget05_perturbed")]
    with pytest.raises(DataError, match="continual"):
        load_tofu(copy(forget05_perturbed=rows), "forget05")


def test_other_row_counts_need_no_real_data_to_be_refused(tmp_path):
    (tmp_path / "full.json").write_text(json.dumps({"question": "q", "answer": "a"}))
    with pytest.raises(DataError, match=r"full has 1 rows instead of 4000"):
        load_tofu(tmp_path, "forget05")


def test_another_order_is_refused(copy):
    with pytest.raises(DataError, match="full starts with another question"):
        load_tofu(copy(full=_raw("full")[::-1]), "forget05")
    rows = _raw("forget05_perturbed")
    rows[7], rows[8] = rows[8], rows[7]
    with pytest.raises(DataError, match="row 7 of forget05_perturbed is not row 3807 of full"):
        load_tofu(copy(forget05_perturbed=rows), "forget05")


def test_a_changed_answer_is_remarked(copy):
    rows = _raw("retain_perturbed")
    rows[3]["answer"] += " Changed."
    notes = load_tofu(copy(retain_perturbed=rows), "forget05").notes
    assert len(notes) == 1 and notes[0].startswith("retain_perturbed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": ["only one"]}, "perturbed_answer needs 5"),
        ({"answer": " "}, "answer must be a text"),
        ({"paraphrased_answer": None}, "paraphrased_answer must be a text"),
    ],
)
def test_a_malformed_row_is_named(copy, change, message):
    rows = _raw("forget05_perturbed")
    rows[1] |= change
    with pytest.raises(DataError, match=rf"forget05_perturbed.json, line 2: {message}"):
        load_tofu(copy(forget05_perturbed=rows), "forget05")


def test_a_missing_file_is_named(copy):
    folder = copy()
    (folder / "world_facts_perturbed.json").unlink()
    with pytest.raises(DataError, match="world_facts_perturbed is missing"):
        load_tofu(folder, "forget05")


def _fake_datasets(monkeypatch, load):
    class DatasetsError(Exception):
        pass

    module = types.ModuleType("datasets")
    module.load_dataset = load
    module.exceptions = types.SimpleNamespace(DatasetsError=DatasetsError)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_gives_the_same_data_and_its_holdout(monkeypatch):
    holdout = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(200)]

    def load(path, name, split):
        assert (path, split) == ("locuslab/TOFU", "train")
        return holdout if name == "holdout05" else _raw(name)

    local = load_tofu(shared_data("tofu"), "forget05")
    _fake_datasets(monkeypatch, load)
    hub = load_tofu("locuslab/TOFU", "forget05")
    assert (hub.full, hub.forget, hub.world_facts, hub.notes) == (
        local.full,
        local.forget,
        local.world_facts,
        (),
    )
    assert [row.answer for row in holdout_rows(hub, official_setting("forget05"))] == [
        row["answer"] for row in holdout
    ]
    assert {name: text for name, text in hub.files.items() if name != "holdout05.json"} == local.files


def test_an_unreachable_hub_is_a_prerequisite(monkeypatch):
    def load(path, name, split):
        raise ConnectionError("no route")

    _fake_datasets(monkeypatch, load)
    with pytest.raises(PrerequisiteError, match="cannot be reached"):
        load_tofu("locuslab/TOFU", "forget05")


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="forget07"):
        load_tofu(tmp_path, "forget07")
    with pytest.raises(DataError, match="no folder"):
        load_tofu(tmp_path / "absent", "forget05")
    with pytest.raises(UsageError, match="T-X"):
        tofu_setting("T-X")
    with pytest.raises(UsageError, match="forget07"):
        official_setting("forget07")


def test_settings_refuse_rows_that_nobody_was_trained_on():
    from dataclasses import replace

    small = tofu_setting("T-S")
    assert replace(small, retain_rows=200).retain_rows == 200
    for rows in (0, 201, 401):
        with pytest.raises(UsageError, match="retain_rows"):
            replace(small, retain_rows=rows)
    with pytest.raises(UsageError, match="two roles"):
        replace(small, holdout_authors=(5,))


def test_author_ranges_read_well():
    assert author_ranges([27, 0, 1, 2, 26, 40]) == "0-2, 26-27, 40"
    assert tofu_setting("T-L").describe()["retain_authors"] == "0-99, 110-179"
