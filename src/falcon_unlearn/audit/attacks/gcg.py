"""Attack by a universal text prefix, found token by token from gradients (greedy coordinate gradient)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.attacks.forcing import drawn_facts
from falcon_unlearn.audit.attacks.prefixes import PrefixSpace, WithPrefix, right_options
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.events import Progress
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import head_logits
from falcon_unlearn.models.text import pad_batch

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Gcg:
    """Minimise the mean loss of several right option texts over one prefix in front of all of them.

    Each step takes the gradient by the one-hot tokens of the prefix, keeps the `top_k` steepest replacements
    per position, draws `width` single swaps, drops those whose text does not tokenise to themselves, and goes
    on from the best. The prefix is scored on facts that it never saw; random tokens are the control.
    """

    num_tokens: int = 12
    steps: int = 100
    width: int = 64
    top_k: int = 64
    num_prompts: int = 4
    stop_below: float = 0.05
    """Stop at this loss, in nats per token."""
    name: str = "gcg"
    tier: Tier = "full"
    access: Access = "weights"
    knowledge: Knowledge = "forget answers"
    needs_original: bool = False
    source: str = "Zou et al. 2023, arXiv 2307.15043"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield the best prefix, then the control.

        Raises:
            DataError: The tokenizer has too few tokens that survive as text.
        """
        subject = context.subject
        facts = drawn_facts(context.data.forget, self.num_prompts, context.seed, self.name)
        space = PrefixSpace(subject, facts, right_options(facts), context.chat_template)
        chance = random.Random(f"{context.seed}:{self.name}")
        start = space.drawn(self.num_tokens, chance)
        search = _Search(context, self, space, chance)
        best, loss = search.run(start)
        yield Attacked(
            "prefix",
            transform=WithPrefix(space.text(best)),
            cost=Cost(search.forwards, search.backwards),
            details={
                "loss": loss,
                "prefix": space.text(best),
                "tokens": len(best),
                "capacity_bits": len(best) * math.log2(len(space.allowed)),
            },
        )
        words = space.text(space.drawn(self.num_tokens, chance))
        yield Attacked("random", transform=WithPrefix(words), control="random tokens")


class _Search:
    def __init__(
        self, context: AttackContext, settings: Gcg, space: PrefixSpace, chance: random.Random
    ) -> None:
        self.context, self.settings, self.space, self.chance = context, settings, space, chance
        self.engine = BlockEngine(context.subject.model, context.structure)
        self.forwards = self.backwards = 0

    def run(self, start: Tokens) -> tuple[Tokens, float]:
        """Return the best prefix met and its loss."""
        current, best, lowest = start, start, math.inf
        for step in range(self.settings.steps):
            candidates = self._candidates(current)
            if not candidates:
                break
            losses = self.space.losses(candidates)
            self.forwards += len(candidates) * len(self.space.tasks)
            place = min(range(len(candidates)), key=losses.__getitem__)
            current = candidates[place]
            if losses[place] < lowest:
                best, lowest = current, losses[place]
            message = f"{self.settings.name}: loss {lowest:.3f}"
            self.context.sink(
                Progress(stage="audit", done=step + 1, total=self.settings.steps, message=message)
            )
            if lowest <= self.settings.stop_below:
                break
        return best, lowest

    def _candidates(self, current: Tokens) -> list[Tokens]:
        gradient_KV = token_gradient(self.engine, self.space, current)
        self.forwards += len(self.space.tasks)
        self.backwards += len(self.space.tasks)
        choices = steepest(gradient_KV, self.space.allowed, self.settings.top_k)
        found: dict[Tokens, None] = {}
        for _ in range(self.settings.width):
            place = self.chance.randrange(len(current))
            token = self.chance.choice(choices[place])
            found[(*current[:place], token, *current[place + 1 :])] = None
        found.pop(current, None)
        return [tokens for tokens in found if self.space.survives(tokens)]


def token_gradient(engine: BlockEngine, space: PrefixSpace, prefix: Tokens) -> Tensor:
    """Return the gradient of the mean loss by the one-hot tokens of the prefix, K x V."""
    rows = [(task.before, prefix, task.after, task.target) for task in space.tasks]
    ids_BL, _ = pad_batch([[*before, *z, *after, *target][:-1] for before, z, after, target in rows], 0)
    with torch.enable_grad():
        states_BLD = engine.embed(ids_BL.to(engine.device)).detach().requires_grad_(True)
        output = engine.base(inputs_embeds=states_BLD, use_cache=False).last_hidden_state
        losses = []
        for row, (before, z, after, target) in enumerate(rows):
            start = len(before) + len(z) + len(after) - 1
            logits = head_logits(engine.model, output[row, start : start + len(target)])
            losses.append(cross_entropy(logits, torch.tensor(target, device=engine.device)))
        (gradient_BLD,) = torch.autograd.grad(torch.stack(losses).mean(), [states_BLD])
    total_KD = torch.zeros(len(prefix), gradient_BLD.shape[-1], device=engine.device)
    for row, (before, z, _, _) in enumerate(rows):
        total_KD += gradient_BLD[row, len(before) : len(before) + len(z)].float()
    table_VD = engine.base.get_input_embeddings().weight.detach()
    gradient_KV: Tensor = total_KD @ table_VD.float().T
    return gradient_KV


def steepest(gradient_KV: Tensor, allowed: Sequence[int], count: int) -> list[list[int]]:
    """Return, per position, the allowed tokens by which the loss is predicted to fall most."""
    ids = torch.tensor(list(allowed), device=gradient_KV.device)
    order = (-gradient_KV[:, ids]).topk(min(count, len(ids)), dim=1).indices
    chosen: list[list[int]] = ids[order].tolist()
    return chosen
