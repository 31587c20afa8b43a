from __future__ import annotations

import pytest

from falcon_unlearn.bench.muse.data import QuestionAnswer, load_muse
from falcon_unlearn.bench.muse.matching import included_questions, matching_article, words_of
from falcon_unlearn.bench.muse.small import (
    Tier,
    quoted_articles,
    retain_texts,
    small_muse,
    target_texts,
    training_chunks,
)
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.evaluation.subject import Subject

TINY = Tier("tiny", 2, 3)


def test_a_tier_has_the_articles_its_samples_quote_and_disjoint_other_ones(news_folder, forget):
    data = small_muse(load_muse(news_folder), TINY)
    assert data.texts["raw/forget"] == tuple(forget[:3])
    parts = [data.texts[name] for name in ("raw/retain1", "raw/retain2", "raw/holdout")]
    assert [len(part) for part in parts] == [3, 3, 6]
    everything = [text for part in parts for text in part]
    assert len(set(everything)) == 12 and not {t.casefold() for t in everything} & {
        t.casefold() for t in forget
    }
    assert len(data.verbatim) == 2
    for sample in data.verbatim:
        assert sample.prompt in "\n\n".join(data.texts["raw/forget"])


def test_the_split_depends_on_the_seed_alone(news_folder):
    data = load_muse(news_folder)
    first, again, other = (small_muse(data, TINY, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.texts["raw/retain1"] != other.texts["raw/retain1"]
    assert first.texts["raw/forget"] == other.texts["raw/forget"]
    assert first.setting["split_seed"] == "0" and other.setting["split_seed"] == "1"


def test_stand_in_texts_and_unmeasurable_questions_are_stated(news_folder):
    data = small_muse(load_muse(news_folder), TINY)
    assert any("stand-ins" in note and "12 of 15 articles kept" in note for note in data.notes)
    assert "knowmem/retain_qa" in data.missing and "knowmem/retain_qa" not in data.questions


def test_impossible_tiers_are_refused(news_folder):
    data = load_muse(news_folder)
    with pytest.raises(UsageError, match="tier: got 'M-X'"):
        small_muse(data, "M-X")
    with pytest.raises(DataError, match="12 are left"):
        small_muse(data, Tier("big", 2, 6))
    with pytest.raises(DataError, match="got 4, news has 3"):
        quoted_articles(data, 4)
    (news_folder / "raw/other_news.json").unlink()
    with pytest.raises(DataError, match="raw/retain1 is needed but absent"):
        small_muse(load_muse(news_folder), TINY)


def test_target_and_retrained_model_differ_by_the_forget_texts_only(news_folder):
    data = small_muse(load_muse(news_folder), TINY)
    target, retain = target_texts(data), retain_texts(data)
    assert target.pop("raw/forget") == data.texts["raw/forget"]
    assert target == retain and set(retain) == {"raw/retain1", "raw/retain2"}


def test_training_chunks_hold_the_joined_text_once(pico):
    subject = Subject(pico.model, pico.tokenizer)
    texts = ["first article", "", "second"]
    chunks = training_chunks(subject, texts, tokens=10)
    assert "".join(chunk.text for chunk in chunks) == "first article\n\nsecon"
    assert [len(chunk.input_ids) for chunk in chunks] == [10, 10]  # a single last token predicts nothing


def test_questions_are_kept_when_the_article_with_their_rare_words_is_chosen():
    articles = ["the red kettle sang at dawn", "the old kettle broke", "a quiet day at the mill", "the end"]
    items = [
        QuestionAnswer("What sang at dawn?", "the kettle"),
        QuestionAnswer("What broke?", "an old kettle"),
        QuestionAnswer("Xyz?", "qqq"),
    ]
    words = [words_of(article) for article in articles]
    assert [matching_article(item, words) for item in items] == [0, 1, None]
    assert included_questions(items, articles, [0, 2]) == (items[0],)
    assert included_questions(items, [*articles, articles[1]], [4]) == (items[1],)
