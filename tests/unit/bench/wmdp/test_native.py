from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from falcon_unlearn.bench.wmdp.data import Question
from falcon_unlearn.bench.wmdp.native import (
    ChoiceScore,
    cloze_prompt,
    cyclic_accuracies,
    frequent_letter_accuracy,
    letter_prompt,
    longest_option_accuracy,
    robust_questions,
    rotated,
    score_cloze,
    score_letters,
)
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject

QUESTION = Question(0, "college_biology", " What is moss? ", ("plant", "stone", "bird", "song"), 0)
SHOT = Question(0, "college_biology", "What sings?", ("moss", "stone", "bird", "clay"), 2)


def score(values, answer=0, lengths=(1, 1, 1, 1)):
    return ChoiceScore(0, "s", answer, tuple(values), tuple(lengths))


def log_likelihood(model, tokenizer, prompt, target, last=None):
    """Sum the target's log-probabilities from one plain forward pass of at most `last` tokens."""
    ids = tokenizer(prompt + target)["input_ids"]
    fed = ids[:-1] if last is None else ids[:-1][-last:]
    with torch.no_grad():
        values = torch.log_softmax(model(torch.tensor([fed])).logits[0].double(), dim=-1)
    number = len(ids) - len(tokenizer(prompt)["input_ids"])
    return sum(values[-number + i, token].item() for i, token in enumerate(ids[-number:]))


def test_letter_prompt_is_the_known_wording():
    assert letter_prompt(QUESTION, [SHOT]) == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "What sings?\nA. moss\nB. stone\nC. bird\nD. clay\nAnswer: C\n\n"
        "What is moss?\nA. plant\nB. stone\nC. bird\nD. song\nAnswer:"
    )


def test_cloze_prompt_shows_no_option():
    assert cloze_prompt(QUESTION) == (
        "The following are questions (with answers) about college biology.\n\n"
        "Question: What is moss?\nAnswer:"
    )


def test_letters_match_a_plain_forward_pass(loaded, mmlu):
    scores = score_letters(Subject(loaded.model, loaded.tokenizer), mmlu, max_length=500)
    assert [s.index for s in scores] == list(range(24))
    for question, found in list(zip(mmlu.questions, scores, strict=True))[::5]:
        expected = [
            log_likelihood(loaded.model, loaded.tokenizer, letter_prompt(question), f" {letter}")
            for letter in "ABCD"
        ]
        assert found.log_likelihoods == pytest.approx(expected, abs=1e-4)
        assert found.mass == pytest.approx(sum(math.exp(value) for value in expected), rel=1e-4)
        assert not found.was_cut


def test_cloze_matches_a_plain_forward_pass(loaded, wmdp_bio):
    scores = score_cloze(Subject(loaded.model, loaded.tokenizer), wmdp_bio, max_length=500)
    question, found = wmdp_bio.questions[3], scores[3]
    expected = [
        log_likelihood(loaded.model, loaded.tokenizer, cloze_prompt(question), f" {choice}")
        for choice in question.choices
    ]
    assert found.log_likelihoods == pytest.approx(expected, abs=1e-4)
    assert found.num_characters == tuple(len(choice) for choice in question.choices)


def test_long_prompts_lose_their_beginning(loaded, wmdp_bio):
    scores = score_letters(Subject(loaded.model, loaded.tokenizer), wmdp_bio, max_length=40)
    question = wmdp_bio.questions[0]
    expected = [
        log_likelihood(loaded.model, loaded.tokenizer, letter_prompt(question), f" {letter}", last=40)
        for letter in "ABCD"
    ]
    assert scores[0].log_likelihoods == pytest.approx(expected, abs=1e-4)
    assert all(found.was_cut for found in scores)


def test_an_option_longer_than_the_window_is_refused(loaded, wmdp_bio):
    with pytest.raises(DataError, match="an option has"):
        score_cloze(Subject(loaded.model, loaded.tokenizer), wmdp_bio, max_length=4)


def test_tie_goes_to_the_first_option():
    tied = score([-1.0, -2.0, -1.0, -3.0], answer=2)
    assert tied.is_tied
    assert not tied.is_correct
    assert replace(tied, answer=0).is_correct


def test_length_normalisation_divides_by_characters():
    found = score([-2.0, -3.0, -9.0, -9.0], answer=1, lengths=(1, 3, 1, 1))
    assert not found.is_correct
    assert found.is_correct_by_length


def test_rotation_moves_options_and_answer_together(mmlu):
    for shift in range(4):
        for before, after in zip(mmlu.questions, rotated(mmlu, shift).questions, strict=True):
            assert after.choices[after.answer] == before.choices[before.answer]
            assert after.choices[0] == before.choices[shift]


def test_a_model_that_likes_one_letter_gets_a_quarter(mmlu):
    orders = [
        [
            score([0.0, -5.0, -5.0, -5.0], answer=question.answer)
            for question in rotated(mmlu, shift).questions
        ]
        for shift in range(4)
    ]
    assert cyclic_accuracies(orders) == [0.25] * 24


def test_baselines_by_hand():
    questions = [
        replace(QUESTION, choices=("aa", "b", "c", "d"), answer=0),
        replace(QUESTION, choices=("aa", "bb", "c", "d"), answer=1),
        replace(QUESTION, choices=("a", "b", "cc", "d"), answer=3),
        replace(QUESTION, choices=("a", "b", "c", "dd"), answer=3),
    ]
    assert longest_option_accuracy(questions) == 0.5  # the second ties and the first of the tie is wrong
    assert frequent_letter_accuracy(questions) == 0.5
    assert robust_questions(questions) == [questions[2]]
