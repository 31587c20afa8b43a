"""Attack by a small constant push of one layer's output, found by projected gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from falcon_unlearn.audit.attacks.forcing import Pair, drawn_facts, forced_pairs, forcing_loss
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.models.engine import BlockEngine


@dataclass(frozen=True)
class Latent:
    """Add one vector to every token's state behind a block, the same for all prompts, within a box.

    The vector is optimised for the right options of the attack split and scored on facts that it never saw.
    Control: a vector of random signs on the border of the same box.
    """

    layers: tuple[int, ...] | None = None
    """Blocks; None: at a quarter, half and three quarters of the depth."""
    epsilons: tuple[float, ...] = (0.1, 0.5)
    """Half the width of the box, relative to the median root mean square of that block's states."""
    steps: int = 30
    most_facts: int = 16
    """Facts of the attack split used in every step."""
    name: str = "latent"
    tier: Tier = "full"
    access: Access = "activations"
    knowledge: Knowledge = "forget answers"
    needs_original: bool = False
    source: str = "Casper et al. 2024, arXiv 2403.05030; Madry et al. 2018, arXiv 1706.06083"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant and one control per layer and width."""
        engine = BlockEngine(context.subject.model, context.structure)
        facts = drawn_facts(context.data.forget, self.most_facts, context.seed, self.name)
        pairs = forced_pairs(context.subject, facts, chat_template=context.chat_template)
        depth = context.structure.num_blocks
        layers = self.layers or tuple(dict.fromkeys(depth * quarter // 4 for quarter in (1, 2, 3)))
        for layer in layers:
            size = typical_size(engine, layer, pairs)
            for width in self.epsilons:
                push_D, loss = self._descend(engine, layer, pairs, width * size)
                label = f"layer-{layer}-epsilon-{width:g}"
                passes = self.steps * len(pairs)
                details: dict[str, float | str] = {"layer": layer, "epsilon": width * size, "loss": loss}
                again = partial(pushed, engine.block(layer), push_D)
                with again():
                    yield Attacked(label, cost=Cost(passes, passes), details=details, again=again)
                signs = _random_signs(push_D, context.seed + layer)
                with pushed(engine.block(layer), signs * (width * size)):
                    yield Attacked(f"{label}-random", control="random signs")

    def _descend(
        self, engine: BlockEngine, layer: int, pairs: list[Pair], epsilon: float
    ) -> tuple[Tensor, float]:
        """Minimise the loss by signed steps inside the box; return the best vector and its loss."""
        push_D = torch.zeros(engine.structure.hidden_size, device=engine.device)
        best_D, best = push_D, float("inf")
        for _ in range(self.steps):
            push_D = push_D.detach().requires_grad_(True)
            with torch.enable_grad(), pushed(engine.block(layer), push_D):
                loss = forcing_loss(engine, pairs)
                (gradient_D,) = torch.autograd.grad(loss, [push_D])
            if float(loss.detach()) < best:
                best_D, best = push_D.detach(), float(loss.detach())
            push_D = (push_D.detach() - 0.15 * epsilon * gradient_D.sign()).clamp(-epsilon, epsilon)
        return best_D, best


@contextmanager
def pushed(block: nn.Module, push_D: Tensor) -> Iterator[None]:
    """Add a vector to every state that leaves the block while the context is open."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + push_D.to(output[0]), *output[1:])
        return output + push_D.to(output)

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def typical_size(engine: BlockEngine, layer: int, pairs: list[Pair]) -> float:
    """Return the median over tokens of the root mean square of the states behind a block.

    The median: attention sinks are hundreds of times larger than other tokens.
    """
    sizes: list[Tensor] = []

    def observe(index: int, states_BLD: Tensor) -> None:
        if index == layer:
            sizes.append(states_BLD.detach().float().square().mean(dim=-1).sqrt().flatten())

    with torch.no_grad(), engine.observe(observe):
        forcing_loss(engine, pairs)
    return float(torch.cat(sizes).median())


def _random_signs(like_D: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, like_D.shape, generator=generator) * 2 - 1
    return signs.to(like_D)
