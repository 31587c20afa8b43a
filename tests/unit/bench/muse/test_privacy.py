from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from falcon_unlearn.bench.muse import privacy
from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.log import membership_entries
from falcon_unlearn.bench.muse.small import Tier, small_muse
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.runs import write_json_atomic


def _scores(forget, holdout):
    blank = (0.0,)
    return privacy.MembershipScores(tuple(forget), tuple(holdout), blank, blank, blank, blank)


def _texts(forget_owners, holdout_owners):
    return privacy.MembershipTexts(
        tuple((k, 0) for k, _ in enumerate(forget_owners)),
        tuple((k, 1) for k, _ in enumerate(holdout_owners)),
        tuple(forget_owners),
        tuple(holdout_owners),
        "",
    )


@pytest.fixture
def tier(news_folder):
    return replace(small_muse(load_muse(news_folder), Tier("tiny", 2, 3)), membership_tokens=40)


def test_chunks_are_equally_long_and_lie_within_one_article_each(pico, tier):
    subject = Subject(pico.model, pico.tokenizer, 2000)
    texts = privacy.membership_texts(subject, tier)
    assert len(texts.forget) == len(texts.holdout) > 3
    for side, name, owners in (
        (texts.forget, "raw/forget", texts.forget_owners),
        (texts.holdout, "raw/holdout", texts.holdout_owners),
    ):
        for ids, owner in zip(side, owners, strict=True):
            assert len(ids) == 40
            assert subject.tokenizer.decode(ids) in tier.texts[name][owner]
    assert texts == privacy.membership_texts(subject, tier)
    assert texts.digest != replace(texts, forget=texts.forget[1:]).digest


def test_official_texts_are_taken_whole(pico, news_folder):
    data = load_muse(news_folder)
    texts = privacy.membership_texts(Subject(pico.model, pico.tokenizer), data)
    decoded = tuple(pico.tokenizer.decode(ids) for ids in texts.forget)
    assert decoded == data.texts["privleak/forget"]
    (news_folder / "privleak/holdout.json").unlink()
    with pytest.raises(DataError, match="privleak/holdout is needed but absent"):
        privacy.membership_texts(Subject(pico.model, pico.tokenizer), load_muse(news_folder))


def test_articles_shorter_than_a_chunk_are_refused(pico, tier):
    with pytest.raises(DataError, match="give 0 and 0 chunks of 5000"):
        privacy.membership_texts(Subject(pico.model, pico.tokenizer), replace(tier, membership_tokens=5000))


def test_scores_are_minus_the_mean_of_the_lowest_two_fifths(pico, tier):
    subject = Subject(pico.model, pico.tokenizer, 2000)
    texts = privacy.membership_texts(subject, tier)
    scores = privacy.membership_scores(subject, texts)
    for ids, found in zip(texts.forget, scores.forget, strict=True):
        (score,) = subject.score([(ids[:1], ids[1:])])
        lowest = sorted(score.token_log_probabilities)[: int(0.4 * 39)]
        assert found == pytest.approx(-sum(lowest) / len(lowest), rel=1e-5)


def test_privleak_is_the_formula_of_muse_in_its_own_orientation():
    chance = np.random.default_rng(3)
    forget, holdout = chance.normal(0, 1, 30), chance.normal(1, 1, 30)
    scores = _scores(forget, holdout)
    # MUSE: forget texts are class 0 and the score is minus Min-K, that is log-likelihood.
    labels = [0] * 30 + [1] * 30
    auc = roc_auc_score(labels, -np.asarray([-value for value in [*forget, *holdout]]))
    assert scores.auc == pytest.approx(auc)
    muse_auc, muse_reference = 1 - auc, 0.4772
    expected = (muse_auc - muse_reference) / muse_reference * 100
    assert privacy.muse_privleak(scores.auc, privacy.PUBLISHED_REFERENCES["News"].auc) == pytest.approx(
        expected
    )


def test_an_untouched_model_is_at_minus_100_and_the_reference_itself_at_0():
    assert privacy.muse_privleak(1.0, 0.5228) == pytest.approx(-100)
    assert privacy.muse_privleak(0.5228, 0.5228) == 0
    with pytest.raises(DataError, match="nothing to divide by"):
        privacy.muse_privleak(0.5, 1.0)


def test_the_published_value_of_the_news_target_is_reached():
    # Published by open-unlearning: AUC .9991 of the target, .5236 of the retrained model, PrivLeak -99.81.
    assert privacy.muse_privleak(0.9991, 0.5236) == pytest.approx(-99.81108310247458, abs=1e-6)


def test_pairing_makes_the_interval_of_a_replicate_narrower():
    chance = np.random.default_rng(0)
    forget, holdout = chance.normal(size=80), chance.normal(size=80)
    scores = _scores(forget + 0.05 * chance.normal(size=80), holdout + 0.05 * chance.normal(size=80))
    texts = _texts(range(80), range(80))
    auc = _scores(forget, holdout).auc
    widths = []
    for reference in (
        privacy.PrivacyReference(auc),
        privacy.PrivacyReference(auc, tuple(forget), tuple(holdout)),
    ):
        found = privacy.privleak_estimate(scores, reference, texts, np.random.default_rng(1), 300)
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_chunks_of_one_article_are_drawn_together():
    chance = np.random.default_rng(0)
    levels = chance.normal(size=10)
    forget = np.repeat(levels, 8)
    holdout = chance.normal(size=80)
    clustered = privacy.auc_estimate(
        _scores(forget, holdout), _texts(np.repeat(range(10), 8), range(80)), np.random.default_rng(1), 300
    )
    single = privacy.auc_estimate(
        _scores(forget, holdout), _texts(range(80), range(80)), np.random.default_rng(1), 300
    )
    assert clustered.high - clustered.low > 1.5 * (single.high - single.low)
    assert clustered.value == single.value


def test_a_reference_on_other_texts_is_refused():
    scores, texts = _scores([1, 2], [3, 4]), _texts([0, 1], [0, 1])
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="other texts"):
        privacy.privleak_estimate(scores, privacy.PrivacyReference(0.5, (1.0,), (2.0,)), texts, generator, 10)
    other = privacy.PrivacyReference(0.5, (1.0, 2.0), (2.0, 1.0), "another digest")
    with pytest.raises(DataError, match="other texts"):
        privacy.privleak_estimate(scores, other, texts, generator, 10)


def test_a_reference_is_read_back_from_a_log(tmp_path):
    scores = privacy.MembershipScores((1.0, 2.5), (3.0, 2.0), (1.0, 1.0), (2.0, 2.0), (0.1, 0.1), (0.2, 0.2))
    path = tmp_path / "MUSE_EVAL.json"
    write_json_atomic(path, membership_entries(scores, "abc"))
    assert privacy.read_reference(path) == privacy.PrivacyReference(0.75, (1.0, 2.5), (3.0, 2.0), "abc")
    summary = tmp_path / "MUSE_SUMMARY.json"
    write_json_atomic(summary, {"mia_min_k": 0.5236})
    assert privacy.read_reference(summary) == privacy.PrivacyReference(0.5236)
    write_json_atomic(summary, {"forget_verbmem_ROUGE": 0.2})
    with pytest.raises(DataError, match="no mia_min_k"):
        privacy.read_reference(summary)
