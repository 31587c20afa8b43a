"""Attack by taking directions out of the residual stream: steering along few directions is reverted so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from falcon_unlearn.audit.attacks.states import block_outputs
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.linalg.directions import (
    ablated,
    ablated_writer,
    contrast_directions,
    leading_directions,
    random_directions,
    without_outliers,
)
from falcon_unlearn.models.architectures import parameter_of_role
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced

RANKS = (1, 4, 16)
_MAXIMUM_STATES = 1024
_WRITING_ROLES = ("attention.output", "mlp.down")

Directions = dict[int, Tensor]
"""Block to orthonormal rows."""


@dataclass(frozen=True)
class DirectionAblation:
    """Project directions out of block outputs: x <- x - (x . r) r, every block with its own.

    Against `original` the directions are the leading singular vectors of unlearned minus original states on
    forget questions; against `retain`, those in which the unlearned model's states on forget questions differ
    from its states on retain questions. Controls: random directions of the same rank, and the same estimator
    on retain questions (`matched`).
    """

    against: Literal["original", "retain"] = "original"
    ranks: tuple[int, ...] = RANKS
    num_random: int | None = None
    """Random controls per rank; None: one in the quick tier, eight in the full one."""
    tier: Tier = "quick"
    access: Access = "weights"
    knowledge: Knowledge = "forget questions"
    source: str = "Arditi et al. 2024, arXiv 2406.11717; Lucki et al. 2024, arXiv 2409.18025"

    @property
    def name(self) -> str:
        """Return the name with what the states are compared to."""
        return f"direction-{self.against}"

    @property
    def needs_original(self) -> bool:
        """Return whether the states of the model before unlearning are needed."""
        return self.against == "original"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield hooks at the edited blocks and, in the full tier, at all blocks and in the weights.

        A model that equals the original has no such directions and stays as it is.
        """
        states = _States(context, self.against)
        layers = range(context.structure.num_blocks)
        sites = {"all": list(layers)}
        if self.against == "original":
            window = {"window": _edited_blocks(context)}
            sites = window if context.tier == "quick" else window | sites
        for site, blocks in sites.items():
            for rank in self.ranks:
                found = {layer: states.directions(layer, rank) for layer in blocks}
                yield from _in_force(context, f"rank-{rank}-{site}", found, cost=states.cost)
        site, blocks = next(iter(sites.items()))
        for rank in self.ranks if context.tier == "full" else self.ranks[:1]:
            yield from self._controls(context, states, f"rank-{rank}-{site}", rank, blocks)
        if context.tier == "full":
            yield from self._in_weights(context, states)

    def _controls(
        self, context: AttackContext, states: _States, variant: str, rank: int, blocks: Sequence[int]
    ) -> Iterator[Attacked]:
        matched = {layer: states.directions(layer, rank, matched=True) for layer in blocks}
        yield from _in_force(context, f"{variant}-matched", matched, control=variant, cost=states.cost)
        count = self.num_random or (1 if context.tier == "quick" else 8)
        for number in range(count):
            generator = torch.Generator().manual_seed(1000 * context.seed + number)
            drawn = {
                layer: random_directions(len(states.directions(layer, rank)), states.size, generator)
                for layer in blocks
            }
            yield from _in_force(context, f"{variant}-random-{number}", drawn, control=variant)

    def _in_weights(self, context: AttackContext, states: _States) -> Iterator[Attacked]:
        """Yield the edit of the weights: one set of directions, that of the last edited block, everywhere."""
        edited = _edited_blocks(context) or [context.structure.num_blocks // 2]
        for rank in self.ranks:
            directions_KD = states.directions(edited[-1], rank)
            replacements = writers_without(context, directions_KD) if len(directions_KD) else {}
            details = {"directions": len(directions_KD), "changed_tensors": len(replacements)}
            with tensors_replaced(context.subject.model, replacements):
                yield Attacked(variant=f"rank-{rank}-weights", cost=states.cost, details=details)


class _States:
    """Hold the states of both text sets, and of the original where they are compared to it."""

    def __init__(self, context: AttackContext, against: str) -> None:
        self._against, self._seed = against, context.seed
        self.size = context.structure.hidden_size
        forget, retain = (_prompts(context, facts) for facts in (context.data.forget, context.data.retain))
        self._forget, self._retain = _outputs(context, forget), _outputs(context, retain)
        passes = len(forget) + len(retain)
        if against == "original":
            with tensors_replaced(context.subject.model, dict(context.original or {})):
                self._forget_before, self._retain_before = (
                    _outputs(context, forget),
                    _outputs(context, retain),
                )
            passes *= 2
        self.cost = Cost(forwards=passes)
        self._kept: dict[tuple[int, int, bool], Tensor] = {}

    def directions(self, layer: int, rank: int, *, matched: bool = False) -> Tensor:
        """Return K x D, K at most `rank`; of retain states only if `matched`."""
        key = (layer, rank, matched)
        if key not in self._kept:
            self._kept[key] = self._estimate(layer, rank, matched)
        return self._kept[key]

    def _estimate(self, layer: int, rank: int, matched: bool) -> Tensor:
        if self._against == "original":
            after, before = (
                (self._retain, self._retain_before) if matched else (self._forget, self._forget_before)
            )
            return leading_directions(without_outliers(after[layer] - before[layer]), rank)
        if not matched:
            return contrast_directions(without_outliers(self._forget[layer]), self._retain[layer], rank)
        shuffled = torch.randperm(
            len(self._retain[layer]), generator=torch.Generator().manual_seed(self._seed)
        )
        first, second = self._retain[layer][shuffled].chunk(2)
        return contrast_directions(without_outliers(first), second, rank)


def _prompts(context: AttackContext, facts: Sequence[Fact]) -> list[list[int]]:
    prompting = Prompting(context.subject.tokenizer, context.chat_template)
    return [context.subject.encode(prompting.text_question(fact).prompt) for fact in facts]


def _outputs(context: AttackContext, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    engine = BlockEngine(context.subject.model, context.structure)
    return block_outputs(
        engine,
        texts,
        maximum_states=_MAXIMUM_STATES,
        batch_tokens=context.subject.batch_tokens,
        seed=context.seed,
    )


def _edited_blocks(context: AttackContext) -> list[int]:
    """Return the blocks from the first to the last that holds an edited tensor."""
    prefixes = [context.structure.block_prefix(layer) for layer in range(context.structure.num_blocks)]
    edited = [
        layer
        for layer, prefix in enumerate(prefixes)
        if any(name.startswith(prefix) for name in context.original or {})
    ]
    return list(range(edited[0], edited[-1] + 1)) if edited else []


def _in_force(
    context: AttackContext, variant: str, found: Directions, *, control: str = "", cost: Cost | None = None
) -> Iterator[Attacked]:
    active = {layer: rows for layer, rows in found.items() if len(rows)}
    engine = BlockEngine(context.subject.model, context.structure)
    plain = _probe(context)
    again = partial(directions_ablated, engine, active)
    with again():
        change = float((_probe(context) - plain).abs().max())
        details = {"blocks": float(len(active)), "largest_logit_change": change}
        yield Attacked(variant, control=control, cost=cost or Cost(), details=details, again=again)


def _probe(context: AttackContext) -> Tensor:
    """Return the logits after one question, which tell whether the hooks act."""
    ids = _prompts(context, (*context.data.forget, *context.data.retain)[:1])
    with torch.inference_mode():
        output = context.subject.model(
            input_ids=torch.tensor(ids, device=context.subject.model.device), use_cache=False
        )
    logits: Tensor = output.logits[0, -1].float().clone()
    return logits


@contextmanager
def directions_ablated(engine: BlockEngine, directions: Directions) -> Iterator[None]:
    """Take directions out of block outputs while the context is open, never in place."""

    def attach(rows_KD: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (ablated(output[0], rows_KD), *output[1:])
            return ablated(output, rows_KD)

        return hook

    handles = []
    try:
        for layer, rows_KD in directions.items():
            handles.append(engine.block(layer).register_forward_hook(attach(rows_KD)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def writers_without(context: AttackContext, directions_KD: Tensor) -> dict[str, Tensor]:
    """Return every tensor that writes to the residual stream, without the directions.

    These are attention output and MLP down projection of all blocks, their biases, and the embedding unless
    the head shares it: there it reads as well.
    """
    model = context.subject.model
    parameters = dict(model.named_parameters())
    edits: dict[str, Tensor] = {}
    for layer in range(context.structure.num_blocks):
        for role in _WRITING_ROLES:
            name = parameter_of_role(model, context.structure, role, layer)
            for part in () if name is None else (name, name.removesuffix("weight") + "bias"):
                if part in parameters:
                    edits[part] = ablated_writer(parameters[part].detach(), directions_KD)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embedding is not head:
        name = next(name for name, parameter in parameters.items() if parameter is embedding)
        edits[name] = ablated_writer(embedding.detach().T, directions_KD).T.contiguous()
    return edits
