from __future__ import annotations

import json

import pytest

from falcon_unlearn.audit.facts import Fact, FactSplit, split_by_cluster
from falcon_unlearn.audit.loading import check_disjoint, load_facts, statement
from falcon_unlearn.errors import DataError


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_with_distractors_keep_every_column(tmp_path):
    row = {
        "id": "au",
        "cluster": "gold",
        "question": "What is the symbol of gold?",
        "answer": "Au",
        "distractors": ["Ag", "Fe", "Pb"],
        "paraphrases": ["Which symbol has gold?"],
        "accept": ["Au"],
        "reject": ["Ag"],
    }
    (fact,) = load_facts(_write(tmp_path / "a.jsonl", [row]), seed=0)
    assert (fact.id, fact.cluster, fact.answer) == ("au", "gold", "Au")
    assert set(fact.options) == {"Au", "Ag", "Fe", "Pb"} and fact.options[fact.answer_index] == "Au"
    assert fact.paraphrases == ("Which symbol has gold?",)
    assert fact.is_question
    assert [pattern.pattern for pattern in fact.accept] == ["Au"]
    assert statement(fact) == "Question: What is the symbol of gold?\nAnswer: Au"


def test_rows_of_choice_evaluation_sets_are_facts_whose_options_continue_the_stem(tmp_path):
    row = {
        "question": "The symbol of gold is",
        "letter_question": "What is the symbol of gold?",
        "options": ["Ag", "Au"],
        "answer": 1,
        "cluster": "gold",
    }
    (fact,) = load_facts(_write(tmp_path / "a.jsonl", [row]), seed=0)
    assert (fact.question, fact.letter_question) == ("The symbol of gold is", "What is the symbol of gold?")
    assert fact.answer == "Au" and fact.distractors == ("Ag",) and not fact.is_question
    assert fact.accept[0].search("it is Au.") and fact.reject[0].search("it is Ag")


def test_plain_questions_draw_wrong_options_of_other_clusters_and_similar_length(tmp_path):
    rows = [
        {"question": f"Who is {number}?", "answer": "x" * number, "cluster": f"c{number // 2}"}
        for number in range(1, 40)
    ]
    source = _write(tmp_path / "a.jsonl", rows)
    facts = load_facts(source, seed=3)
    assert facts == load_facts(source, seed=3) != load_facts(source, seed=4)
    by_answer = {fact.answer: fact for fact in facts}
    for fact in facts:
        assert len(fact.distractors) == 3
        assert all(by_answer[wrong].cluster != fact.cluster for wrong in fact.distractors)
        assert all(abs(len(wrong) - len(fact.answer)) <= 14 for wrong in fact.distractors)
        assert fact.is_question


def test_conversations_and_completions_are_questions(tmp_path):
    talk = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(5)
    ]
    facts = load_facts(_write(tmp_path / "a.jsonl", talk), seed=0)
    assert [(fact.question, fact.answer) for fact in facts] == [(f"q{n}", f"a{n}") for n in range(5)]
    pairs = [{"prompt": f"p{n}", "completion": f" c{n}"} for n in range(5)]
    facts = load_facts(_write(tmp_path / "b.jsonl", pairs), seed=0)
    assert facts[2].answer == "c2" and not facts[2].is_question


def test_texts_ask_for_their_next_words_and_form_one_cluster_each(tmp_path):
    texts = [" ".join(f"t{number}w{word}" for word in range(70)) for number in range(4)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    facts = load_facts(str(tmp_path / "a.txt"), seed=0)
    assert len(facts) == 8 and len({fact.cluster for fact in facts}) == 4
    for fact in facts:
        text = texts[int(fact.cluster.split("-")[1]) - 1]
        assert statement(fact) in text
        assert all(wrong not in text for wrong in fact.distractors)
        assert fact.accept == ()


def test_a_limit_keeps_as_many_clusters_as_possible(tmp_path):
    rows = [
        {"question": f"q{n}?", "answer": f"a{n}", "distractors": ["b"], "cluster": f"c{n % 5}"}
        for n in range(50)
    ]
    facts = load_facts(_write(tmp_path / "a.jsonl", rows), seed=0, limit=5)
    assert len({fact.cluster for fact in facts}) == 5


def _fact(name, question="q", answer="a"):
    return Fact(name, name, question, answer, ("wrong",))


def test_the_same_fact_on_both_sides_is_refused():
    with pytest.raises(DataError, match=r"'x'.*'y'.*different clusters"):
        check_disjoint(FactSplit((_fact("x"),), (), (_fact("y", "Q", "A "),)))
    with pytest.raises(DataError, match=r"'x' is to be forgotten and, as 'z', to be kept"):
        check_disjoint(FactSplit((_fact("x"),), (), ()), [_fact("z")])
    split = split_by_cluster([_fact(f"n{n}", f"q{n}", f"a{n}") for n in range(12)], seed=0)
    check_disjoint(split, [_fact("z", "other", "other")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "a", "distractors": ["a"]}, "identical"),
        ({"question": "q", "answer": "a", "distractors": "b"}, "distractors must be a list"),
        ({"question": "q", "answer": "a"}, "needs wrong options"),
    ],
)
def test_unusable_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_facts(_write(tmp_path / "a.jsonl", [row]), seed=0)


def test_equal_ids_are_refused(tmp_path):
    row = {"id": "x", "question": "q", "answer": "a", "distractors": ["b"]}
    with pytest.raises(DataError, match="'x' occurs twice"):
        load_facts(_write(tmp_path / "a.jsonl", [row, row]), seed=0)
