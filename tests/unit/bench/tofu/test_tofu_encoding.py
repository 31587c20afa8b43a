from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from falcon_unlearn.bench.tofu.data import TofuRow, load_tofu
from falcon_unlearn.bench.tofu.encoding import encode_rows
from falcon_unlearn.errors import DataError
from falcon_unlearn.models.text import TextEncoder
from pico import pico_tokenizer
from shared_data import shared_data


def _smollm2_tokenizer():
    folders = sorted(Path.home().glob(".cache/falcon-unlearn/SmolLM2*/SmolLM2-135M-Instruct"))
    if not folders:
        pytest.skip("the SmolLM2 tokenizer is not here")
    return transformers.AutoTokenizer.from_pretrained(folders[0])


def _all_rows():
    data = load_tofu(shared_data("tofu"), "forget10")
    return {
        "full": data.full,
        "forget": data.forget,
        "retain": data.retain,
        "ra": data.real_authors,
        "wf": data.world_facts,
    }


def _check_all(tokenizer, encoder, sets):
    """Every answer is scored whole, after the tokens of the prompt by itself; return tokens per set."""
    counts = {}
    for name, rows in sets.items():
        prompts = [f"Question: {row.question}\nAnswer:" for row in rows]
        alone = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        joint = tokenizer(
            [f"{prompt} {row.answer}" for prompt, row in zip(prompts, rows, strict=True)],
            add_special_tokens=False,
        )["input_ids"]
        found = encode_rows(encoder, rows, name)
        for row, question, prompt, whole in zip(rows, found, alone, joint, strict=True):
            assert list(question.prompt) == prompt == whole[: len(prompt)]
            assert [*question.prompt, *question.answer] == [*whole, tokenizer.eos_token_id]
            assert len(question.perturbed) == len(row.perturbed_answers)
            for ids in question.completions:
                assert len(ids) >= 2 and ids[-1] == tokenizer.eos_token_id
        counts[name] = sum(len(question.prompt) + len(question.answer) for question in found)
    return counts


def test_no_row_loses_tokens_by_characters():
    tokenizer = pico_tokenizer()
    encoder = TextEncoder(tokenizer, chat_template=False, maximum_tokens=4096)
    sets = _all_rows()
    # Characters cannot merge, so a part of the larger files is enough.
    steps = {"full": 40, "forget": 8, "retain": 8}
    _check_all(tokenizer, encoder, {name: rows[:: steps.get(name, 1)] for name, rows in sets.items()})


def test_no_row_loses_tokens_under_smollm2():
    tokenizer = _smollm2_tokenizer()
    encoder = TextEncoder(tokenizer, chat_template=False, maximum_tokens=512)
    counts = _check_all(tokenizer, encoder, _all_rows())
    assert counts["full"] == 228_015  # the published count of one epoch


def test_the_chat_template_keeps_answers_whole():
    tokenizer = _smollm2_tokenizer()
    encoder = TextEncoder(tokenizer, chat_template=True, maximum_tokens=512)
    rows = _all_rows()["wf"]
    for row, found in zip(rows, encode_rows(encoder, rows, "wf"), strict=True):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": row.question}], tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(found.prompt) == expected
        assert tokenizer.decode(found.answer) == f"{row.answer}<|im_end|>"


def _merging_tokenizer():
    """Read `: B` as one token: answers that start with B swallow the end of the prompt."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    vocabulary = {"<unk>": 0, "</s>": 1, ": B": 2} | {chr(code): code for code in range(4, 128)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r": B|[\s\S]"), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    )


def test_a_merged_border_names_its_row():
    encoder = TextEncoder(_merging_tokenizer(), chat_template=False, maximum_tokens=512)
    good = TofuRow("Who?", "Carol", None, ("Dan", "Eve"))
    assert len(encode_rows(encoder, [good], "wf")) == 1
    with pytest.raises(DataError, match=r"wf, row 1: the tokenizer merges .*'Bob'"):
        encode_rows(encoder, [good, TofuRow("Who?", "Carol", None, ("Dan", "Bob"))], "wf")


def test_a_row_that_is_cut_names_itself():
    encoder = TextEncoder(pico_tokenizer(), chat_template=False, maximum_tokens=40)
    with pytest.raises(DataError, match="forget, row 0: more than 40 tokens"):
        encode_rows(encoder, [TofuRow("Who?", "x" * 40)], "forget")
