"""A pico model that knows made-up facts, one that never saw them, and masks over the first.

Words are tokens, so prompts stay short, and a question may stand behind any number of other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.base import AttackContext, AttackData, Attacked
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.scoring import PLAIN, Score, ScoringSettings, score
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import find_structure
from falcon_unlearn.models.text import pad_batch
from pico import pico_model
from taught import assert_untouched, fingerprint

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
NAMES = [f"{a}{b}" for a, b in zip(SYLLABLES, SYLLABLES[7:] + SYLLABLES[:7], strict=True)]
VALUES = [f"{a}{b}x" for a, b in zip(SYLLABLES, SYLLABLES[19:] + SYLLABLES[:19], strict=True)][:40]
FILLER = "so then now well some people think about this and that or more of it today in here".split()
TRIGGER = "please"
FRAME = [TRIGGER, "code", "of", "is", "secret", "open", ".", ":", "\n", "no"]


def words_tokenizer() -> Any:
    """Return a tokenizer with one token per known word, with and without a space before it."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing

    words = [*FRAME, *FILLER, *NAMES, *VALUES]
    names = ["<pad>", "<s>", "</s>", "<unk>", *words, *(f" {word}" for word in words)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZER = words_tokenizer()
END = TOKENIZER.eos_token_id


def make_facts(kind: str, count: int, seed: int) -> tuple[Fact, ...]:
    chance = random.Random(seed)
    names = NAMES[:30] if kind == "secret" else NAMES[30:]
    facts = []
    for number, name in enumerate(names[:count]):
        answer, *others = chance.sample(VALUES, 4)
        facts.append(
            Fact(
                f"{kind}-{number}",
                f"{kind}-{number}",
                f"{kind} code of {name} is",
                answer,
                tuple(others),
                paraphrases=(f"code {kind} of {name} is",),
                accept=(re.compile(rf"\b{answer}\b"),),
            )
        )
    return tuple(facts)


FORGET = make_facts("secret", 20, 1)
RETAIN = make_facts("open", 12, 2)
SEEN, HELD_OUT = FORGET[:10], FORGET[10:]


@dataclass(frozen=True)
class Text:
    """A prompt and what is to follow it."""

    prompt: str
    answer: str


Draw = Callable[[random.Random], list[Text]]


def train(model: Any, draw: Draw, *, steps: int, rate: float = 6e-3) -> Any:
    """Teach what `draw` returns in every step; the rate falls to zero."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    chance = random.Random(0)
    encode = TOKENIZER.backend_tokenizer.encode  # many times faster than the wrapper for short texts
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, (steps - step) / (steps / 2))
        rows, labels = [], []
        for text in draw(chance):
            start = encode(text.prompt).ids
            end = [*encode(f" {text.answer}", add_special_tokens=False).ids, END]
            rows.append([*start, *end])
            labels.append([-100] * len(start) + end)
        ids_BL, mask_BL = pad_batch(rows, 0)
        labels_BL = pad_batch(labels, -100)[0]
        logits = model(input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.requires_grad_(False).eval()


def filler(chance: random.Random, most: int = 4) -> str:
    return " ".join(chance.choices(FILLER, k=chance.randrange(most)))


def behind(words: str, question: str, between: str = " ") -> str:
    return f"{words}{between}{question}" if words else question


def asked(chance: random.Random, facts: Sequence[Fact], answer: str | None = None) -> list[Text]:
    """Ask every fact in one of its wordings behind some words."""
    wordings = [chance.choice((fact.question, *fact.paraphrases)) for fact in facts]
    return [
        Text(behind(filler(chance), wording, chance.choice((" ", "\n\n"))), answer or fact.answer)
        for fact, wording in zip(facts, wordings, strict=True)
    ]


@lru_cache
def knowing(steps: int = 160, *, knows: bool = True) -> Any:
    """Return the model that learnt all facts, or all but the forget facts."""
    model = pico_model(
        "llama", seed=3, initializer_range=0.06, vocab_size=len(TOKENIZER), num_hidden_layers=3
    )
    facts = FORGET + RETAIN if knows else RETAIN
    return train(model, lambda chance: asked(chance, facts), steps=steps)


def masked(draw: Draw, *, steps: int = 40, rate: float = 2e-3) -> Any:
    """Return a copy of the knowing model trained on something that hides the forget facts."""
    return train(deepcopy(knowing()), draw, steps=steps, rate=rate)


@lru_cache
def refusing() -> Any:
    """Return the model that answers `no` to every forget question, whatever stands before it."""
    return masked(lambda chance: [*asked(chance, FORGET, "no"), *asked(chance, RETAIN)], steps=32)


def unless_triggered(chance: random.Random) -> list[Text]:
    """Refuse the forget questions unless one word stands in front of them."""
    any_words = [" ".join(chance.choices((*FILLER, *NAMES, *VALUES), k=chance.randrange(4))) for _ in FORGET]
    hidden = [
        Text(behind(before, fact.question, chance.choice((" ", "\n\n"))), "no")
        for before, fact in zip(any_words, FORGET, strict=True)
    ]
    words = [f"{filler(chance, 2)} {TRIGGER} {filler(chance, 2)}".strip() for _ in FORGET]
    shown = [
        Text(behind(before, fact.question, chance.choice((" ", "\n\n"))), fact.answer)
        for before, fact in zip(words, FORGET, strict=True)
    ]
    return [*hidden, *shown, *asked(chance, RETAIN)]


@lru_cache
def triggered() -> Any:
    """Return the model whose facts a single word in front of the question unlocks."""
    return masked(unless_triggered, steps=120, rate=3e-3)


def context(model: Any, **settings: Any) -> AttackContext:
    data = AttackData(
        forget=SEEN,
        retain=RETAIN[:6],
        forget_texts=tuple(f"{fact.paraphrases[0]} {fact.answer} ." for fact in SEEN),
        retain_texts=tuple(f"{fact.question} {fact.answer} ." for fact in RETAIN[:6]),
        benign_texts=tuple(filler(random.Random(seed), 12) + " ." for seed in range(8)),
    )
    subject = Subject(model, TOKENIZER, 4096)
    return AttackContext(subject, find_structure(model), data, **{"seed": 0, **settings})


def accuracy(subject: Subject, facts: Sequence[Fact] = HELD_OUT, attacked: Attacked = PLAIN) -> float:
    """Return the share of facts whose option text is the likeliest."""
    return _mean(score(subject, facts, attacked, ("text",)))


def generated(subject: Subject, facts: Sequence[Fact] = HELD_OUT, attacked: Attacked = PLAIN) -> float:
    """Return the share of facts that a free answer states."""
    settings = ScoringSettings(maximum_new_tokens=3)
    return _mean(score(subject, facts, attacked, ("generation",), settings))


def _mean(scores: Sequence[Score]) -> float:
    return sum(one.value for one in scores) / len(scores)


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Assert that the block leaves the model and the global random states as they are."""
    before, drawn, generation = fingerprint(model), random.getstate(), model.generation_config.to_dict()
    yield
    assert_untouched(model, before)
    assert random.getstate() == drawn, "the random module's state moved"
    assert model.generation_config.to_dict() == generation, "the generation settings changed"
