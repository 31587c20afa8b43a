"""A whole table on pico models: every row is kept, tuning never looks at the reported authors."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from falcon_unlearn.bench import table as table_module
from falcon_unlearn.bench import tuning as trial_settings
from falcon_unlearn.bench.table import ResultTable, read_result, run_table
from falcon_unlearn.bench.tofu import tuning
from falcon_unlearn.bench.tofu.data import TofuData, TofuRow, author_rows
from falcon_unlearn.bench.tofu.prepare import prepare_tofu
from falcon_unlearn.bench.tofu.settings import official_setting, tofu_setting
from falcon_unlearn.bench.tofu.table import TofuBenchmark
from falcon_unlearn.bench.unlearning import method_recipe
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import UsageError
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
FAST = {"train.steps": 2, "train.batch_size": 4, "train.compute_dtype": "float32"}


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


@pytest.fixture(scope="module")
def filled(data, tmp_path_factory):
    """Fill a table with two trials of two steps for each method."""
    folder = tmp_path_factory.mktemp("tofu")
    base = ModelSettings(name=str(save_pico(folder / "base")))
    quick = FinetuneSettings(epochs=1, batch_size=64, compute_dtype="float32")
    models = prepare_tofu(base, data, SETTING, ignore_events, finetuning=quick, cache=folder / "cache")
    benchmark = TofuBenchmark(data, SETTING)
    table = ResultTable(folder / "table", models, benchmark, sink=ignore_events, trials=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_settings, "_SHARED", {"states": FAST, "outputs": FAST})
        return table, run_table(table, METHODS, [0, 1])


def test_every_row_is_kept_and_a_second_run_computes_nothing(filled, monkeypatch):
    table, results = filled
    labels = ["retain A", "target", "base", "retain B", "npo", "rmu", "npo", "rmu"]
    assert [row.label for row in results] == labels
    assert [row.seed for row in results[4:]] == [0, 0, 1, 1]

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed again")

    for name in ("unlearn_examples", "load_model"):
        monkeypatch.setattr(table_module, name, refuse)
    again = run_table(table, METHODS, [0, 1])
    assert [row.metrics for row in again] == [row.metrics for row in results]
    assert read_result(table.folder / "target.bench.json").gates


def test_every_method_gets_the_same_number_of_trials(filled):
    table, results = filled
    trials = {row.recipe["tuning trials"] for row in results[4:]}
    stored = [json.loads(path.read_text()) for path in (table.folder / "tuning").iterdir()]
    assert trials == {"2"} and {len(entry["trials"]) for entry in stored} == {2}


def test_the_report_uses_the_layer_that_was_tuned(filled):
    table, results = filled
    stored = json.loads((table.folder / "tuning" / "rmu.json").read_text())["trials"]
    best = max(stored, key=lambda entry: entry["score"])["settings"]
    assert {entry["settings"]["selection.layer"] for entry in stored} == {2, 3}
    rows = [row for row in results if row.label == "rmu"]
    assert {row.recipe["layer"] for row in rows} == {str(best["selection.layer"])}
    assert {row.recipe["train.relative_step"] for row in rows} == {str(best["train.relative_step"])}


def test_rows_name_what_was_trained_and_what_it_took(filled):
    _, results = filled
    for row in results[4:]:
        assert row.seconds["cache"] > 0 and row.seconds["train"] > 0 and row.seconds["evaluation"] > 0
        assert row.peak_memory_bytes == max(row.memory.values())
        assert set(row.memory) == {"unlearning", "evaluation"}
        assert int(row.recipe["trained parameters"]) > 0
    assert {row.recipe["layer"] for row in results[4:] if row.label == "npo"} == {"all"}


def test_compare_reads_the_table(filled):
    table, _ = filled
    (group,) = compare_results([table.folder]).groups
    assert {"npo", "rmu", "target", "retain A"} <= {row.label for row in group.rows}


@pytest.mark.parametrize("setting", [SETTING, tofu_setting("T-S"), tofu_setting("T-M")])
def test_tuning_never_sees_the_reported_authors(data, setting):
    authors = tuning.TuningAuthors.of(data, setting)
    reported = set(author_rows(data.full, setting.forget_authors))
    for part in (authors.forget, authors.retain, authors.checked, authors.unseen):
        assert part and not reported & set(part)
    assert not set(authors.forget) & set(authors.retain)
    assert set(authors.checked) < set(authors.retain)
    assert set(authors.unseen) <= set(author_rows(data.full, setting.holdout_authors))
    # As large a share as in the table, where that is affordable.
    assert len(authors.forget) == 20 * min(5, len(setting.forget_authors))


def test_a_setting_without_unseen_authors_cannot_be_tuned(data):
    with pytest.raises(UsageError, match="no unseen authors"):
        tuning.TuningAuthors.of(data, official_setting("forget01"))


def test_dotted_overrides_reach_the_recipe(tmp_path):
    recipe = method_recipe("npo", tmp_path, 3, {}, {"train.steps": 7, "objective.npo.beta": 0.5})
    assert (recipe.seed, recipe.train.steps, recipe.objective.npo.beta) == (3, 7, 0.5)
    assert recipe.train.parameters == "all"
