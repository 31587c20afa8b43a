from __future__ import annotations

from dataclasses import replace

import pytest

from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.evaluate import MuseSettings, evaluate_muse
from falcon_unlearn.bench.muse.privacy import PrivacyReference, read_reference
from falcon_unlearn.bench.muse.small import Tier, small_muse
from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import StageFinished
from falcon_unlearn.metrics.open_unlearning import aggregate_log, disagreements
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.metrics.open_unlearning_samples import sample_disagreements
from falcon_unlearn.models.access import wrap_model
from falcon_unlearn.runs import write_json_atomic
from pico import pico_model, pico_tokenizer

FAST = MuseSettings(resamples=50)


@pytest.fixture
def full(news_folder):
    return load_muse(news_folder)


def test_without_a_reference_privleak_is_refused_unless_left_out_knowingly(pico, full):
    with pytest.raises(UsageError, match="no reference"):
        evaluate_muse(pico, full, FAST)
    result, log = evaluate_muse(pico, full, FAST, reference="no reference")
    metric = result.metric("privleak")
    assert metric.value is None and "No model" in metric.note
    assert log["privleak"] == {"agg_value": None}
    assert result.metric("min_k_auc").value is not None


def test_the_log_is_read_as_one_of_open_unlearning_and_agrees_with_the_record(pico, full, tmp_path):
    other = wrap_model(pico_model("llama", seed=1, max_position_embeddings=4096), pico_tokenizer(), "b", None)
    _, retain_log = evaluate_muse(other, full, FAST, reference="no reference")
    retain_path, path = tmp_path / "retain_EVAL.json", tmp_path / "MUSE_EVAL.json"
    write_json_atomic(retain_path, retain_log)
    result, log = evaluate_muse(pico, full, FAST, reference=read_reference(retain_path))
    write_json_atomic(path, log)
    aggregates = aggregate_log(path, retain_path)
    names = {
        "forget_verbmem_ROUGE": "verbmem_rouge",
        "exact_memorization": "verbmem_exact_memorisation",
        "extraction_strength": "verbmem_extraction_strength",
        "forget_knowmem_ROUGE": "knowmem_forget_rouge",
        "retain_knowmem_ROUGE": "knowmem_retain_rouge",
        "mia_min_k": "min_k_auc",
        "privleak": "privleak",
        "retain2_Prob": "retain2_probability",
    }
    for theirs, ours in names.items():
        metric = result.metric(ours)
        assert aggregates[theirs].value == pytest.approx(metric.value, abs=1e-5), theirs
        assert metric.low <= metric.value <= metric.high
    assert disagreements(aggregates, absolute=1e-5) == []
    assert sample_disagreements(read_log(path)) == []


def test_a_model_measured_against_itself_leaks_nothing(pico, full, tmp_path):
    _, log = evaluate_muse(pico, full, FAST, reference="no reference")
    write_json_atomic(tmp_path / "EVAL.json", log)
    result, _ = evaluate_muse(pico, full, FAST, reference=read_reference(tmp_path / "EVAL.json"))
    metric = result.metric("privleak")
    assert (metric.value, metric.low, metric.high) == (0, 0, 0)


def test_a_reference_without_scores_is_noted(pico, full):
    result, _ = evaluate_muse(pico, full, FAST, reference=PrivacyReference(0.5))
    assert "error of the reference" in result.metric("privleak").note


def test_a_tier_says_what_it_cannot_measure(pico, full):
    data = replace(small_muse(full, Tier("tiny", 2, 3)), membership_tokens=40)
    events = []
    result, log = evaluate_muse(
        pico, data, FAST, reference="no reference", role="target", label="target", sink=events.append
    )
    metric = result.metric("knowmem_retain_rouge")
    assert metric.value is None and "not among the retain articles" in metric.note
    assert "retain_knowmem_ROUGE" not in log
    assert result.utility_axis == "retain2_probability" and result.forget_axis == "verbmem_rouge"
    assert result.metric("retain2_probability").num_items > 0
    assert result.setting["verbmem_samples"] == "2" and "chunks of 40" in result.setting["membership"]
    assert any("stand-ins" in note for note in result.notes)
    assert len([event for event in events if isinstance(event, StageFinished)]) == 5
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_official_retain_questions_make_the_utility_axis(pico, full):
    result, _ = evaluate_muse(pico, full, FAST, reference="no reference")
    assert result.utility_axis == "knowmem_retain_rouge"
    assert "privleak/retain" in result.setting["retain2_texts"]


def test_results_repeat_exactly(pico, full):
    first, first_log = evaluate_muse(pico, full, FAST, reference="no reference")
    second, second_log = evaluate_muse(pico, full, FAST, reference="no reference")
    assert first.metrics == second.metrics and first_log == second_log


def test_the_stemmer_is_part_of_the_setting(pico, full):
    on, off = (
        evaluate_muse(pico, full, replace(FAST, stemmer=stemmer), reference="no reference")[0]
        for stemmer in (True, False)
    )
    assert on.setting["stemmer"] == "on" and off.setting["stemmer"] == "off"
