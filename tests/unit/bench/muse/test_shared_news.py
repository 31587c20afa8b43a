"""Checks on the real files, where they are there. They hold counts, no text."""

from __future__ import annotations

import os
from collections import Counter
from types import SimpleNamespace

import pytest

from falcon_unlearn.bench.muse.criteria import knowledge_prompt
from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.dedupe import deduplicate
from falcon_unlearn.bench.muse.privacy import muse_privleak, read_reference
from falcon_unlearn.bench.muse.small import quoted_articles, small_muse
from falcon_unlearn.bench.muse.verbatim import Locator
from falcon_unlearn.evaluation.subject import Subject
from shared_data import shared_data


@pytest.fixture(scope="module")
def news():
    return load_muse(shared_data("muse_news"))


@pytest.fixture(scope="module")
def clean(news):
    return deduplicate(news.require("raw/other_news"), news.require("raw/forget"))


def test_the_files_have_the_official_rows(news):
    assert news.notes == ()
    assert len(news.texts["raw/forget"]) == len(news.texts["raw/other_news"]) == 889
    assert set(news.missing) == {"raw/retain1", "raw/retain2", "raw/holdout"}


def test_61_articles_are_identical_and_794_are_left_after_exact_removal(clean):
    assert clean.counts.forget_copies == 61
    assert clean.counts.after_exact == 794
    assert clean.counts.kept == len(clean.articles) < 794


def test_nothing_of_the_verbatim_targets_is_left_in_other_news(news, clean):
    targets = [sample.continuation for sample in news.verbatim]
    owners = {text[at : at + 100]: k for k, text in enumerate(targets) for at in range(len(text) - 99)}

    def quoted(articles):
        text = "\n".join(articles)
        windows = (text[at : at + 100] for at in range(len(text) - 99))
        return len({owners[window] for window in windows if window in owners})

    assert quoted(news.texts["raw/other_news"]) >= 21
    assert quoted(clean.articles) == 0


def test_all_samples_are_found_and_62_join_by_a_space(news):
    locator = Locator(news.texts["raw/forget"])
    places = [locator.find(sample) for sample in news.verbatim]
    assert None not in places
    assert Counter(place.joint for place in places) == {" ": 62, "": 38}
    assert [locator.joint(sample) for sample in news.verbatim] == [place.joint for place in places]


def test_tiers_hold_every_passage_they_ask_for(news):
    for tier, num_samples in (("M-S", 20), ("M-M", 40)):
        data = small_muse(news, tier)
        locator = Locator(data.texts["raw/forget"])
        assert len(data.verbatim) == num_samples
        assert all(locator.find(sample) is not None for sample in data.verbatim)
    assert len(quoted_articles(news, 20)) == 44


def test_the_published_privleak_of_the_target_is_reached():
    folder = shared_data("open_unlearning_eval_logs")
    retain = read_reference(folder / "muse_Llama-2-7b-hf_News_retrain_MUSE_SUMMARY.json")
    target = read_reference(folder / "muse_Llama-2-7b-hf_News_target_MUSE_EVAL.json")
    assert len(target.forget) == len(target.holdout) == 100
    assert muse_privleak(target.auc, retain.auc) == pytest.approx(-99.81108310247458, abs=1e-6)


@pytest.mark.skipif("FALCON_TEST_MODEL" not in os.environ, reason="set FALCON_TEST_MODEL to a SmolLM2 folder")
def test_no_answer_or_passage_loses_a_token_to_its_prompt(news):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.environ["FALCON_TEST_MODEL"])
    subject = Subject(SimpleNamespace(generation_config=None), tokenizer)
    shots = news.questions["knowmem/forget_qa_icl"]
    for item in news.questions["knowmem/forget_qa"]:
        prompt = knowledge_prompt(item, shots)
        ids, (answer,) = subject.encode_completions(prompt, [f" {item.answer}"])
        assert ids == subject.encode(prompt)
        assert tokenizer.decode(answer) == f" {item.answer}"
    locator = Locator(news.texts["raw/forget"])
    for sample in news.verbatim:
        joint = locator.joint(sample)
        ids, (completion,) = subject.encode_completions(sample.prompt, [joint + sample.continuation])
        # A border inside a word may move the last prompt token into the continuation, never the other way.
        assert tokenizer.decode(completion).endswith(sample.continuation)
        assert len(subject.encode(sample.prompt)) - len(ids) <= (0 if joint else 2)
