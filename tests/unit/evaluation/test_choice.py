from __future__ import annotations

import os

import pytest
import torch

from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation import choice
from falcon_unlearn.evaluation.sets import ChoiceItem
from falcon_unlearn.evaluation.subject import Subject
from pico import pico_model, pico_tokenizer

FACTS = [("gold", "Au"), ("iron", "Fe"), ("lead", "Pb"), ("tin", "Sn"), ("zinc", "Zn"), ("neon", "Ne")]


def _item(name, options, answer=0, question="The symbol of {} is"):
    text = question.format(name)
    return ChoiceItem(id=name, question=text, letter_question=text, options=tuple(options), answer=answer)


def _items():
    return [
        _item(name, [FACTS[(row + step) % len(FACTS)][1] + "x" * step for step in range(4)], answer=row % 4)
        for row, (name, _) in enumerate(FACTS)
    ]


def _brute_force(model, tokenizer, prompt, completion):
    """Token log-probabilities of `completion` after `prompt`, without batching or sharing."""
    ids = tokenizer(prompt)["input_ids"]
    extra = tokenizer(completion)["input_ids"]
    with torch.no_grad():
        values = model(torch.tensor([ids + extra])).logits[0].double().log_softmax(-1)
    return [values[len(ids) - 1 + step, token].item() for step, token in enumerate(extra)]


@pytest.fixture(scope="module")
def subject():
    return Subject(pico_model("qwen3"), pico_tokenizer(), 300)


def test_text_accuracy_takes_the_best_mean_log_probability(subject):
    items = _items()
    expected = []
    for item in items:
        means = []
        for option in item.options:
            values = _brute_force(subject.model, subject.tokenizer, item.question, " " + option)
            means.append(sum(values) / len(values))
        expected.append(float(means.index(max(means)) == item.answer))
    assert choice.text_accuracies(subject, items) == expected
    assert 0 < sum(expected) < len(items)


def test_letter_scores_average_the_cyclic_orders_of_two_token_letters(subject):
    items = _items()[:3]
    assert len(subject.tokenizer(" A")["input_ids"]) == 2
    for item, score in zip(items, choice.letter_scores(subject, items), strict=True):
        hits, masses = [], []
        for shift in range(4):
            order = item.options[shift:] + item.options[:shift]
            prompt = (
                f"Question: {item.letter_question}\nA. {order[0]}\nB. {order[1]}\nC. {order[2]}\n"
                f"D. {order[3]}\nAnswer:"
            )
            values = [
                sum(_brute_force(subject.model, subject.tokenizer, prompt, letter))
                for letter in (" A", " B", " C", " D")
            ]
            hits.append(order[values.index(max(values))] == item.options[item.answer])
            masses.append(sum(torch.tensor(values).exp().tolist()))
        assert score.accuracy == sum(hits) / 4
        assert score.mass == pytest.approx(sum(masses) / 4, abs=1e-5)


@pytest.mark.parametrize("num_options", [2, 3, 5, 8])
def test_each_option_stands_at_each_letter_once(num_options):
    item = _item("gold", [f"option{number}" for number in range(num_options)])
    prompts = [choice.letter_prompt(item, shift).splitlines() for shift in range(num_options)]
    for place in range(num_options):
        letters = "ABCDEFGH"
        assert {prompt[1 + place] for prompt in prompts} == {f"{letters[place]}. {o}" for o in item.options}


def test_a_model_that_always_says_the_same_letter_is_at_chance(subject, monkeypatch):
    from falcon_unlearn.models.scoring import CompletionScore

    def always_b(self, pairs):
        target = self.tokenizer(" B")["input_ids"]
        return [CompletionScore((-0.1 if list(c) == target else -5.0,), (True,)) for _, c in pairs]

    monkeypatch.setattr(Subject, "score", always_b)
    scores = choice.letter_scores(subject, _items())
    assert [score.accuracy for score in scores] == [0.25] * 6


def test_ties_share_the_credit():
    assert choice.credit([-1.0, -1.0, -2.0, -1.0], 0) == pytest.approx(1 / 3)
    assert choice.credit([-1.0, -1.0, -2.0], 2) == 0.0
    assert choice.credit([-1.0, -0.5], 1) == 1.0


def test_chance_level_follows_the_number_of_options():
    items = [_item("a", ["x", "y"]), _item("b", ["x", "y", "z", "u"])]
    assert choice.chance_level(items) == pytest.approx((0.5 + 0.25) / 2)


def _merging_tokenizer():
    """`: ` is one token before a letter in the prompt, and ` b` is one token when text follows."""
    import transformers
    from tokenizers import Tokenizer, models

    vocabulary = {token: index for index, token in enumerate(["</s>", "a", "b", "c", " ", ":", ": ", " b"])}
    bpe = models.BPE(vocab=vocabulary, merges=[(" ", "b"), (":", " ")])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), eos_token="</s>")


def test_merged_borders_shorten_the_prompt_for_all_options():
    subject = Subject(pico_model("llama"), _merging_tokenizer(), 100)
    prompt, completions = subject.encode_completions("a:", [" b", " c"])
    # "a: c" is a | ": " | c, so the colon is no longer a token of its own there.
    assert prompt == [1]
    assert completions == [[5, 7], [6, 3]]
    with pytest.raises(DataError, match="no common token"):
        subject.encode_completions(":", [" c"])


def test_end_token_added_by_the_tokenizer_is_not_part_of_a_prompt():
    from tokenizers.processors import TemplateProcessing

    tokenizer = pico_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    subject = Subject(pico_model("llama"), tokenizer, 100)
    assert tokenizer("ab")["input_ids"] == [1, 97, 98, 2]
    assert subject.encode("ab") == [1, 97, 98]
    assert subject.encode_completions("ab", [" c"]) == ([1, 97, 98], [[32, 99]])


@pytest.mark.model
@pytest.mark.skipif("FALCON_TEST_MODEL" not in os.environ, reason="set FALCON_TEST_MODEL to a SmolLM2 folder")
def test_a_real_model_knows_the_symbol_of_gold():
    import transformers

    folder = os.environ["FALCON_TEST_MODEL"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    subject = Subject(model, transformers.AutoTokenizer.from_pretrained(folder), 512)
    items = [
        _item("gold", ["Ag", "Au", "Fe", "Pb"], 1, "The chemical symbol for {} is"),
        _item("iron", ["Ag", "Au", "Fe", "Pb"], 2, "The chemical symbol for {} is"),
        _item("Paris", ["Spain", "Italy", "Norway", "France"], 3, "{} is the capital of"),
    ]
    assert choice.text_accuracies(subject, items) == [1.0, 1.0, 1.0]
    assert all(0 < score.mass <= 1 for score in choice.letter_scores(subject, items))
