"""Attack by a text prefix that brings back the original's words and, if wanted, its hidden states."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from falcon_unlearn.audit.attacks.forcing import drawn_facts
from falcon_unlearn.audit.attacks.gcg import steepest
from falcon_unlearn.audit.attacks.prefixes import PrefixSpace, WithPrefix
from falcon_unlearn.audit.attacks.representation_terms import Objective, Weights
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.events import Notice, Progress
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EnhancedGcg:
    """Search a prefix with swaps, deletions and insertions under the loss of Thompson and Sklar.

    J = force + dynamic + static + 1.5 fluency + 3 repetition, mean over prompts. `force` is the loss of the
    first tokens that the original answers, floored at -ln .6; `dynamic` the distance of the states of the
    unlearned model from those of the original on the same attacked input; `static` ten times one minus the
    cosine with the original's states without the prefix. Weights of 0 switch terms off. The published attack
    started from prefixes found before; this one starts from random tokens.
    """

    weights: Weights = field(default_factory=Weights)
    layers: tuple[int, ...] | None = None
    """Blocks whose output is compared; None: three from a fifth of the depth on."""
    steps: int = 150
    num_prompts: int = 4
    candidates: int = 8
    """New prefixes per step (k1)."""
    alternatives: int = 64
    """Tokens considered per position (k2)."""
    buffer: int = 16
    """Best prefixes kept."""
    forced_tokens: int = 10
    matched_tokens: int = 35
    """Tokens of the original's answer that carry the static term."""
    lengths: tuple[int, int] = (8, 24)
    """Tokens at the start, and at the end of the ramp."""
    name: str = "enhanced-gcg"
    tier: Tier = "full"
    access: Access = "weights"
    knowledge: Knowledge = "forget questions"
    needs_original: bool = True
    source: str = "Łucki et al. 2024, arXiv 2409.18025; Thompson and Sklar 2024, arXiv 2407.17447"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield the best prefix, then a control; without the original there is nothing to match.

        Raises:
            DataError: The tokenizer has too few tokens that survive as text.
        """
        if context.original is None:
            message = f"{self.name}: needs the original, so it is left out"
            context.sink(Notice(message=message, level="warning"))
            return
        facts = drawn_facts(context.data.forget, self.num_prompts, context.seed, self.name)
        answers = self._answers(context, facts, context.original)
        space = PrefixSpace(context.subject, facts, answers, context.chat_template)
        search = _Search(context, self, space, context.original)
        best, value = search.run()
        details: dict[str, float | str] = {
            "objective": value,
            "prefix": space.text(best),
            "tokens": len(best),
            "capacity_bits": len(best) * math.log2(len(space.allowed)),
        }
        yield Attacked(
            "prefix",
            transform=WithPrefix(space.text(best)),
            cost=Cost(search.forwards, search.backwards),
            details=details | search.objective.terms(best),
        )
        words = space.text(space.drawn(len(best), search.chance))
        yield Attacked("random", transform=WithPrefix(words), control="random tokens")

    def _answers(
        self, context: AttackContext, facts: Sequence[Fact], original: Mapping[str, Tensor]
    ) -> list[str]:
        """Return what the original answers, or the right option where it says nothing."""
        subject, prompting = context.subject, Prompting(context.subject.tokenizer, context.chat_template)
        prompts = [subject.encode(prompting.generation_prompt(fact)) for fact in facts]
        with tensors_replaced(subject.model, dict(original)):
            answers = greedy_completions(subject, prompts, maximum_new_tokens=self.matched_tokens)
        return [answer.strip() or fact.answer for answer, fact in zip(answers, facts, strict=True)]


class _Search:
    def __init__(
        self,
        context: AttackContext,
        settings: EnhancedGcg,
        space: PrefixSpace,
        original: Mapping[str, Tensor],
    ) -> None:
        self.context, self.settings, self.space = context, settings, space
        self.chance = random.Random(f"{context.seed}:{settings.name}")
        engine = BlockEngine(context.subject.model, context.structure)
        depth = context.structure.num_blocks
        layers = settings.layers or tuple(range(depth // 5, min(depth, depth // 5 + 3)))
        self.objective = Objective(
            engine, space, dict(original), layers, settings.weights, settings.forced_tokens
        )
        self.forwards = self.backwards = 0

    def run(self) -> tuple[Tokens, float]:
        """Return the best prefix and its objective."""
        settings = self.settings
        start = self.space.drawn(settings.lengths[0], self.chance)
        kept = {start: self._values([start])[0]}
        for step in range(settings.steps):
            current = min(kept, key=kept.__getitem__)
            new = [tokens for tokens in self._moves(current, step) if tokens not in kept]
            kept |= dict(zip(new, self._values(new), strict=True))
            best = sorted(kept, key=kept.__getitem__)[: settings.buffer]
            kept = {tokens: kept[tokens] for tokens in best}
            message = f"{settings.name}: objective {kept[best[0]]:.3f}"
            self.context.sink(Progress(stage="audit", done=step + 1, total=settings.steps, message=message))
        return best[0], kept[best[0]]

    def _values(self, prefixes: Sequence[Tokens]) -> list[float]:
        models = 2 if self.settings.weights.dynamic else 1
        self.forwards += len(prefixes) * len(self.space.tasks) * models
        return [self.objective.value(prefix) for prefix in prefixes]

    def _moves(self, current: Tokens, step: int) -> list[Tokens]:
        """Return new prefixes: replacement by gradient .7, deletion, insertion and swap .1 each."""
        settings, chance = self.settings, self.chance
        gradient_KV, likely = self.objective.gradient(current, settings.alternatives)
        self.forwards += len(self.space.tasks) * (2 if settings.weights.dynamic else 1)
        self.backwards += len(self.space.tasks)
        choices = steepest(gradient_KV, self.space.allowed, settings.alternatives)
        first, last = settings.lengths
        limit = first + round((last - first) * min(1.0, step / max(1, 0.66 * settings.steps)))
        found: dict[Tokens, None] = {}
        for _ in range(8 * settings.candidates):
            place = chance.randrange(len(current))
            moves: tuple[str, ...] = ("replace", "delete", "insert", "swap")
            (move,) = chance.choices(moves, weights=(7, 1, 1, 1))
            if move == "delete" and len(current) > 1:
                new = (*current[:place], *current[place + 1 :])
            elif move == "insert" and len(current) < limit:
                new = (*current[:place], chance.choice(likely[place]), *current[place:])
            elif move == "swap":
                new = (*current[:place], chance.choice(likely[place]), *current[place + 1 :])
            else:
                new = (*current[:place], chance.choice(choices[place]), *current[place + 1 :])
            if new not in found and self.space.survives(new):
                found[new] = None
            if len(found) == settings.candidates:
                break
        return list(found)
