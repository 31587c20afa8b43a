"""The samples of a run on outputs, with their frozen side and, where the method has them, alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.packing import PackedBatch, pack_examples
from falcon_unlearn.objectives.outputs.base import TokenBatch
from falcon_unlearn.training.outputs.reference import FrozenHead, FrozenOutputs


@dataclass(frozen=True)
class OutputCorpus:
    """Hold one corpus as training on outputs sees it."""

    name: str
    examples: tuple[EncodedExample, ...]
    frozen: FrozenOutputs
    alternatives: tuple[EncodedExample, ...] = ()
    """Other answers to the same questions, parallel to `examples`; empty where the method needs none."""
    frozen_alternatives: FrozenOutputs | None = None

    def num_tokens(self, index: int, *, alternatives: bool) -> int:
        """Count the tokens of a sample, with its alternative if asked so."""
        others = len(self.alternatives[index].input_ids) if alternatives else 0
        return len(self.examples[index].input_ids) + others


def build_batch(
    rows: Sequence[tuple[OutputCorpus, int]],
    step: int,
    device: torch.device,
    head: FrozenHead | None,
    *,
    everything: bool,
    alternatives: bool,
) -> tuple[PackedBatch, TokenBatch]:
    """Lay the chosen samples, and after them their alternatives, into one batch."""
    chosen = [corpus.examples[i] for corpus, i in rows]
    frozen = [(corpus.frozen, i) for corpus, i in rows]
    if alternatives:
        chosen += [corpus.alternatives[i] for corpus, i in rows]
        frozen += [(corpus.frozen_alternatives or FrozenOutputs(), i) for corpus, i in rows]
    packed = pack_examples(chosen, device, everything=everything)
    is_alternative_B = torch.arange(len(chosen), device=device) >= len(rows)
    batch = TokenBatch(
        packed.labels_M,
        packed.owners_M,
        packed.num_sequences,
        is_alternative_B,
        step,
        _reference(frozen, device),
        _reference_logits(frozen, head, device),
    )
    return packed, batch


def _reference(frozen: Sequence[tuple[FrozenOutputs, int]], device: torch.device) -> Tensor | None:
    if not all(outputs.log_probabilities for outputs, _ in frozen):
        return None
    return torch.cat([outputs.log_probabilities[i] for outputs, i in frozen]).to(device)


def _reference_logits(
    frozen: Sequence[tuple[FrozenOutputs, int]], head: FrozenHead | None, device: torch.device
) -> Tensor | None:
    states = [outputs.states.read(i) for outputs, i in frozen if outputs.states is not None]
    if head is None or len(states) < len(frozen):
        return None
    return head.logits(torch.cat(states)).to(device)
