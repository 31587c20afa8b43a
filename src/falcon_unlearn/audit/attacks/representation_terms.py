"""The objective of Enhanced GCG: forced words, the original's states, fluency and repetition.

Legend: K prefix tokens, L tokens of a sequence, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from falcon_unlearn.audit.attacks.prefixes import PrefixSpace, Task
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced
from falcon_unlearn.models.packing import head_logits

Tokens = tuple[int, ...]
LEAST_FORCE = -math.log(0.6)


@dataclass(frozen=True)
class Weights:
    """Weigh the terms; 0 switches one off."""

    force: float = 1.0
    dynamic: float = 1.0
    static: float = 10.0
    fluency: float = 1.5
    repetition: float = 3.0
    clamp: bool = True
    """Do not push the forced words beyond probability .6."""


@dataclass(frozen=True)
class _Pass:
    logits_LV: Tensor
    """At prefix and forced tokens only: what predicts them."""
    states: dict[int, Tensor]
    """Block to its output, L x D."""


class Objective:
    """Evaluate prefixes; the original is swapped in by exchanging tensors, never a second model."""

    def __init__(
        self,
        engine: BlockEngine,
        space: PrefixSpace,
        original: Mapping[str, Tensor],
        layers: Sequence[int],
        weights: Weights,
        forced_tokens: int,
    ) -> None:
        """Collect the original's states without a prefix."""
        self.engine, self.space, self.weights = engine, space, weights
        self.original, self.layers, self.forced = dict(original), tuple(layers), forced_tokens
        self._plain: list[dict[int, Tensor]] = []
        if weights.static:
            with torch.no_grad(), tensors_replaced(engine.model, self.original):
                self._plain = [self._states(task, ()) for task in space.tasks]

    def value(self, prefix: Tokens) -> float:
        """Return J of one prefix, mean over prompts."""
        with torch.no_grad():
            return math.fsum(self.terms(prefix).values())

    def terms(self, prefix: Tokens) -> dict[str, float]:
        """Return the weighted terms, mean over prompts."""
        totals: dict[str, float] = {}
        with torch.no_grad():
            for place, task in enumerate(self.space.tasks):
                found = self._terms(place, prefix, self._embedded(task, prefix))
                for name, value in found.items():
                    totals[name] = totals.get(name, 0.0) + float(value) / len(self.space.tasks)
        totals["repetition"] = self.weights.repetition * repetition(prefix)
        return totals

    def gradient(self, prefix: Tokens, count: int) -> tuple[Tensor, list[list[int]]]:
        """Return the gradient of J by the one-hot tokens, K x V, and likely tokens per position."""
        total_KD = torch.zeros(len(prefix), self.engine.structure.hidden_size, device=self.engine.device)
        for place, task in enumerate(self.space.tasks):
            with torch.enable_grad():
                states_LD = self._embedded(task, prefix).requires_grad_(True)
                found = self._terms(place, prefix, states_LD)
                (gradient_LD,) = torch.autograd.grad(torch.stack(list(found.values())).sum(), [states_LD])
            start = len(task.before)
            total_KD += gradient_LD[start : start + len(prefix)].float()
        table_VD = self.engine.base.get_input_embeddings().weight.detach().float()
        gradient_KV: Tensor = total_KD @ table_VD.T / len(self.space.tasks)
        return gradient_KV, self._likely(prefix, count)

    def _likely(self, prefix: Tokens, count: int) -> list[list[int]]:
        """Return the allowed tokens that the model itself expects at each position of the prefix."""
        task = self.space.tasks[0]
        with torch.no_grad():
            found = self._run(task, prefix, self._embedded(task, prefix), self.layers[:0])
        allowed = torch.tensor(self.space.allowed, device=self.engine.device)
        logits_KV = found.logits_LV[: self._predicted(task, prefix)[0]]
        likely: list[list[int]] = allowed[
            logits_KV[:, allowed].topk(min(count, len(allowed)), dim=1).indices
        ].tolist()
        # Without a start token nothing predicts the first token.
        return [likely[0]] * (len(prefix) - len(likely)) + likely

    def _terms(self, place: int, prefix: Tokens, embedded_LD: Tensor) -> dict[str, Tensor]:
        task, weights = self.space.tasks[place], self.weights
        layers = self.layers if weights.dynamic or weights.static else ()
        found = self._run(task, prefix, embedded_LD, layers)
        in_prefix, _ = self._predicted(task, prefix)
        labels = torch.tensor(self._labels(task, prefix), device=self.engine.device)
        losses = cross_entropy(found.logits_LV, labels, reduction="none")
        force = losses[in_prefix:].mean()
        terms = {"force": weights.force * (force.clamp(min=LEAST_FORCE) if weights.clamp else force)}
        if weights.fluency and in_prefix:
            terms["fluency"] = weights.fluency * losses[:in_prefix].mean()
        if weights.dynamic:
            with torch.no_grad(), tensors_replaced(self.engine.model, self.original):
                wanted = self._states(task, prefix)
            distances = [(found.states[layer] - wanted[layer]).norm(dim=-1).mean() for layer in self.layers]
            terms["dynamic"] = weights.dynamic * torch.stack(distances).mean()
        if weights.static:
            size = len(task.target)
            cosines = [
                cosine_similarity(found.states[layer][-size:], self._plain[place][layer][-size:], dim=-1)
                for layer in self.layers
            ]
            terms["static"] = weights.static * (1.0 - torch.stack(cosines)).mean()
        return terms

    def _run(self, task: Task, prefix: Tokens, embedded_LD: Tensor, layers: Sequence[int]) -> _Pass:
        states: dict[int, Tensor] = {}

        def observe(layer: int, output_BLD: Tensor) -> None:
            if layer in layers:
                states[layer] = output_BLD[0].float()

        with self.engine.observe(observe):
            output = self.engine.base(inputs_embeds=embedded_LD[None], use_cache=False)
        in_prefix, in_force = self._predicted(task, prefix)
        first = len(task.before) + len(prefix) - in_prefix - 1
        start = len(task.before) + len(prefix) + len(task.after) - 1
        final_LD = output.last_hidden_state[0]
        chosen = torch.cat([final_LD[first : first + in_prefix], final_LD[start : start + in_force]])
        return _Pass(head_logits(self.engine.model, chosen), states)

    def _states(self, task: Task, prefix: Tokens) -> dict[int, Tensor]:
        """Return the states of the model as it is now."""
        return self._run(task, prefix, self._embedded(task, prefix), self.layers).states

    def _embedded(self, task: Task, prefix: Tokens) -> Tensor:
        ids = (*task.before, *prefix, *task.after, *task.target)
        with torch.no_grad():
            return self.engine.embed(torch.tensor([ids], device=self.engine.device))[0].detach()

    def _predicted(self, task: Task, prefix: Tokens) -> tuple[int, int]:
        """Return how many prefix tokens and forced tokens have a prediction."""
        in_prefix = len(prefix) if task.before else max(0, len(prefix) - 1)
        return in_prefix, min(self.forced, len(task.target))

    def _labels(self, task: Task, prefix: Tokens) -> Tokens:
        in_prefix, in_force = self._predicted(task, prefix)
        return (*prefix[len(prefix) - in_prefix :], *task.target[:in_force])


def repetition(tokens: Sequence[int]) -> float:
    """Return the sum over distinct tokens of (count - 1)^1.5, per token."""
    return math.fsum(math.sqrt((count - 1) ** 3) for count in Counter(tokens).values()) / len(tokens)
