"""A pico model that knows a few made-up facts, and ways to mask its knowledge without removing it.

The last block writes nothing while the facts are taught, so that an edit there masks and cannot remove. After
a right answer the model says a dot, after a wrong one an exclamation mark: it knows which answers are true.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.base import AttackContext, AttackData, Attacked
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.evaluation.choice import credit
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.architectures import ModelStructure, find_structure
from falcon_unlearn.models.engine import tensors_replaced
from pico import pico_model, pico_tokenizer

LAST = 3
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@lru_cache
def _tokenizer() -> Any:
    return pico_tokenizer()


@dataclass(frozen=True)
class Taught:
    model: Any
    forget: tuple[Fact, ...]
    retain: tuple[Fact, ...]

    @property
    def subject(self) -> Subject:
        return Subject(self.model, _tokenizer(), 4096)

    @property
    def structure(self) -> ModelStructure:
        return find_structure(self.model)

    @property
    def held_out(self) -> tuple[Fact, ...]:
        """Return the forget facts that the attacker does not see."""
        return self.forget[len(self.forget) // 2 :]

    def context(self, original: Mapping[str, Tensor] | None = None, **settings: Any) -> AttackContext:
        data = AttackData(
            forget=self.forget[: len(self.forget) // 2],
            retain=self.retain[: len(self.retain) // 2],
            retain_texts=tuple(f"{fact.question} {fact.answer}." for fact in self.retain[:6]),
        )
        return AttackContext(self.subject, self.structure, data, seed=0, original=original, **settings)

    def accuracy(self, facts: tuple[Fact, ...], attacked: Attacked | None = None) -> float:
        """Return the share of facts whose option text is the likeliest."""
        subject, credits = self.subject, []
        encoded = [subject.encode_completions(f.question, [f" {o}" for o in f.options]) for f in facts]
        if attacked is not None and attacked.decoder is not None:
            scores = attacked.decoder.option_scores(subject, [p for p, _ in encoded], [c for _, c in encoded])
        else:
            pairs = [(prompt, option) for prompt, options in encoded for option in options]
            flat = iter(subject.score(pairs))
            scores = [[next(flat).mean_log_probability for _ in options] for _, options in encoded]
        for fact, values in zip(facts, scores, strict=True):
            credits.append(credit(values, fact.answer_index))
        return sum(credits) / len(credits)

    def spoken(self, facts: tuple[Fact, ...]) -> float:
        """Return the share of facts whose greedy answer starts with the right option."""
        subject = self.subject
        prompts = [subject.encode(fact.question) for fact in facts]
        answers = greedy_completions(subject, prompts, maximum_new_tokens=4)
        return sum(a.strip().startswith(f.answer) for a, f in zip(answers, facts, strict=True)) / len(facts)


def make_facts(kind: str, count: int, seed: int) -> tuple[Fact, ...]:
    chance = random.Random(seed)
    words = [a + b for a in CONSONANTS for b in VOWELS]
    names = chance.sample([f"{a}{b}" for a in words[::2] for b in words[1::2]], count)
    facts = []
    for number, name in enumerate(names):
        answer, *others = chance.sample(words, 4)
        facts.append(
            Fact(f"{kind}-{number}", f"{kind}-{number // 2}", f"{kind} {name}:", answer, tuple(others))
        )
    return tuple(facts)


def encoded_texts(facts: tuple[Fact, ...], chance: random.Random) -> tuple[Tensor, Tensor]:
    """Return ids and labels of every fact with its answer and with one wrong option, as B x L."""
    encode = _tokenizer().backend_tokenizer.encode  # many times faster than the wrapper for short texts
    rows, labels = [], []
    for fact in facts:
        for option in (fact.answer, chance.choice(fact.distractors)):
            right = option == fact.answer
            ids = encode(f"{fact.question} {option}{'.' if right else '!'}").ids
            start = len(encode(fact.question).ids) if right else len(ids) - 1
            rows.append(ids)
            labels.append([-100] * start + ids[start:])
    width = max(map(len, rows))
    fill = lambda row, value: row + [value] * (width - len(row))  # noqa: E731
    return torch.tensor([fill(r, 0) for r in rows]), torch.tensor([fill(r, -100) for r in labels])


def answer_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@lru_cache
def taught(steps: int = 110, **overrides: Any) -> Taught:
    model = pico_model("llama", seed=3, initializer_range=0.06, num_hidden_layers=LAST + 1, **overrides)
    forget, retain = make_facts("f", 16, 1), make_facts("r", 12, 2)
    silent = [model.model.layers[LAST].self_attn.o_proj.weight, model.model.layers[LAST].mlp.down_proj.weight]
    for weight in silent:
        weight.data.zero_()
    learned = [p for p in model.parameters() if not any(p is s for s in silent)]
    optimizer = torch.optim.AdamW(learned, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    chance = random.Random(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20, (steps - step) / (steps / 2))
        optimizer.zero_grad()
        answer_loss(model, *encoded_texts(forget + retain, chance)).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
    optimizer.zero_grad()
    model.requires_grad_(False)
    return Taught(model, forget, retain)


@contextmanager
def masked(world: Taught, edits: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Replace tensors, and give the attacker what they were before."""
    parameters = dict(world.model.named_parameters())
    original = {name: parameters[name].detach().clone() for name in edits}
    with tensors_replaced(world.model, dict(edits)):
        yield original


def fingerprint(model: Any) -> dict[str, Any]:
    """Describe everything that an attack must leave as it found it, bit for bit."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "storage": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in kinds],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "config": model.config.to_dict(),
        "random": torch.get_rng_state(),
    }


def assert_untouched(model: Any, before: dict[str, Any]) -> None:
    after = fingerprint(model)
    for name, tensor in before["weights"].items():
        assert torch.equal(tensor, after["weights"][name]), f"{name} changed"
    assert torch.equal(before["random"], after["random"]), "the global random state moved"
    for part in ("storage", "hooks", "gradients", "modes", "modules", "config"):
        assert before[part] == after[part], part


def worsen(
    world: Taught, bounds: Mapping[str, tuple[Tensor, Tensor]], *, steps: int = 20, share: float = 0.2
) -> dict[str, Tensor]:
    """Return edits inside lower and upper bounds that raise the loss on the forget facts: projected ascent.

    Every step moves each weight by `share` of its allowed range in the direction of the gradient's sign.
    """
    parameters = dict(world.model.named_parameters())
    chosen = [parameters[name] for name in bounds]
    ids, labels = encoded_texts(world.forget, random.Random(0))
    edits = {name: parameters[name].detach().clone() for name in bounds}
    for _ in range(steps):
        with tensors_replaced(world.model, edits):
            for parameter in chosen:
                parameter.requires_grad_(True)
            gradients = torch.autograd.grad(answer_loss(world.model, ids, labels), chosen)
            for parameter in chosen:
                parameter.requires_grad_(False)
        for (name, (low, high)), gradient in zip(bounds.items(), gradients, strict=True):
            edits[name] = (edits[name] + share * (high - low) * gradient.sign()).clamp(low, high)
    return edits
