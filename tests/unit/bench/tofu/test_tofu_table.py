"""A whole table on pico models: every row is kept, tuning never looks at the reported authors."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from falcon_unlearn.bench.tofu import table as table_module
from falcon_unlearn.bench.tofu import tuning
from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, author_rows, forget_rows
from falcon_unlearn.bench.tofu.prepare import prepare_tofu
from falcon_unlearn.bench.tofu.settings import tofu_setting
from falcon_unlearn.bench.tofu.table import TofuTable, read_result, run_table
from falcon_unlearn.bench.tofu.training import method_recipe
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.events import ignore_events
from falcon_unlearn.report.comparison import compare_results
from falcon_unlearn.training.finetune import FinetuneSettings
from pico_files import save_pico

SETTING = replace(
    tofu_setting("T-S"),
    retain_authors=tuple(range(12)),
    holdout_authors=(100,),
    retain_rows=4,
    maximum_new_tokens=3,
)
METHODS = ["npo", "rmu"]
FAST = {"train.steps": 2, "train.batch_size": 4}


def rows(name: str, count: int, num_wrong: int = 0) -> tuple[TofuRow, ...]:
    draw = random.Random(name)

    def word() -> str:
        return "".join(draw.choices("abcdefg", k=4))

    return tuple(
        TofuRow(f"{word()}?", word(), word() if num_wrong else None, tuple(word() for _ in range(num_wrong)))
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def data() -> TofuData:
    return TofuData(
        "forget01", rows("full", 4000), rows("f", 4, 5), rows("r", 4, 5), rows("ra", 3, 3), rows("wf", 3, 3),
        None, {},
    )  # fmt: skip


@pytest.fixture
def filled(data, tmp_path, monkeypatch):
    """Fill a table with one trial of two steps for each method."""
    monkeypatch.setattr(tuning, "_SHARED_STATES", {**FAST, "train.learning_rate": 1e-3, "selection.layer": 3})
    monkeypatch.setattr(tuning, "_SHARED_OUTPUTS", FAST)
    base = ModelSettings(name=str(save_pico(tmp_path / "base")))
    quick = FinetuneSettings(epochs=1, batch_size=64, compute_dtype="float32")
    models = prepare_tofu(base, data, SETTING, ignore_events, finetuning=quick, cache=tmp_path / "cache")
    table = TofuTable(tmp_path / "table", models, data, SETTING, retain_rows=None, sink=ignore_events)
    return table, run_table(table, METHODS, [0, 1])


def test_every_row_is_kept_and_a_second_run_computes_nothing(filled, monkeypatch):
    table, results = filled
    labels = ["retain A", "target", "base", "retain B", "npo", "rmu", "npo", "rmu"]
    assert [row.label for row in results] == labels
    assert [row.seed for row in results[4:]] == [0, 0, 1, 1]

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed again")

    for name in ("evaluate_tofu", "unlearn_rows", "load_model"):
        monkeypatch.setattr(table_module, name, refuse)
    again = run_table(table, METHODS, [0, 1])
    assert [row.metrics for row in again] == [row.metrics for row in results]
    assert read_result(table.folder / "target.bench.json").gates


def test_every_method_gets_the_same_number_of_trials(filled):
    table, results = filled
    trials = {row.recipe["tuning trials"] for row in results[4:]}
    stored = [json.loads(path.read_text()) for path in (table.folder / "tuning").iterdir()]
    assert trials == {"2"} and {len(entry["scores"]) for entry in stored} == {2}


def test_rows_name_what_was_trained_and_how_long_it_took(filled):
    _, results = filled
    for row in results[4:]:
        assert row.seconds["train"] > 0 and row.seconds["evaluation"] > 0
        assert int(row.recipe["trained parameters"]) > 0
    layers = {row.label: row.recipe["layer"] for row in results[4:]}
    assert layers == {"npo": "all", "rmu": "3"}


def test_compare_reads_the_table(filled):
    table, _ = filled
    (group,) = compare_results([table.folder]).groups
    assert {"npo", "rmu", "target", "retain A"} <= {row.label for row in group.rows}


def test_tuning_never_sees_the_reported_authors(data):
    authors = tuning.TuningAuthors.of(data, SETTING)
    reported = set(forget_rows(data, SETTING))
    for part in (authors.forget, authors.retain, authors.checked, authors.unseen):
        assert part and not reported & set(part)
    assert not set(authors.forget) & set(authors.retain)
    assert set(authors.checked) <= set(authors.retain)
    assert set(authors.unseen) == set(author_rows(data.full, SETTING.holdout_authors))


def test_a_trial_that_removes_more_than_unseen_earns_nothing_extra():
    reference = tuning._Probabilities(forget=0.9, checked=0.8, unseen=0.1)
    exact = tuning._score(tuning._Probabilities(0.1, 0.8, 0.0), reference)
    beyond = tuning._score(tuning._Probabilities(0.0, 0.8, 0.0), reference)
    harmful = tuning._score(tuning._Probabilities(0.1, 0.2, 0.0), reference)
    assert exact == beyond == pytest.approx(1.0)
    assert harmful == pytest.approx(2 * 0.25 / 1.25)
    assert tuning._score(reference, reference) == 0


def test_dotted_overrides_reach_the_recipe(tmp_path):
    recipe = method_recipe("npo", tmp_path, 3, {"train.steps": 7, "objective.npo.beta": 0.5})
    assert (recipe.seed, recipe.train.steps, recipe.objective.npo.beta) == (3, 7, 0.5)
    assert recipe.train.parameters == "all"
