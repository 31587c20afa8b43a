"""Attacks whose effect on a pico model is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from falcon_unlearn.audit.base import Attacked, Cost, PromptTransform
from falcon_unlearn.models.engine import tensors_replaced


@dataclass(frozen=True)
class Fake:
    """Attributes that every attack has."""

    name: str = "fake"
    tier: str = "quick"
    access: str = "weights"
    knowledge: str = "none"
    needs_original: bool = False
    source: str = "test"


@dataclass(frozen=True)
class Restore(Fake):
    """Mix the original's tensors in."""

    name: str = "restore"
    shares: tuple[float, ...] = (0.0, 0.1, 1.0)
    lasting: bool = False

    def attack(self, context) -> Iterator[Attacked]:
        own = dict(context.subject.model.named_parameters())
        for share in self.shares:
            mixed = {
                name: own[name].data + share * (tensor - own[name].data)
                for name, tensor in (context.original or {}).items()
            }
            again = partial(tensors_replaced, context.subject.model, mixed)
            with again():
                yield Attacked(
                    f"share-{share:g}",
                    cost=Cost(3, 1),
                    details={"tensors": len(mixed)},
                    again=again if self.lasting else None,
                )
        yield Attacked("random", control="random direction")


@dataclass(frozen=True)
class Destroy(Fake):
    """Zero every block's output."""

    name: str = "destroy"

    def attack(self, context) -> Iterator[Attacked]:
        own = context.subject.model.named_parameters()
        zeros = {name: torch.zeros_like(p) for name, p in own if "down_proj" in name or "o_proj" in name}
        with tensors_replaced(context.subject.model, zeros):
            yield Attacked("zeros")


@dataclass(frozen=True)
class Ask(Fake):
    """Change nothing but the prompt."""

    name: str = "ask"

    def attack(self, context) -> Iterator[Attacked]:
        yield Attacked("same", transform=PromptTransform(), formats=("text",))


@dataclass(frozen=True)
class Dirty(Fake):
    """Leave a hook or a changed weight behind."""

    what: str = "weights"

    def attack(self, context) -> Iterator[Attacked]:
        model = context.subject.model
        yield Attacked("x")
        if self.what == "weights":
            next(model.parameters()).data.mul_(1.001)
        elif self.what == "hooks":
            model.lm_head.register_forward_hook(lambda *_: None)
        elif self.what == "training":
            model.train()
        else:
            next(model.parameters()).requires_grad_(True)
