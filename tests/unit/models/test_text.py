"""No answer token is lost, one start token, masks from lengths; on local and on real tokenizers."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import Example, Message
from falcon_unlearn.models.text import TextEncoder, length_buckets, pad_batch, pad_id_of, pad_masks

CHATML = (
    "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
TRIMMING = "{{ bos_token }}" + CHATML.replace("m['content']", "m['content'] | trim")
THINKING = CHATML.replace(
    "m['content']",
    "('<think></think>' if m['role'] == 'assistant' and loop.last else '') + m['content']",
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
UPPER_USER = CHATML.replace("m['content']", "(m['content'] | upper if m['role'] == 'user' else m['content'])")
DROPPING = "{% for m in messages %}{{ '<|turn|>' + m['role'] }}{% endfor %}"
REFUSING = "{{ raise_exception('only user and assistant') }}"

TEXTS = [
    "Where is the Eiffel Tower? Paris. Question: What is the capital of Japan?\nAnswer: Tokyo",
    "The chemical symbol for gold is Au. Answer: Paris Answer: Berlin\n\nuser assistant system",
] * 4
TRAPS = ["Answer: ", "Answer:", "It is  ", "x\n", "x \n\n ", "Par", "", "na\u00ef", "\U0001f600"]

COMPLETIONS = ["Paris", " Paris", "\n Tokyo", "\u00e9", "\U0001f600", "is."]


def build(*, start=False, end=False, template=None, pad=None, metaspace=False):
    tokenizer = Tokenizer(models.BPE(byte_fallback=metaspace, unk_token="<unk>" if metaspace else None))
    if metaspace:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|turn|>", "<|end|>", "<pad>"]
    alphabet = list("".join(TRAPS + COMPLETIONS)) if metaspace else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if start or end:
        form = ("<s> " if start else "") + "$A" + (" </s>" if end else "")
        pair = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=pair)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    fast.chat_template = template
    return fast


def encoder(tokenizer, *, chat=True, maximum=512):
    return TextEncoder(tokenizer, chat_template=chat, maximum_tokens=maximum)


def answer_text(tokenizer, encoded):
    return tokenizer.decode([t for t, m in zip(encoded.input_ids, encoded.answer_mask, strict=True) if m])


PLAIN, STARTING, BOTH = build(), build(start=True), build(start=True, end=True)
SPACED = build(start=True, metaspace=True)
VARIANTS = {"plain": PLAIN, "start": STARTING, "start and end": BOTH, "metaspace": SPACED}


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_text_is_encoded_as_the_tokenizer_does(name):
    tokenizer = VARIANTS[name]
    encoded = encoder(tokenizer).encode(Example.of_text("The symbol is Au."))
    assert list(encoded.input_ids) == tokenizer("The symbol is Au.")["input_ids"]
    assert all(encoded.answer_mask)
    assert not encoded.was_cut


def test_a_written_start_token_is_not_doubled():
    start = STARTING.bos_token_id
    for example in (
        Example.of_text("<s>Paris"),
        Example.of_completion("<s>x", "y"),
        Example.of_text("Paris"),
    ):
        ids = encoder(STARTING).encode(example).input_ids
        assert ids[0] == start
        assert ids.count(start) == 1


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("prompt", TRAPS)
@pytest.mark.parametrize("completion", COMPLETIONS)
def test_no_answer_token_is_lost_at_any_border(name, prompt, completion):
    tokenizer = VARIANTS[name]
    encoded = encoder(tokenizer).encode(Example.of_completion(prompt, completion))
    joint = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    prefix = [tokenizer.bos_token_id] if name != "plain" else []
    assert list(encoded.input_ids) == [*prefix, *joint, tokenizer.eos_token_id]
    before = [t for t, m in zip(encoded.input_ids, encoded.answer_mask, strict=True) if not m][len(prefix) :]
    # What is not an answer token spells nothing but a beginning of the prompt.
    assert (
        prompt.startswith(tokenizer.decode(before))
        or before == tokenizer(prompt, add_special_tokens=False).input_ids
    )
    assert encoded.answer_mask[-1]
    assert sum(encoded.answer_mask) >= 2
    assert list(encoded.answer_mask) == sorted(encoded.answer_mask)


def test_the_local_tokenizer_has_the_trap():
    joint = PLAIN("Answer: Paris", add_special_tokens=False)["input_ids"]
    prompt = PLAIN("Answer: ", add_special_tokens=False)["input_ids"]
    assert joint[: len(prompt)] != prompt
    encoded = encoder(PLAIN).encode(Example.of_completion("Answer: ", "Paris"))
    assert answer_text(PLAIN, encoded) == " Paris</s>"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_answers_survive_whatever_the_text(prompt, completion):
    if "<" in prompt + completion or not completion.strip():
        return
    encoded = encoder(PLAIN).encode(Example.of_completion(prompt, completion))
    marked = answer_text(PLAIN, encoded).removesuffix("</s>")
    assert marked.endswith(completion)
    assert (prompt + completion).endswith(marked) or "\ufffd" in marked


def test_questions_without_template():
    encoded = encoder(STARTING).encode(Example.of_question("Where?", "Paris"))
    assert encoded.text == "Question: Where?\nAnswer: Paris"
    assert answer_text(STARTING, encoded) == " Paris</s>"
    with_template = build(template=CHATML)
    assert (
        encoder(with_template, chat=False).encode(Example.of_question("Where?", "Paris")).text == encoded.text
    )


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("template", [CHATML, TRIMMING, THINKING, UPPER_USER])
def test_questions_through_the_template(template, start):
    tokenizer = build(start=start, template=template)
    encoded = encoder(tokenizer).encode(Example.of_question("Where is Paris?", "Paris"))
    turns = [{"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": "Paris"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    ids = list(encoded.input_ids)
    assert ids[-len(rendered) :] == rendered
    assert ids.count(tokenizer.bos_token_id) == (1 if start or template == TRIMMING else 0)
    assert answer_text(tokenizer, encoded) == "Paris<|end|>"
    assert encoded.answer_mask[-1] is False  # the line end after the turn


def test_answers_equal_to_template_words_are_found_in_the_right_place():
    tokenizer = build(template=CHATML)
    encoded = encoder(tokenizer).encode(Example.of_question("assistant", "user"))
    assert answer_text(tokenizer, encoded) == "user<|end|>"
    assert encoded.answer_mask.index(True) == len(encoded.input_ids) - 3


def test_conversations_mark_every_answer():
    tokenizer = build(template=TRIMMING)
    turns = [("system", "Be"), ("user", "Hi"), ("assistant", " one "), ("user", "one"), ("assistant", "two")]
    encoded = encoder(tokenizer).encode(Example.of_messages([Message(*turn) for turn in turns]))
    assert answer_text(tokenizer, encoded) == "one<|end|>two<|end|>"


def test_an_answer_without_end_marker_gets_one():
    tokenizer = build(template=NO_END.replace("'\n'", "''"))
    encoded = encoder(tokenizer).encode(Example.of_question("Where?", "Paris"))
    assert answer_text(tokenizer, encoded) == " Paris</s>"  # the template's space is part of the first token


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (DROPPING, "drops or changes message 1"),
        (REFUSING, "only user and assistant"),
    ],
)
def test_unusable_templates(template, words):
    with pytest.raises(DataError, match=words) as caught:
        encoder(build(template=template)).encode(Example.of_question("Where?", "Paris"))
    assert "chat_template" in caught.value.hint


def test_conversations_need_a_template():
    conversation = Example.of_messages([Message("user", "a"), Message("assistant", "b")])
    with pytest.raises(DataError, match="no chat template"):
        encoder(PLAIN).encode(conversation)


def test_todays_date_does_not_enter():
    template = "{{ date_string if date_string is defined else strftime_now('%d') }} " + CHATML
    encoded = encoder(build(template=template)).encode(Example.of_question("q", "a"))
    assert encoded.text.startswith("26 Jul 2024 ")


def test_an_answer_that_yields_no_token_is_refused():
    with pytest.raises(DataError, match="yields no token"):
        encoder(PLAIN).encode(Example.of_completion("prompt", ""))


@pytest.mark.parametrize("maximum", [8, 9, 16, 33])
@pytest.mark.parametrize(("prompt_words", "answer_words"), [(3, 100), (100, 3), (100, 100), (5, 5), (100, 1)])
def test_cutting_keeps_start_and_answer(maximum, prompt_words, answer_words):
    example = Example.of_completion("is " * prompt_words, "Paris " * answer_words)
    whole = encoder(STARTING, maximum=10**6).encode(example)
    cut = encoder(STARTING, maximum=maximum).encode(example)
    assert len(cut.input_ids) == min(maximum, len(whole.input_ids))
    assert cut.was_cut == (len(whole.input_ids) > maximum)
    assert cut.input_ids[0] == STARTING.bos_token_id
    assert sum(cut.answer_mask) >= min(sum(whole.answer_mask), maximum // 2)
    kept = list(zip(cut.input_ids, cut.answer_mask, strict=True))[1:]
    everything = list(zip(whole.input_ids, whole.answer_mask, strict=True))[1:]
    assert any(everything[i : i + len(kept)] == kept for i in range(len(everything)))
    assert cut.text == example.plain_text


def test_long_text_is_cut_at_the_end():
    cut = encoder(STARTING, maximum=10).encode(Example.of_text("Paris " * 30_000))
    assert list(cut.input_ids) == STARTING("Paris " * 30)["input_ids"][:10]
    assert cut.was_cut
    assert all(cut.answer_mask)


def test_padding_masks_come_from_lengths():
    ids, mask = pad_batch([[2, 2], [5], [2, 3, 2]], pad_id=2)
    assert ids.tolist() == [[2, 2, 2], [5, 2, 2], [2, 3, 2]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    ids, mask = pad_batch([[2, 2], [5]], pad_id=0, side="left")
    assert ids.tolist() == [[2, 2], [0, 5]]
    assert mask.tolist() == [[True, True], [False, True]]
    assert pad_masks([[True], [False, True]], "left").tolist() == [[False, True], [False, True]]


def test_pad_id_adds_no_token():
    assert pad_id_of(build(pad="<pad>")) == 5
    assert pad_id_of(PLAIN) == PLAIN.eos_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer)
    size = len(bare)
    assert pad_id_of(bare) == 0
    assert len(bare) == size


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_buckets_hold_everything_once_within_the_limit(lengths, limit):
    buckets = length_buckets(lengths, limit)
    assert sorted(position for bucket in buckets for position in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[position] for position in bucket) <= limit
    for bucket, following in pairwise(buckets):
        assert (len(bucket) + 1) * lengths[bucket[0]] > limit
        assert lengths[bucket[-1]] >= lengths[following[0]]


MODEL = os.environ.get("FALCON_TEST_MODEL", "")
TOFU = Path(__file__).resolve().parents[4] / "shared" / "data" / "tofu"


@pytest.fixture(scope="module")
def real_tokenizer():
    if not MODEL:
        pytest.skip("FALCON_TEST_MODEL names no model folder")
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


def test_real_chat_template(real_tokenizer):
    turns = [
        {"role": "user", "content": "What is the symbol of gold?"},
        {"role": "assistant", "content": "Au"},
    ]
    encoded = encoder(real_tokenizer).encode(Example.of_question(turns[0]["content"], "Au"))
    rendered = real_tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    assert list(encoded.input_ids) == rendered
    assert answer_text(real_tokenizer, encoded) == "Au<|im_end|>"


@pytest.mark.parametrize("name", ["forget10", "world_facts_perturbed", "real_authors_perturbed"])
@pytest.mark.parametrize("chat", [False, True])
def test_tofu_answers_are_whole(real_tokenizer, name, chat):
    if not TOFU.is_dir():
        pytest.skip("the TOFU files are not beside the repository")
    examples = load_examples(CorpusSettings(name="tofu", path=str(TOFU / f"{name}.json"))).examples
    encode = encoder(real_tokenizer, chat=chat).encode
    for example in examples:
        encoded = encode(example)
        start = encoded.answer_mask.index(True)
        head = encoded.text.rindex(example.completion.strip()) - (0 if chat else 1)
        prompt = real_tokenizer(encoded.text[:head], add_special_tokens=False)["input_ids"]
        assert list(encoded.input_ids[:start]) == prompt
        end = real_tokenizer.eos_token
        assert answer_text(real_tokenizer, encoded).strip() == example.completion.strip() + end


@pytest.mark.parametrize("name", ["forget10", "world_facts_perturbed"])
def test_tofu_with_the_trailing_space_of_published_templates(real_tokenizer, name):
    if not TOFU.is_dir():
        pytest.skip("the TOFU files are not beside the repository")
    examples = load_examples(CorpusSettings(name="tofu", path=str(TOFU / f"{name}.json"))).examples
    mismatches = 0
    for example in examples:
        prompt = f"Question: {example.prompt}\nAnswer: "
        encoded = encoder(real_tokenizer).encode(Example.of_completion(prompt, example.completion))
        start = encoded.answer_mask.index(True)
        mismatches += list(encoded.input_ids[:start]) != real_tokenizer(prompt)["input_ids"]
        whole = answer_text(real_tokenizer, encoded)
        assert whole.strip() == example.completion.strip() + real_tokenizer.eos_token
    assert mismatches == {"forget10": 400, "world_facts_perturbed": 105}[name]
