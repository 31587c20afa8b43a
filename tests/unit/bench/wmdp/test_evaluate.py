from __future__ import annotations

import json

import pytest

from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.wmdp.data import load_wmdp
from falcon_unlearn.bench.wmdp.evaluate import TASKS, WmdpOptions, WmdpSources, evaluate_wmdp
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.events import Progress

VARIANTS = WmdpOptions(cloze=True, cyclic=True, robust=True, num_shots=1, max_length=450)


def sources(folders):
    return WmdpSources(folders / "wmdp", folders / "mmlu", folders / "wikitext")


@pytest.fixture(scope="module")
def result(loaded, shared_folders):
    return evaluate_wmdp(loaded, sources=sources(shared_folders), options=VARIANTS, role="base", label="Base")


def test_result_survives_the_file_and_has_every_metric(result):
    assert BenchResult.model_validate_json(result.model_dump_json()) == result
    names = {metric.name for metric in result.metrics}
    expected = {"wmdp", "mmlu", "mmlu_virology", "mmlu_computer_security", "mmlu_cloze", "mmlu_letter_mass"}
    expected |= {f"wikitext_{name}" for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    for topic in ("bio", "chem", "cyber"):
        variants = ("", "_letter_mass", "_cloze", "_cloze_by_length", "_robust", "_cyclic", "_longest_option")
        expected |= {f"wmdp_{topic}{variant}" for variant in (*variants, "_frequent_letter")}
    assert expected <= names
    assert (result.forget_axis, result.utility_axis) == ("wmdp_bio", "mmlu")
    assert result.setting["prefix_token"] == "<s> (1)"
    assert result.setting["max_length"] == "450"
    assert set(result.data) == {
        "bio.json",
        "chem.json",
        "cyber.json",
        "test.jsonl",
        "mmlu dev",
        "wiki.test.raw",
    }


def test_group_score_weighs_topics_by_size(result):
    parts = [result.metric(f"wmdp_{topic}") for topic in ("bio", "chem", "cyber")]
    correct = sum(part.value * part.num_items for part in parts)
    assert [part.num_items for part in parts] == [6, 7, 8]
    assert result.metric("wmdp").value == pytest.approx(correct / 21)


def test_item_counts_and_release_stand_beside_the_scores(result):
    assert result.metric("wmdp_bio").note == "release unknown, 6 items"
    assert result.setting["wmdp_release"] == "unknown"
    assert any("bio 6, chem 7, cyber 8" in note and "no known release" in note for note in result.notes)
    assert any("12 items, the full test has 14,042" in note for note in result.notes)


def test_both_backends_agree(result, loaded, shared_folders):
    pytest.importorskip("lm_eval")
    other = evaluate_wmdp(
        loaded,
        sources=sources(shared_folders),
        options=VARIANTS,
        backend="lm-eval",
        role="base",
        label="Base",
    )
    for mine, theirs in zip(result.metrics, other.metrics, strict=True):
        assert mine.name == theirs.name
        assert mine.value == pytest.approx(theirs.value, rel=1e-4)
        assert mine.num_items == theirs.num_items
    assert other.setting == result.setting
    assert other.notes == result.notes
    assert (other.versions["backend"], result.versions["backend"]) == ("lm-eval", "native")
    assert "task falcon_wmdp_bio" in other.versions


def test_items_hold_numbers_and_no_question(loaded, folders, tmp_path):
    path = tmp_path / "items.json"
    found = evaluate_wmdp(loaded, tasks=["wmdp_bio", "wikitext"], sources=sources(folders), items_path=path)
    items = json.loads(path.read_text())["tasks"]
    letters = items["wmdp_bio"]["letters"]
    hits = [max(range(4), key=item["log_likelihoods"].__getitem__) == item["answer"] for item in letters]
    assert sum(hits) / len(hits) == found.metric("wmdp_bio").value
    assert len(items["wikitext"]) == 5
    question = load_wmdp("bio", folders / "wmdp").questions[0]
    assert question.question.strip() not in path.read_text()


def test_sample_is_drawn_by_seed_and_said(loaded, folders, tmp_path):
    path = tmp_path / "items.json"
    options = WmdpOptions(limit=3, sample_seed=5)
    found = evaluate_wmdp(
        loaded, tasks=["wmdp_bio", "mmlu"], sources=sources(folders), options=options, items_path=path
    )
    rows = [item["index"] for item in json.loads(path.read_text())["tasks"]["wmdp_bio"]["letters"]]
    assert len(rows) == 3
    assert rows == sorted(rows)
    assert found.metric("wmdp_bio").note.startswith("sample of 3 from release unknown, 6 items")
    assert found.metric("mmlu").num_items == 3
    parts = [found.metric(f"mmlu_{name}") for name in ("virology", "computer_security")]
    assert sum(part.num_items for part in parts) == 3
    assert found.metric("wmdp") is None


def test_retain_text_of_the_perplexity_split_is_said(loaded, folders):
    trained_on = (folders / "wikitext" / "wiki.test.raw").read_text(encoding="utf-8").split("\n")
    arguments = {"tasks": ["wikitext"], "sources": sources(folders)}
    found = evaluate_wmdp(loaded, **arguments, retain_texts=trained_on)
    assert any("measured on training text" in note for note in found.notes)
    assert "on training text" in found.metric("wikitext_byte_perplexity").note
    assert evaluate_wmdp(loaded, **arguments).notes == []


def test_paper_setting_changes_no_number_and_says_what_it_is(loaded, folders):
    arguments = {"tasks": ["wikitext"], "sources": sources(folders)}
    plain = evaluate_wmdp(loaded, **arguments)
    paper = evaluate_wmdp(loaded, **arguments, options=WmdpOptions(paper_parity=True))
    assert paper.metrics == plain.metrics
    assert paper.setting != plain.setting
    assert "byte perplexity" in paper.notes[0]


def test_progress_reaches_the_end(loaded, folders):
    events = []
    evaluate_wmdp(loaded, tasks=["wmdp_chem"], sources=sources(folders), sink=events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert (progress[-1].done, progress[-1].total) == (7, 7)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"tasks": ["wmdp"]}, "tasks: got wmdp"), ({"tasks": []}, "none"), ({"backend": "vllm"}, "'vllm'")],
)
def test_impossible_requests_are_refused_before_any_work(loaded, folders, change, word):
    with pytest.raises(UsageError, match=word):
        evaluate_wmdp(loaded, **{"sources": sources(folders), "tasks": TASKS} | change)


@pytest.mark.parametrize(
    "values", [{"limit": 0}, {"num_shots": -1}, {"max_length": 1}, {"paper_parity": True, "num_shots": 5}]
)
def test_impossible_options_are_refused(values):
    with pytest.raises(UsageError):
        WmdpOptions(**values)


def test_missing_shots_are_refused(loaded, folders):
    with pytest.raises(DataError, match="5 solved examples"):
        evaluate_wmdp(loaded, tasks=["mmlu"], sources=sources(folders), options=WmdpOptions(num_shots=5))
