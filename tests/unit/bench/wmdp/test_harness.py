"""Parity with lm-evaluation-harness on invented questions and pages."""

from __future__ import annotations

import json
import random
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from falcon_unlearn.bench.wmdp.data import WMDP_SUBJECTS, load_wmdp
from falcon_unlearn.bench.wmdp.evaluate import WmdpOptions, evaluate_wmdp
from falcon_unlearn.bench.wmdp.harness import HarnessSettings, check_installed, harness_choices, harness_pages
from falcon_unlearn.bench.wmdp.native import describe, score_cloze, score_letters
from falcon_unlearn.bench.wmdp.perplexity import corpus_perplexity, count_words, detokenise, score_pages
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.access import wrap_model
from pico import pico_tokenizer

SETTINGS = HarnessSettings(max_length=500, prefix_token_id=2)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(PrerequisiteError) as caught:
        check_installed()
    assert "falcon-unlearn[eval]" in caught.value.hint


@pytest.fixture
def lm_eval(monkeypatch):
    """The harness, without network."""
    module = pytest.importorskip("lm_eval")
    pytest.importorskip("lm_eval.models.huggingface")

    def refuse(self, address):
        raise OSError(f"no network in tests: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return module


def assert_same(native, harness):
    assert [score.index for score in native] == [score.index for score in harness]
    for mine, theirs in zip(native, harness, strict=True):
        assert mine.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-4)
        assert mine.num_characters == theirs.num_characters
        assert (mine.answer, mine.is_correct, mine.is_correct_by_length, mine.was_cut) == (
            theirs.answer,
            theirs.is_correct,
            theirs.is_correct_by_length,
            theirs.was_cut,
        )


@pytest.mark.parametrize("num_shots", [0, 2])
def test_mmlu_letters(lm_eval, loaded, mmlu, num_shots):
    theirs, versions = harness_choices(loaded, mmlu, SETTINGS, num_shots=num_shots)
    subject = Subject(loaded.model, loaded.tokenizer)
    assert_same(score_letters(subject, mmlu, max_length=500, num_shots=num_shots), theirs)
    assert versions["lm-eval"]
    assert versions["task falcon_mmlu_virology"]


@pytest.mark.parametrize("max_length", [500, 60])
def test_wmdp_letters_also_where_prompts_are_cut(lm_eval, loaded, wmdp_bio, max_length):
    theirs, _ = harness_choices(loaded, wmdp_bio, HarnessSettings(max_length, 2))
    mine = score_letters(Subject(loaded.model, loaded.tokenizer), wmdp_bio, max_length=max_length)
    assert_same(mine, theirs)
    assert any(score.was_cut for score in mine) == (max_length == 60)


@pytest.mark.parametrize("name", ["mmlu", "wmdp_bio"])
def test_cloze(lm_eval, loaded, name, request):
    questions = request.getfixturevalue(name)
    theirs, _ = harness_choices(loaded, questions, SETTINGS, style="cloze")
    assert_same(score_cloze(Subject(loaded.model, loaded.tokenizer), questions, max_length=500), theirs)


@pytest.fixture
def with_begin(loaded):
    """The same model, with a tokenizer that puts its begin token in front."""
    tokenizer = pico_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    assert tokenizer("a")["input_ids"][0] == 1
    return wrap_model(loaded.model, tokenizer, "pico", None)


def test_tokenizer_that_adds_a_begin_token(lm_eval, with_begin, wmdp_bio, pages):
    subject = Subject(with_begin.model, with_begin.tokenizer)
    theirs, _ = harness_choices(with_begin, wmdp_bio, SETTINGS)
    assert_same(score_letters(subject, wmdp_bio, max_length=500), theirs)
    page_scores, _ = harness_pages(with_begin, pages, HarnessSettings(100, 1))
    mine = score_pages(subject, pages.pages, max_length=100, prefix_token_id=1)
    assert [s.log_likelihood for s in mine] == pytest.approx(
        [s.log_likelihood for s in page_scores], rel=1e-5
    )


def test_accuracy_is_what_the_harness_reports_for_its_plain_use(lm_eval, loaded, wmdp_bio, tmp_path):
    """The harness aggregates a task written by hand; our bridge takes no part."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": q.question, "choices": list(q.choices), "answer": q.answer} for q in wmdp_bio.questions
    ]
    (tmp_path / "bio.json").write_text(json.dumps(rows), encoding="utf-8")
    options = "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate("ABCD"))
    body = "{{question.strip()}}\n" + options + "Answer:"
    task = {
        "task": "by_hand",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "bio.json")},
            "cache_dir": str(tmp_path / "c"),
        },
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about biology.\n\n",
        "doc_to_text": body,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    model = HFLM(pretrained=loaded.model, tokenizer=pico_tokenizer(), max_length=500)
    found = TaskManager(include_defaults=False).load([task])
    outcome = lm_eval.evaluate(lm=model, task_dict=found, bootstrap_iters=0)
    mine = score_letters(Subject(loaded.model, loaded.tokenizer), wmdp_bio, max_length=500)
    assert outcome["results"]["by_hand"]["acc,none"] == sum(s.is_correct for s in mine) / len(mine)
    assert [s["acc"] for s in outcome["samples"]["by_hand"]] == [float(s.is_correct) for s in mine]


@pytest.mark.parametrize("max_length", [500, 64, 37])
def test_wikitext(lm_eval, loaded, pages, max_length):
    theirs, versions = harness_pages(loaded, pages, HarnessSettings(max_length, 2))
    subject = Subject(loaded.model, loaded.tokenizer)
    mine = score_pages(subject, pages.pages, max_length=max_length, prefix_token_id=2)
    assert [s.log_likelihood for s in mine] == pytest.approx([s.log_likelihood for s in theirs], rel=1e-5)
    assert corpus_perplexity(mine).bits_per_byte == pytest.approx(
        corpus_perplexity(theirs).bits_per_byte, abs=1e-4
    )
    assert versions["task falcon_wikitext"]


PIECES = [*"abN'\"()[]{}=:;.!?,°/ \n", " @-@ ", " @,@ ", " @.@ ", " 's ", " ' 5", " = = ", "s '", " N ", "° "]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_page_is_read_and_counted_as_the_harness_does(page):
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    assert detokenise(page) == wikitext_detokenizer({"page": page})
    expected = process_results({"page": page}, [-1.0])
    assert expected["word_perplexity"] == (-1.0, count_words(page))
    assert expected["byte_perplexity"] == expected["bits_per_byte"] == (-1.0, len(page.encode()))


def test_descriptions_of_all_subjects(lm_eval):
    from lm_eval.tasks._yaml_loader import load_yaml

    home = Path(lm_eval.__file__).parent / "tasks"
    for topic, subject in WMDP_SUBJECTS.items():
        assert load_yaml(home / f"wmdp/wmdp_{topic}.yaml")["description"] == describe(subject)
    for folder, cloze in (("default", False), ("continuation", True)):
        files = sorted((home / "mmlu" / folder).glob("mmlu_*.yaml"))
        assert len(files) == 57
        for path in files:
            subject = path.stem.removeprefix("mmlu_")
            assert load_yaml(path)["description"] == describe(subject, cloze=cloze)


def test_nothing_of_the_caller_changes(lm_eval, loaded, wmdp_bio):
    pad, side = loaded.tokenizer.pad_token, loaded.tokenizer.padding_side
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    harness_choices(loaded, wmdp_bio, SETTINGS)
    assert (loaded.tokenizer.pad_token, loaded.tokenizer.padding_side) == (pad, side)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


def test_unknown_subject_is_refused(lm_eval, loaded, mmlu):
    invented = replace(mmlu.questions[0], subject="basket_weaving")
    with pytest.raises(DataError, match="mmlu_basket_weaving"):
        harness_choices(loaded, replace(mmlu, questions=(invented,)), SETTINGS)


@pytest.fixture
def hub(monkeypatch, pages, make_rows):
    """A stand-in for the hub that serves invented rows under the real data set names."""
    datasets = pytest.importorskip("datasets")
    mmlu = make_rows(12, seed=5)
    tables = {("cais/mmlu", "all"): mmlu, ("cais/wmdp", "wmdp-bio"): make_rows(9, seed=6, subject="b")}
    for subject in dict.fromkeys(row["subject"] for row in mmlu):
        tables["cais/mmlu", subject] = [row for row in mmlu if row["subject"] == subject]
    wikitext = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
    tables[wikitext] = [{"page": page.text} for page in pages.pages]

    real = datasets.load_dataset

    def load_dataset(path, name=None, split=None, **kwargs):
        if path == "parquet":
            return real(path, name=name, **kwargs)
        table = datasets.Dataset.from_list(tables[path, name])
        names = ("test", "dev", "train", "validation")
        return table if split else datasets.DatasetDict(dict.fromkeys(names, table))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_hub_tasks_run_by_name_on_the_same_sample(lm_eval, hub, loaded):
    options = WmdpOptions(limit=5, sample_seed=1, cloze=True, cyclic=True)
    tasks = ["wmdp_bio", "mmlu", "wikitext"]
    mine = evaluate_wmdp(loaded, tasks=tasks, options=options)
    theirs = evaluate_wmdp(loaded, tasks=tasks, options=options, backend="lm-eval")
    for first, second in zip(mine.metrics, theirs.metrics, strict=True):
        assert (first.name, first.num_items) == (second.name, second.num_items)
        assert first.value == pytest.approx(second.value, rel=1e-4)
    assert {"task wmdp_bio", "task wikitext"} <= set(theirs.versions)
    assert mine.metric("mmlu").num_items == 5
    assert "cais/wmdp:wmdp-bio[test]" in mine.data


def test_unreachable_hub_is_a_prerequisite(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(PrerequisiteError, match="cais/wmdp:wmdp-bio") as caught:
        load_wmdp("bio", None)
    assert "local folder" in caught.value.hint
