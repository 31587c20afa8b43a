"""A pico model that knows 72 facts, one that never saw two thirds of them, and one that hides those."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.evaluation.patterns import answer_pattern
from pico import pico_model, pico_tokenizer

OPTIONS = ("one", "two", "six", "ten")


def make_facts(prefix, count, seed):
    draw = random.Random(seed)
    facts = []
    for number in range(count):
        answer = draw.choice(OPTIONS)
        wrong = tuple(option for option in OPTIONS if option != answer)
        facts.append(
            Fact(
                f"{prefix}{number}",
                f"{prefix}{number}",
                f"{prefix}{number:02d} is",
                answer,
                wrong,
                accept=(answer_pattern(answer),),
                reject=tuple(answer_pattern(option) for option in wrong),
            )
        )
    return facts


def train(model, facts, steps=110):
    tokenizer = pico_tokenizer()
    rows = [tokenizer(f"{fact.question} {fact.answer}")["input_ids"] + [2] for fact in facts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    labels[:, : len(tokenizer(facts[0].question)["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train().requires_grad_(True)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval().requires_grad_(False)


class World:
    """Hold facts and models."""

    def __init__(self):
        self.forget, self.retain = make_facts("f", 48, 1), make_facts("r", 24, 2)
        start = {"num_hidden_layers": 2, "initializer_range": 0.08, "seed": 3}
        torch.manual_seed(0)
        self.original = train(pico_model("llama", **start), [*self.forget, *self.retain])
        self.null = train(pico_model("llama", **start), self.retain)
        self.unlearned = self._hidden()

    def _hidden(self):
        """Return the original fine-tuned to say one wrong thing about every forget fact."""
        model = copy.deepcopy(self.original)
        lies = [Fact(f.id, f.cluster, f.question, f.distractors[0], (f.answer,)) for f in self.forget]
        return train(model, [*lies, *self.retain], steps=50)

    def write(self, folder):
        """Write models and fact files; return their paths."""
        for name in ("original", "unlearned", "null"):
            getattr(self, name).save_pretrained(folder / name)
            pico_tokenizer().save_pretrained(folder / name)
        for name in ("forget", "retain"):
            rows = [
                {"question": f.question, "options": list(f.options), "answer": f.answer, "id": f.id}
                for f in getattr(self, name)
            ]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def world_files(world, tmp_path_factory):
    return world.write(tmp_path_factory.mktemp("audit-world"))
