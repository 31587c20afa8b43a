"""Measuring changes nothing, and what is decided depends on neither batches, order nor padding."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from falcon_unlearn.config.evaluation import EvaluationSettings
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.choice import letter_scores, text_accuracies
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.sets import ChoiceItem
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluate
from falcon_unlearn.examples import Example, Message
from falcon_unlearn.models.text import TextEncoder, pad_batch, render_chat
from pico import FAMILIES, pico_model, pico_tokenizer, random_tokens

WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus".split()


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def items() -> list[ChoiceItem]:
    """Three questions, each with every option as the right one in turn."""
    draw = random.Random(0)
    made = []
    for number, length in enumerate((2, 4, 3)):
        stem = " ".join(draw.choices(WORDS, k=length))
        options = tuple(draw.sample(WORDS, 3))
        for answer in range(3):
            item = {"question": stem, "letter_question": stem, "options": options, "answer": answer}
            made.append(ChoiceItem(id=f"{number}-{answer}", **item))
    return made


def test_a_hook_changes_the_logits_and_its_removal_restores_every_bit():
    model, ids = pico_model("llama"), torch.tensor([random_tokens(12)])
    with torch.no_grad():
        before, known = model(ids).logits, weights_hash(model)
        handle = model.model.layers[2].register_forward_hook(lambda module, inputs, output: output * 0.5)
        assert not torch.equal(model(ids).logits, before)
        handle.remove()
        assert torch.equal(model(ids).logits, before)
    assert weights_hash(model) == known


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_evaluation_leaves_weights_mode_and_hooks_alone(tmp_path: Path, family):
    choice = [{"question": "amber is", "options": WORDS[:4], "answer": 0}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choice))
    (tmp_path / "g.jsonl").write_text(json.dumps({"prompt": "basil", "answer": "x"}) + "\n")
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": " ".join(WORDS)}) + "\n")
    sets = [
        {"name": kind[0], "role": "general", "kind": kind, "path": str(tmp_path / f"{kind[0]}.jsonl")}
        for kind in ("choice", "generation", "perplexity")
    ]
    settings = EvaluationSettings.model_validate({"sets": sets, "resamples": 100, "maximum_new_tokens": 3})
    model, ids = pico_model(family).train(), torch.tensor([random_tokens(9)])
    known, flags = weights_hash(model), [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        logits = model(ids).logits
    result = evaluate(model, pico_tokenizer(), settings, label="single", model_name="m", seed=0)
    assert len(result.sets) == 3
    assert weights_hash(model) == known and model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def test_decisions_depend_on_neither_batch_size_nor_order():
    model, tokenizer, asked = pico_model("llama"), pico_tokenizer(), items()
    order = random.Random(1).sample(range(len(asked)), len(asked))
    shuffled = [asked[index] for index in order]
    whole = Subject(model, tokenizer, 100_000)
    reference = text_accuracies(whole, asked)
    assert sum(reference) == 3
    letters = [score.accuracy for score in letter_scores(whole, asked)]
    prompts = [tokenizer(item.question)["input_ids"] for item in asked]
    texts = greedy_completions(whole, prompts, maximum_new_tokens=3)
    subject = Subject(model, tokenizer, 128)
    assert text_accuracies(subject, shuffled) == [reference[index] for index in order]
    assert [score.accuracy for score in letter_scores(subject, shuffled)] == [letters[i] for i in order]
    again = greedy_completions(subject, [prompts[i] for i in order], maximum_new_tokens=3)
    assert again == [texts[i] for i in order]


@pytest.mark.parametrize("family", FAMILIES)
def test_left_and_right_padding_give_the_logits_of_the_bare_text(family):
    model = pico_model(family)
    rows = [random_tokens(length, seed=length) for length in (7, 3, 5)]
    with torch.no_grad():
        bare = [model(torch.tensor([row])).logits[0, -1] for row in rows]
        for side in ("left", "right"):
            ids, mask = pad_batch(rows, 0, side)
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
            logits = model(ids, attention_mask=mask.long(), position_ids=positions).logits
            for row, expected in enumerate(bare):
                last = logits.shape[1] - 1 if side == "left" else len(rows[row]) - 1
                assert torch.allclose(logits[row, last], expected, atol=2e-4), (side, row)
                assert logits[row, last].argmax() == expected.argmax()


def with_start():
    """A tokenizer that puts a start token in front of every text, and a template that writes one too."""
    tokenizer = pico_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
GOLDEN = {
    CHATML: "<|im_start|>user\nWho? <|im_end|>\n<|im_start|>assistant\n",
    LLAMA: "<s>[user]\n\nWho?<eot>[assistant]\n\n",
    GEMMA: "<s><turn>user\nWho?<end>\n<turn>model\n",
}


@pytest.mark.parametrize("template", GOLDEN, ids=["chatml", "llama", "gemma"])
def test_golden_prompts_start_exactly_once(template):
    tokenizer = with_start()
    tokenizer.chat_template = template
    rendered = render_chat(tokenizer, [Message("user", "Who? ")], prompt=True)
    assert rendered == GOLDEN[template]
    ids = Subject(None, tokenizer).encode(rendered)
    assert ids.count(1) == 1 and ids[0] == 1
    encoded = TextEncoder(tokenizer, chat_template=True, maximum_tokens=200).encode(
        Example.of_question("Who? ", "Ada")
    )
    assert encoded.input_ids.count(1) == 1 and encoded.input_ids[0] == 1
    assert list(encoded.input_ids[: len(ids)]) == ids


@pytest.mark.parametrize("text", ["plain", "<s>written"])
def test_plain_texts_start_exactly_once(text):
    tokenizer = with_start()
    assert Subject(None, tokenizer).encode(text).count(1) == 1
    encoded = TextEncoder(tokenizer, chat_template=False, maximum_tokens=50).encode(Example.of_text(text))
    assert encoded.input_ids.count(1) == 1


def test_a_token_beyond_the_embedding_is_refused_where_a_text_spells_it():
    tokenizer = pico_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    subject = Subject(pico_model("llama"), tokenizer)
    assert subject.encode("no image") == [ord(letter) for letter in "no image"]
    with pytest.raises(DataError, match="id 128, the embedding has 128 rows"):
        subject.encode("an <image>")
