from __future__ import annotations

import math

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from falcon_unlearn.bench.muse.criteria import (
    cut_answer,
    knowledge_prompt,
    knowledge_scores,
    text_probabilities,
    verbatim_scores,
)
from falcon_unlearn.bench.muse.data import QuestionAnswer, load_muse
from falcon_unlearn.bench.muse.verbatim import Locator
from falcon_unlearn.evaluation.subject import Subject


def _log_probabilities(model, ids):
    with torch.no_grad():
        values = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [values[at - 1, ids[at]].item() for at in range(1, len(ids))], values.argmax(-1).tolist()


def test_verbatim_scores_equal_one_plain_pass_over_the_whole_passage(pico, news_folder):
    data = load_muse(news_folder)
    subject = Subject(pico.model, pico.tokenizer, 600)
    locator = Locator(data.texts["raw/forget"])
    found = verbatim_scores(subject, data.verbatim, locator, use_stemmer=True, maximum_new_tokens=12)
    for sample, score, joint in zip(data.verbatim, found, (" ", " ", ""), strict=True):
        truth = sample.continuation[:12]
        ids = [ord(letter) for letter in sample.prompt + joint + truth]
        count = len(joint + truth)
        values, best = _log_probabilities(pico.model, ids)
        matches = [best[at - 1] == ids[at] for at in range(len(ids) - count, len(ids))]
        assert score.mean_log_probability == pytest.approx(sum(values[-count:]) / count, abs=1e-4)
        assert score.exact_memorisation == pytest.approx(sum(matches) / count)
        assert score.generated.truth == truth.strip()
        assert len(score.generated.generation) <= 12
        expected = RougeScorer(["rougeL"], use_stemmer=True).score(truth, score.generated.generation)
        assert score.generated.rouge.rouge_l_f1 == pytest.approx(expected["rougeL"].fmeasure)


def test_knowledge_scores_equal_one_plain_pass_per_question(pico):
    subject = Subject(pico.model, pico.tokenizer, 2000)
    shots = [QuestionAnswer("Who rang?", "Ann"), QuestionAnswer("Who sang?", "Bob")]
    items = [QuestionAnswer("Who ran away?", "Cleo and Dan"), QuestionAnswer("Where?", "Elm")]
    for item, score in zip(items, knowledge_scores(subject, items, shots, use_stemmer=False), strict=True):
        prompt = (
            "Question: Who rang?\nAnswer: Ann\n\nQuestion: Who sang?\nAnswer: Bob\n\n"
            f"Question: {item.question}\nAnswer:"
        )
        assert score.generated.prompt == prompt == knowledge_prompt(item, shots)
        ids = [ord(letter) for letter in f"{prompt} {item.answer}"]
        count = len(item.answer) + 1
        values, _ = _log_probabilities(pico.model, ids)
        assert score.mean_log_probability == pytest.approx(sum(values[-count:]) / count, abs=1e-4)
        assert score.probability == pytest.approx(math.exp(score.mean_log_probability))
    assert len(knowledge_scores(subject, items[:1], [], use_stemmer=False)) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris\n\nQuestion: next", "Paris"),
        (" Paris\nQuestion: next", "Paris"),
        (" Paris Question: next", "Paris"),
        (" Paris\nand more", "Paris\nand more"),
        ("\n\nParis", ""),
        ("", ""),
    ],
)
def test_answers_end_where_the_model_starts_something_new(text, answer):
    assert cut_answer(text) == answer


def test_text_probabilities_are_geometric_means(pico):
    subject = Subject(pico.model, pico.tokenizer, 2000)
    texts = [[70, 71, 72, 73], [80, 90]]
    for text, probability in zip(texts, text_probabilities(subject, texts), strict=True):
        values, _ = _log_probabilities(pico.model, text)
        assert probability == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-4)
