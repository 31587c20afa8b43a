"""Memorisation and membership against hand-made numbers and scikit-learn; blind words are caught."""

import math
import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from falcon_unlearn.audit.membership import (
    Sample,
    Samples,
    TextScores,
    blind_baseline,
    fact_samples,
    memorisation_result,
    score_texts,
    true_positive_rate,
)
from knowing import HELD_OUT, TOKENIZER, context, knowing, untouched


def samples():
    return fact_samples(HELD_OUT, seed=0, chat_template=False, tokenizer=TOKENIZER)


def measured():
    found = {}
    for role, model in (("unlearned", knowing()), ("null", knowing(knows=False))):
        with untouched(model):
            found[role] = score_texts(context(model).subject, samples())
    return found


def test_a_model_that_learnt_the_answers_is_told_from_one_that_did_not():
    result = memorisation_result(samples(), measured(), seed=0)
    learnt, null = result.models
    assert [model.model for model in result.models] == ["unlearned", "null"]
    assert learnt.extraction_strength.value == learnt.exact_memorisation.value == 1.0
    assert learnt.extraction_strength_others.value == 0.0
    assert null.extraction_strength.value <= 0.2
    for score in learnt.membership:
        assert score.auc.value >= 0.95, score.name
        assert score.auc.low <= score.auc.value <= score.auc.high
        assert score.true_positive_rate is None
    assert {score.name for score in learnt.membership} - {score.name for score in null.membership} == {
        "reference"
    }
    assert all(score.auc.low <= 0.5 <= score.auc.high for score in null.membership)
    assert result.num_members == result.num_others == 10


def test_scores_equal_those_of_a_plain_forward_pass():
    model = knowing(knows=False)
    found = score_texts(context(model).subject, samples())
    texts = (*samples().members, *samples().others)
    for place, text in enumerate(texts):
        prompt = TOKENIZER(text.prompt)["input_ids"]
        answer = TOKENIZER(text.answer, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        log_p = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        values = log_p[range(len(answer)), answer]
        mean = (log_p.exp() * log_p).sum(-1)
        deviation = ((log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1)) ** 0.5
        loss = -float(values.mean())
        assert found.scores["loss"][place] == pytest.approx(loss, rel=1e-4)
        size = len(zlib.compress(text.answer.strip().encode()))
        assert found.scores["zlib"][place] == pytest.approx(loss / size, rel=1e-4)
        # Answers of one token: the lowest fifth is that token.
        assert len(answer) == 1
        assert found.scores["min_k"][place] == pytest.approx(loss, rel=1e-4)
        assert found.scores["min_k_plus_plus"][place] == pytest.approx(
            -float((values - mean) / deviation), rel=1e-3
        )


def made(members, others):
    texts = Samples(
        tuple(Sample("q", f" {n}", f"c{n}") for n in range(len(members))),
        tuple(Sample("q", f" {n}", f"c{n}") for n in range(len(others))),
    )
    values = np.array([*members, *others])
    scores = TextScores({"loss": values}, np.zeros(len(values)), np.zeros(len(values)))
    return texts, scores


def test_areas_and_rates_equal_scikit_learn():
    draw = np.random.default_rng(0)
    members, others = draw.normal(0.0, 1.0, 150), draw.normal(1.0, 1.0, 200)
    texts, scores = made(members, others)
    (model,) = memorisation_result(texts, {"unlearned": scores}, seed=0).models
    labels = [1] * len(members) + [0] * len(others)
    values = -np.concatenate([members, others])
    found = model.membership[0]
    assert found.auc.value == pytest.approx(roc_auc_score(labels, values))
    rates, hits, _ = roc_curve(labels, values, drop_intermediate=False)
    assert found.true_positive_rate == pytest.approx(max(hits[rates <= 0.01]))
    assert true_positive_rate(members, others[:99]) is None


def test_an_area_turns_over_with_the_sign():
    texts, scores = made([0.1, 0.5, 0.2], [0.4, 0.9, 0.3])
    nothing = scores.exact_memorisation
    turned = TextScores({"loss": -scores.scores["loss"]}, nothing, nothing)
    values = [
        memorisation_result(texts, {"unlearned": each}, seed=0).models[0].membership[0].auc.value
        for each in (scores, turned)
    ]
    assert math.fsum(values) == pytest.approx(1.0)


def test_words_that_give_the_split_away_are_caught_and_equal_words_are_not():
    draw = np.random.default_rng(1)
    words = [f"w{n}" for n in range(30)]

    def sentences(extra, start):
        return tuple(
            Sample("q", " ".join([*draw.choice(words, 6), *extra]), f"c{start + n}") for n in range(40)
        )

    confounded = Samples(sentences(["today"], 0), sentences(["yesterday"], 100))
    assert blind_baseline(confounded, seed=0).value > 0.95
    same = blind_baseline(Samples(sentences([], 0), sentences([], 100)), seed=0)
    assert same.low <= 0.5 <= same.high


def test_samples_ask_for_right_and_wrong_options_of_the_same_questions():
    found = samples()
    for fact, member, other in zip(HELD_OUT, found.members, found.others, strict=True):
        assert member.prompt == other.prompt == fact.question
        assert member.answer == f" {fact.answer}"
        assert other.answer.strip() in fact.distractors
        assert member.cluster == other.cluster == fact.cluster
    assert found == samples()
