from __future__ import annotations

import re

import pytest
import torch
from transformers import GenerationConfig

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation import generation
from falcon_unlearn.evaluation.patterns import MAXIMUM_TEXT, answer_pattern
from falcon_unlearn.evaluation.sets import GenerationItem
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.decoding import greedy_tokens
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens


def _greedy(model, prompt, num_tokens):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] == 2:
                break
    return ids[len(prompt) :]


def _item(answer="Au", accept=(), reject=()):
    return GenerationItem(
        id="1",
        prompt="p",
        answer=answer,
        accept=tuple(re.compile(p) for p in accept) or (answer_pattern(answer),),
        reject=tuple(re.compile(p) for p in reject),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_completions_equal_a_plain_greedy_loop(family):
    model, tokenizer = pico_model(family), pico_tokenizer()
    prompts = [random_tokens(size, seed=size) for size in (1, 4, 9, 15, 4)]
    expected = [
        tokenizer.decode([t for t in _greedy(model, prompt, 12) if t != 2], skip_special_tokens=True)
        for prompt in prompts
    ]
    for batch_tokens in (60, 4096):
        subject = Subject(model, tokenizer, batch_tokens)
        assert generation.greedy_completions(subject, prompts, maximum_new_tokens=12) == expected


def test_stopping_after_the_first_line_changes_nothing_that_is_judged():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    model.lm_head.weight.data[line_break] *= 2.0  # line breaks at places that depend on the text
    subject = Subject(model, tokenizer, 200)
    prompts = [random_tokens(5, seed=s) for s in range(30)]
    whole = generation.greedy_completions(subject, prompts, maximum_new_tokens=16)
    cut = generation.greedy_completions(subject, prompts, maximum_new_tokens=16, first_line=True)
    assert [generation.judged_text(t) for t in cut] == [generation.judged_text(t) for t in whole]
    shortened = sum(len(a) < len(b) for a, b in zip(cut, whole, strict=True))
    assert 3 <= shortened < 30, "some answers had more lines, others one only"


def test_an_empty_first_line_ends_no_answer():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    subject = Subject(model, tokenizer, 200)
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    prompt, letter = random_tokens(5, seed=0), tokenizer("a", add_special_tokens=False)["input_ids"][-1]

    def answer(*begun):
        return generation.greedy_completions(
            subject, [prompt], maximum_new_tokens=9, begun=[list(begun)], first_line=True
        )[0]

    model.lm_head.weight.data[line_break] = 0.0  # never the likeliest, since others are positive
    assert len(answer(line_break, line_break)) > 5
    assert answer(letter).startswith("a") and len(answer(letter)) > 5


def test_sampling_settings_of_the_model_are_ignored_and_restored():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    subject = Subject(model, tokenizer, 4096)
    prompts = [random_tokens(5, seed=s) for s in range(4)]
    plain = generation.greedy_completions(subject, prompts, maximum_new_tokens=8)
    wild = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=0, repetition_penalty=3.0, min_new_tokens=3, eos_token_id=2
    )
    model.generation_config = wild
    assert generation.greedy_completions(subject, prompts, maximum_new_tokens=8) == plain
    assert model.generation_config is wild


def test_answers_stop_at_any_end_token():
    model, tokenizer = pico_model("llama"), pico_tokenizer()
    prompt = random_tokens(6, seed=1)
    continuation = _greedy(model, prompt, 8)
    stop = continuation[3]
    first = continuation.index(stop)
    model.generation_config = GenerationConfig(eos_token_id=[2, stop])
    subject = Subject(model, tokenizer, 4096)
    assert subject.end_ids == {2, stop}
    found = generation.greedy_completions(subject, [prompt, random_tokens(9)], maximum_new_tokens=8)[0]
    assert found == tokenizer.decode(continuation[:first], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_begun_completions_are_completed_to_the_same_texts(family):
    model, tokenizer = pico_model(family), pico_tokenizer()
    prompts = [random_tokens(size, seed=size) for size in (1, 4, 9, 15, 4)]
    whole = [_greedy(model, prompt, 12) for prompt in prompts]
    subject = Subject(model, tokenizer, 4096)
    plain = generation.greedy_completions(subject, prompts, maximum_new_tokens=12)
    begun = [ids[:count] for ids, count in zip(whole, (0, 3, 12, 7, 1), strict=True)]
    assert generation.greedy_completions(subject, prompts, maximum_new_tokens=12, begun=begun) == plain


def test_completions_known_to_their_end_are_not_generated(monkeypatch):
    subject = Subject(pico_model("llama"), pico_tokenizer(), 4096)
    monkeypatch.setattr(generation, "greedy_tokens", lambda *_args, **_kwargs: pytest.fail("generated"))
    known = [[ord("a"), ord("b"), 2]]
    assert generation.greedy_completions(subject, [[5, 6]], maximum_new_tokens=8, begun=known) == ["ab"]


def test_rows_drop_out_when_they_end(monkeypatch):
    model = pico_model("llama")
    prompts = [random_tokens(6, seed=seed) for seed in range(8)]
    whole = [_greedy(model, prompt, 12) for prompt in prompts]
    stop = whole[0][1]
    sizes = []
    forward = model.forward

    def counted(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    budgets = [12, 1, 2, 3, 12, 4, 4, 0]
    found = greedy_tokens(model, prompts, budgets, end_ids={2, stop}, pad_id=0)
    for answer, plain, budget in zip(found, whole, budgets, strict=True):
        ends = [place for place, token in enumerate(plain) if token in (2, stop)]
        assert answer == plain[: min([budget, *(place + 1 for place in ends)])]
    assert sizes[0] == 7 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 4


def test_prompts_beyond_the_model_are_refused():
    subject = Subject(pico_model("llama"), pico_tokenizer(), 4096)
    with pytest.raises(DataError, match="prompt 1 has 250 tokens"):
        generation.greedy_completions(subject, [[5], random_tokens(250)], maximum_new_tokens=8)
    with pytest.raises(DataError, match="prompt 0 has 0 tokens"):
        generation.greedy_completions(subject, [[]], maximum_new_tokens=8)


def test_the_first_line_with_content_is_judged():
    assert generation.judged_text("\n  Au.\nAg") == "Au."
    assert generation.judged_text("\n Au.\nAg", first_line=False) == "Au.\nAg"
    assert generation.judged_text(" \n ") == ""
    assert len(generation.judged_text("x" * 9999)) == MAXIMUM_TEXT


@pytest.mark.parametrize(
    ("completion", "item", "correct"),
    [
        (" Au.", _item(), True),
        (" Aurum", _item(), False),
        (" au", _item(), False),
        (" not Ag but Au", _item(reject=[r"\bAg\b"]), False),
        (" Au, not Ag", _item(reject=[r"\bAg\b"]), True),
        (" C.U.", _item("C.U."), True),
        (" CxUx", _item("C.U."), False),
        (" gold", _item(accept=[r"\bAu\b", r"(?i)GOLD"]), True),
        ("\nAg\nAu", _item(), False),
        ("", _item(), False),
        (" Au", _item(reject=["Au"]), False),
    ],
)
def test_acceptance_needs_an_accepted_pattern_before_any_rejected_one(completion, item, correct):
    assert generation.is_correct(item, completion) is correct
