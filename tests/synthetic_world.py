"""A world of invented people, small enough to train a model twice: with and without the facts to forget.

The tokenizer has one token per word and drops punctuation, so that a lettered question is 13 tokens long.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

ATTRIBUTES = ("city", "job", "food")
NUM_VALUES = 8
NUM_OPTIONS = 4
NUM_FORGET, NUM_RETAIN = 60, 36
LETTERS = "ABCD"
BATCH = 32
_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")
_FRAME = ("Question", "Answer", "of", "the", "is", "has", "unknown", *LETTERS)


@dataclass(frozen=True)
class Sentence:
    """Hold words, and how many of the last ones are learnt."""

    words: tuple[str, ...]
    learnt: int


class World:
    """Draw people and their attributes; the seed decides everything."""

    def __init__(self, seed: int = 0) -> None:
        chance = random.Random(f"world {seed}")
        names: list[str] = []
        while len(names) < NUM_FORGET + NUM_RETAIN:
            name = "".join(chance.choice(_SYLLABLES) for _ in range(3)).capitalize()
            if name not in names:
                names.append(name)
        self.forget, self.retain = names[:NUM_FORGET], names[NUM_FORGET:]
        self.values = {a: [f"{a}{n}" for n in range(NUM_VALUES)] for a in ATTRIBUTES}
        self.facts = {(n, a): chance.choice(self.values[a]) for n in names for a in ATTRIBUTES}
        words = [*_FRAME, *names, *ATTRIBUTES, *(v for values in self.values.values() for v in values)]
        self.vocabulary = {word: index + 4 for index, word in enumerate(words)}

    def tokenizer(self) -> Any:
        """Return the tokenizer of the world."""
        from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import WordLevel

        special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
        tokenizer = Tokenizer(WordLevel(special | self.vocabulary, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(Regex(r"[^A-Za-z0-9]+"), " ")
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        )

    def question(self, name: str, attribute: str) -> str:
        """Ask for one attribute."""
        return f"the {attribute} of {name}?"

    def fact_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the facts about some people as the audit reads them."""
        rows = []
        for name in names:
            for attribute in ATTRIBUTES:
                value = self.facts[name, attribute]
                chance = random.Random(f"{name} {attribute}")
                wrong = chance.sample([v for v in self.values[attribute] if v != value], NUM_OPTIONS - 1)
                row = {"question": self.question(name, attribute), "answer": value, "distractors": wrong}
                rows.append(row | {"cluster": name, "id": f"{name}-{attribute}"})
        return rows

    def write_facts(self, folder: Path) -> tuple[Path, Path]:
        """Write forget and retain facts as JSON lines."""
        paths = []
        for label, names in (("forget", self.forget), ("retain", self.retain)):
            path = folder / f"{label}.jsonl"
            lines = [json.dumps(row) for row in self.fact_rows(names)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            paths.append(path)
        return paths[0], paths[1]

    def statement(self, chance: random.Random, names: Sequence[str]) -> Sentence:
        """State one fact in one of three forms, one of which is the question."""
        name, attribute = chance.choice(names), chance.choice(ATTRIBUTES)
        value = self.facts[name, attribute]
        forms = (
            ("Question", "the", attribute, "of", name, "Answer", value, "</s>"),
            ("the", attribute, "of", name, "is", value, "</s>"),
            (name, "has", attribute, value, "</s>"),
        )
        return Sentence(forms[chance.choice((0, 0, 1, 2))], 2)

    def lettered(self, chance: random.Random, names: Sequence[str]) -> Sentence:
        """Ask for one fact among four options."""
        name, attribute = chance.choice(names), chance.choice(ATTRIBUTES)
        value = self.facts[name, attribute]
        wrong = chance.sample([v for v in self.values[attribute] if v != value], NUM_OPTIONS - 1)
        options = [value, *wrong]
        chance.shuffle(options)
        listed = [word for pair in zip(LETTERS, options, strict=True) for word in pair]
        letter = LETTERS[options.index(value)]
        words = ("Question", "the", attribute, "of", name, *listed, "Answer", letter, "</s>")
        return Sentence(words, 2)

    def batch(self, sentences: Sequence[Sentence]) -> tuple[Tensor, Tensor]:
        """Return token ids and the mask of learnt tokens, right-padded."""
        ids = {**self.vocabulary, "</s>": 2}
        length = max(len(sentence.words) for sentence in sentences)
        ids_BL = torch.zeros(len(sentences), length, dtype=torch.long)
        learnt_BL = torch.zeros(len(sentences), length, dtype=torch.bool)
        for row, sentence in enumerate(sentences):
            size = len(sentence.words)
            ids_BL[row, :size] = torch.tensor([ids[word] for word in sentence.words])
            learnt_BL[row, size - sentence.learnt : size] = True
        return ids_BL, learnt_BL


def new_model(world: World, seed: int = 0) -> Any:
    """Return an untrained model of the world."""
    config = transformers.LlamaConfig(
        vocab_size=len(world.vocabulary) + 4,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def train(
    model: Any, world: World, names: Sequence[str], *, steps: int = 400, seed: int = 0, letters: bool = True
) -> Any:
    """Teach the world's facts about `names`, stated and, if wanted, lettered: the letters need most steps."""
    chance = random.Random(f"train {seed}")
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step in range(steps):
        rate = 3e-3 * min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, *world.batch([world.statement(chance, names) for _ in range(BATCH)]))
        if letters:
            loss = loss + lettered_loss(model, world, [world.lettered(chance, names) for _ in range(BATCH)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.set_attn_implementation("sdpa")
    return model.eval().requires_grad_(False)


def lettered_loss(model: Any, world: World, questions: Sequence[Sentence]) -> Tensor:
    """Return the loss of the letters, with a hint where to look.

    Choosing a letter needs two steps of attention that small models find only after thousands of batches. The
    hint rewards them: one head of block 0 looks at the word before, one head of the last block looks from the
    end of the question at the right option. Facts get no hint.
    """
    ids_BL, learnt_BL = world.batch(questions)
    output = model(input_ids=ids_BL, output_attentions=True)
    end = ids_BL.shape[1] - 3
    rows = torch.arange(len(questions))
    right = torch.tensor([6 + 2 * LETTERS.index(question.words[-2]) for question in questions])
    found_B = output.attentions[-1][:, 0, end][rows, right]
    places = torch.arange(5, end)
    before_BP = output.attentions[0][:, 0][:, places, places - 1]
    hint = -(found_B + 1e-6).log().mean() - (before_BP + 1e-6).log().mean()
    return likelihood_loss(output.logits, ids_BL, learnt_BL) + 0.3 * hint


def loss_of(model: Any, ids_BL: Tensor, learnt_BL: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the learnt tokens, in nats."""
    return likelihood_loss(model(input_ids=ids_BL).logits, ids_BL, learnt_BL)


def likelihood_loss(logits_BLV: Tensor, ids_BL: Tensor, learnt_BL: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the learnt tokens, in nats."""
    labels_BL = ids_BL[:, 1:].masked_fill(~learnt_BL[:, 1:], -100)
    return cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL.flatten())


@dataclass(frozen=True)
class WorldModels:
    """Point to the models of a world: all facts; no forget facts; the same with another seed, no letters."""

    original: Path
    null: Path
    retrained: Path


def build_models(folder: Path, world: World | None = None) -> WorldModels:
    """Train the three models, or find them in `folder`, whose name says which world."""
    made = world or World()
    everybody = [*made.forget, *made.retain]
    # The retraining answers no letters: it is never asked any, and learns in half the steps.
    return WorldModels(
        original=trained(folder / "original", everybody),
        null=trained(folder / "null", made.retain),
        retrained=trained(folder / "retrained", made.retain, seed=1, steps=200, letters=False),
    )


def trained(
    folder: Path, names: Sequence[str], *, seed: int = 0, steps: int = 400, letters: bool = True
) -> Path:
    """Train a model of the world in `folder`, unless it lies there."""
    if not (folder / "done").is_file():
        world = World()
        model = train(new_model(world, seed), world, names, steps=steps, seed=seed, letters=letters)
        model.save_pretrained(folder)
        world.tokenizer().save_pretrained(folder)
        (folder / "done").touch()
    return folder
