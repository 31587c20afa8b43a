"""A whole MUSE table on pico models and invented articles: prepared, tuned, judged, with curves."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from falcon_unlearn.bench import table as table_module
from falcon_unlearn.bench import tuning as trial_settings
from falcon_unlearn.bench.muse.curve_runs import CurveRuns
from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.evaluate import MuseSettings
from falcon_unlearn.bench.muse.prepare import FINETUNING, muse_tier, prepare_muse
from falcon_unlearn.bench.muse.privacy import membership_texts
from falcon_unlearn.bench.muse.small import Tier, small_muse
from falcon_unlearn.bench.muse.table import MuseBenchmark
from falcon_unlearn.bench.muse.tuning import TuningTexts
from falcon_unlearn.bench.table import ResultTable, run_table
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.events import Notice
from falcon_unlearn.report.comparison import compare_results
from muse_files import invented_article, write_news
from pico import pico_model, pico_tokenizer
from pico_files import save_pico

FAST = {"train.steps": 2, "train.batch_size": 2, "train.compute_dtype": "float32"}
TOKENS = Subject(None, pico_tokenizer())


@pytest.fixture(scope="module")
def tier(tmp_path_factory):
    forget = [invented_article(f"forget {k}") for k in range(8)]
    other = [invented_article(f"other {k}") for k in range(24)]
    whole = load_muse(write_news(tmp_path_factory.mktemp("news"), forget, other))
    return replace(small_muse(whole, Tier("tiny", 3, 4)), membership_tokens=60)


@pytest.fixture(scope="module")
def filled(tier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("muse")
    base = save_pico(folder / "base", model=pico_model("llama", max_position_embeddings=4096))
    quick = replace(FINETUNING, epochs=1, compute_dtype="float32")
    messages = []
    sink = lambda event: messages.append(event.message) if isinstance(event, Notice) else None  # noqa: E731
    models = prepare_muse(ModelSettings(name=str(base)), tier, sink, finetuning=quick, cache=folder / "cache")
    benchmark = MuseBenchmark(tier, TOKENS, MuseSettings(resamples=20))
    table = ResultTable(folder / "table", models, benchmark, sink=sink, trials=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_settings, "_SHARED", {"states": FAST, "outputs": FAST})
        patch.setattr(MuseBenchmark, "training_settings", {})
        rows = run_table(table, ["rmu"], [0])
        curves = CurveRuns(table, benchmark).run("rmu", 0)
    return SimpleNamespace(table=table, rows=rows, curves=curves, benchmark=benchmark, messages=messages)


def test_rows_are_there_with_cost_and_settings(filled):
    assert [row.label for row in filled.rows] == ["retain A", "target", "base", "retain B", "rmu"]
    for row in filled.rows[4:]:
        assert set(row.memory) == {"unlearning", "evaluation"}
        assert row.seconds["train"] > 0 and row.seconds["evaluation"] > 0
        assert row.recipe["tuning trials"] == "2"
        assert row.metric("privleak").value is not None
    assert filled.rows[0].metric("privleak").value is None


def test_failed_gates_are_stated_with_figures_and_stop_nothing(filled):
    target = filled.rows[1]
    # A random model does not recite after one epoch, so this must fail.
    recited = next(gate for gate in target.gates if gate.name == "VerbMem of the target")
    assert not recited.passed and recited.value == target.metric("verbmem_rouge").value
    stated = [message for message in filled.messages if message.startswith("gate failed")]
    assert len(stated) == sum(not gate.passed for gate in target.gates)
    assert any(f"{recited.value:.3g}, needed >= 0.45" in message for message in stated)


def test_curves_cover_both_criteria_and_end_on_the_whole_forget_set(filled, tier):
    kinds = {(curve.kind, curve.metric) for curve in filled.curves}
    metrics = {"min_k_auc", "privleak", "retain2_probability"}
    assert kinds == {(kind, metric) for kind in ("scal", "sust") for metric in metrics}
    for curve in filled.curves:
        assert [point.num_articles for point in curve.points] == [1, 2, 3, 4]
    stored = json.loads((filled.table.folder / "curves" / "rmu-seed-0-sust.json").read_text())["curves"]
    assert len(stored) == 3
    # One request: both curves start with the same run.
    first = {(c.kind, c.metric): c.points[0].value for c in filled.curves}
    assert first["scal", "privleak"] == pytest.approx(first["sust", "privleak"])


def test_nothing_is_computed_twice(filled, monkeypatch):
    from falcon_unlearn.bench.muse import curve_runs

    for module in (table_module, curve_runs):
        monkeypatch.setattr(module, "unlearn_examples", lambda *_args, **_kwargs: pytest.fail("computed"))
        monkeypatch.setattr(module, "load_model", lambda *_args, **_kwargs: pytest.fail("loaded"))
    again = run_table(filled.table, ["rmu"], [0])
    assert [row.metrics for row in again] == [row.metrics for row in filled.rows]
    assert CurveRuns(filled.table, filled.benchmark).run("rmu", 0) == filled.curves


def test_compare_reads_the_table(filled):
    (group,) = compare_results([filled.table.folder]).groups
    assert {"rmu", "target", "retain A"} <= {row.label for row in group.rows}


def test_tuning_texts_are_reported_nowhere(tier):
    texts = TuningTexts.of(TOKENS, tier)
    assert texts.forget and texts.retain and texts.unseen
    assert set(texts.forget) | set(texts.retain) == set(tier.texts["raw/retain1"])
    assert not set(texts.forget) & set(texts.retain)
    scored = {*tier.texts["raw/forget"], *tier.texts["raw/retain2"]}
    holdout = tier.texts["raw/holdout"]
    scored |= {holdout[owner] for owner in membership_texts(TOKENS, tier).holdout_owners}
    assert not scored & {*texts.forget, *texts.retain, *texts.unseen}


def test_tuning_without_free_holdout_articles_is_refused(tier):
    few = replace(tier, texts={**tier.texts, "raw/holdout": tier.texts["raw/holdout"][:1]})
    with pytest.raises(DataError, match="unreported holdout"):
        TuningTexts.of(TOKENS, few)


def test_tables_need_a_small_tier(tier):
    with pytest.raises(UsageError, match="small tiers"):
        muse_tier(tier, "full")
