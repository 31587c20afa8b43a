"""Preparation keeps what it says, counts what it drops, and refuses what cannot work."""

from __future__ import annotations

import json

import pytest

from falcon_unlearn.config.data import DataSettings
from falcon_unlearn.data.corpora import prepare_corpora
from falcon_unlearn.data.sources import make_corpus
from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import EncodedExample, Example

MAXIMUM = 12


def encode(example):
    """Stand in for the tokenizer: one token per word, answers are the words of the completion."""
    words = example.plain_text.split()
    answer = len(words) - len((example.completion or example.plain_text).split())
    ids = tuple(hash(word) % 1000 for word in words)[:MAXIMUM]
    mask = tuple(position >= answer for position in range(len(words)))[:MAXIMUM]
    return EncodedExample(ids, mask, example.plain_text, len(words) > MAXIMUM)


def sentences(topic, number):
    return [f"{topic} fact {i}: item {i * 7} of {topic} equals {i * i}" for i in range(number)]


def settings(forget=("f",), retain=("r",), **options):
    def corpora(names):
        return [n if isinstance(n, dict) else {"name": n, "path": n + ".jsonl"} for n in names]

    return DataSettings(forget=corpora(forget), retain=corpora(retain), maximum_tokens=MAXIMUM, **options)


def prepare(texts, data=None, seed=0, **options):
    def load(corpus):
        rows = texts[corpus.name]
        return make_corpus([r if isinstance(r, Example) else Example.of_text(r) for r in rows], corpus.path)

    return prepare_corpora(data or settings(), encode, seed=seed, load=load, **options)


def test_counts_add_up_and_sets_are_disjoint():
    forget = [*sentences("gold", 30), "GOLD  fact 3: item 21 of gold equals 9", "too short", " ", "w " * 20]
    retain = [*sentences("city", 40), forget[5], forget[6].upper(), forget[5].lower()]
    data = prepare({"f": forget, "r": retain})
    first, second = data.result.corpora
    assert (first.role, first.read, first.too_short, first.cut, first.duplicates) == ("forget", 34, 2, 1, 1)
    assert (first.training, first.held_out, first.overlapping) == (28, 3, 0)
    assert (second.role, second.read, second.overlapping, second.too_short) == ("retain", 43, 2, 0)
    assert (second.training, second.held_out, second.duplicates) == (36, 4, 1)
    for count, corpus in zip(data.result.corpora, (*data.forget, *data.retain), strict=True):
        assert count.training == len(corpus.training)
        assert count.held_out == len(corpus.held_out) == len(corpus.held_out_examples)
        assert count.tokens == sum(len(e.input_ids) for e in corpus.training)
        assert not {e.text for e in corpus.training} & {e.text for e in corpus.held_out}
        assert [e.plain_text for e in corpus.held_out_examples] == [e.text for e in corpus.held_out]
        dropped = count.too_short + count.duplicates + count.overlapping
        assert count.read == dropped + count.training + count.held_out
    assert data.result.warnings == ["r: 3 of 43 retain examples occur in forget text; dropped"]


def test_read_from_files(tmp_path):
    for name in "fr":
        rows = "\n".join(json.dumps({"text": text}) for text in sentences(name, 12))
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    data = settings(*([{"name": n, "path": str(tmp_path / f"{n}.jsonl"), "weight": 2}] for n in "fr"))
    prepared = prepare_corpora(data, encode, seed=0)
    assert [c.source for c in prepared.result.corpora] == ["f.jsonl", "r.jsonl"]
    assert str(tmp_path) not in prepared.result.model_dump_json()
    assert prepared.forget[0].weight == 2


def test_order_depends_on_seed_and_own_name_only():
    texts = {"f": sentences("gold", 20), "g": sentences("iron", 20), "r": sentences("city", 20)}

    def order(data, seed):
        return [e.text for e in prepare(texts, data, seed).retain[0].training]

    assert order(settings(), 1) == order(settings(("f", "g")), 1)
    assert order(settings(), 1) != order(settings(), 2)
    assert order(settings(), 1) != sorted(order(settings(), 1))


def test_limit_comes_before_the_split_and_spares_the_tokenizer():
    data = settings(({"name": "f", "path": "f.jsonl", "limit": 10},))
    calls = []
    prepared = prepare_corpora(
        data,
        lambda example: calls.append(example) or encode(example),
        seed=0,
        load=lambda c: make_corpus(map(Example.of_text, sentences(c.name, 50)), c.name),
    )
    assert (len(prepared.forget[0].training), len(prepared.forget[0].held_out)) == (9, 1)
    assert len(calls) == 10 + 50
    full = prepare({"f": sentences("f", 50), "r": sentences("r", 50)})
    everything = {e.text for e in (*full.forget[0].held_out, *full.forget[0].training)}
    assert {e.text for e in prepared.forget[0].training} < everything


@pytest.mark.parametrize(
    ("number", "share", "held_out"),
    [(10, 0.01, 1), (9, 0.01, 0), (9, 0.5, 4), (1, 0.5, 0), (20, 0.0, 0), (40, 0.1, 4), (2, 0.5, 1)],
)
def test_hold_out_sizes(number, share, held_out):
    data = prepare({"f": sentences("f", number), "r": sentences("r", 10)}, settings(holdout_share=share))
    assert (len(data.forget[0].held_out), len(data.forget[0].training)) == (held_out, number - held_out)
    wanted = (
        ["f: 9 examples are too few to hold one out for evaluation"] if (number, share) == (9, 0.01) else []
    )
    assert [w for w in data.result.warnings if number == 9 and w.startswith("f")] == wanted


def test_overlap_modes():
    texts = {"f": sentences("gold", 12), "r": [*sentences("city", 12), sentences("gold", 1)[0] + " indeed"]}
    dropped, kept = prepare(texts), prepare(texts, settings(overlap="warn"))
    assert [d.result.corpora[1].overlapping for d in (dropped, kept)] == [1, 1]
    assert [d.result.corpora[1].training + d.result.corpora[1].held_out for d in (dropped, kept)] == [12, 13]
    assert "works against itself" in kept.result.warnings[0]
    with pytest.raises(DataError, match=r"r: 1 of 13 retain examples occur.*number 13: 'gold fact 0"):
        prepare(texts, settings(overlap="error"))


@pytest.mark.parametrize("overlap", ["error", "drop", "warn"])
def test_forget_equal_to_retain_is_refused(overlap):
    texts = {"f": sentences("gold", 12), "r": [t.upper() for t in reversed(sentences("gold", 12))]}
    with pytest.raises(DataError, match="same texts as the forget domain f") as caught:
        prepare(texts, settings(overlap=overlap))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("forget", "retain", "words"),
    [
        (["a b", "c"], sentences("r", 3), "f: nothing is left of 2 forget examples (2 too short)"),
        ([], sentences("r", 3), "f: nothing is left of 0 forget examples (it is empty)"),
        (sentences("f", 9), [*sentences("f", 2), "x"], "(1 too short, 2 found in forget text)"),
    ],
)
def test_nothing_left_says_why(forget, retain, words):
    with pytest.raises(DataError) as caught:
        prepare({"f": forget, "r": retain})
    assert words in caught.value.message
    assert caught.value.hint


def test_blank_answers_never_reach_training():
    rows = [Example.of_question(f"what is the number {i} of all", f"it is {i}") for i in range(5)]
    data = prepare(
        {"f": [*rows, Example.of_question("what is the last number", " ")], "r": sentences("r", 5)}
    )
    assert data.result.corpora[0].too_short == 1
    assert all(any(e.answer_mask) for e in data.forget[0].training)


def test_examples_without_answer_tokens_count_as_too_short():
    def cut_off(example):
        mask = (not example.text.startswith("f fact 2:"),) * 6
        return EncodedExample((1, 2, 3, 4, 5, 6), mask, example.text, False)

    data = prepare_corpora(
        settings(),
        cut_off,
        seed=0,
        load=lambda c: make_corpus(map(Example.of_text, sentences(c.name, 5)), c.name),
    )
    assert [count.too_short for count in data.result.corpora] == [1, 0]


def test_self_sampled_retain_text():
    calls = []

    def sample(number, tokens, seed):
        calls.append((number, tokens, seed))
        return sentences("dream", number)

    data = settings(retain=({"name": "r", "path": "self"},), self_samples=11, self_tokens=9)
    prepared = prepare({"f": sentences("f", 3)}, data, seed=5, sample_self=sample)
    assert calls == [(11, 9, 5)]
    assert prepared.result.corpora[1].source == "self"
    assert prepared.result.corpora[1].read == 11
    with pytest.raises(DataError, match="`self` samples"):
        prepare({"f": sentences("f", 3)}, data)


def test_many_cut_examples_are_remarked():
    data = prepare({"f": ["word " * 20 + str(i) for i in range(3)], "r": sentences("r", 3)})
    assert any("3 of 3 examples were cut at 12 tokens" in warning for warning in data.result.warnings)


def test_encoding_failures_name_the_example():
    def refuse(example):
        raise DataError("no token", hint="remove it")

    with pytest.raises(DataError, match=r"f, example \d: no token") as caught:
        prepare_corpora(
            settings(),
            refuse,
            seed=0,
            load=lambda c: make_corpus([Example.of_text(c.name + " x y z w")], c.name),
        )
    assert caught.value.hint == "remove it"
