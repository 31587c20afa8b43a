"""What the frozen model says about every training sample, computed once and kept.

Log-probabilities of the labels are kept as they are. Whole distributions are kept as the states that enter
the head, with a copy of the head: at D numbers per token instead of V, and exact. So no second model is ever
resident.

Legend: M supervised positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from falcon_unlearn.activations.collect import batches_by_length
from falcon_unlearn.activations.store import ActivationStore
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import adjust_logits, head_logits, pack_examples, supervised_states


@dataclass
class FrozenOutputs:
    """Hold the frozen side of one list of samples; parts that the method does not need are empty."""

    log_probabilities: list[Tensor] = field(default_factory=list)
    """Per sample, float32 log q(label), in nats."""
    states: ActivationStore | None = None
    """Per sample, the states that enter the head, M x D."""

    @property
    def num_bytes(self) -> int:
        """Return the size of what is kept, in bytes."""
        kept = sum(4 * values.numel() for values in self.log_probabilities)
        return kept + (self.states.num_bytes if self.states is not None else 0)


class FrozenHead:
    """Turn stored states into the frozen model's logits."""

    def __init__(self, model: Any) -> None:
        """Copy the head, because training may change it."""
        self.config = model.config
        head: Any = copy.deepcopy(model.get_output_embeddings())
        self.head: Any = head.requires_grad_(False)

    @torch.no_grad()
    def logits(self, states_MD: Tensor) -> Tensor:
        """Return float32 logits M x V."""
        device = next(self.head.parameters()).device
        return adjust_logits(self.config, self.head(states_MD.contiguous().to(device)).float())


def num_labels(example: EncodedExample, *, everything: bool) -> int:
    """Count the tokens of an example that are predicted."""
    return len(example.input_ids) - 1 if everything else sum(example.answer_mask[1:])


def _open_store(
    engine: BlockEngine, examples: Sequence[EncodedExample], file: Path, *, everything: bool
) -> ActivationStore:
    head: Any = engine.model.get_output_embeddings
    weight = head().weight
    counts = [num_labels(example, everything=everything) for example in examples]
    return ActivationStore(file, counts, weight.shape[1], weight.dtype)


@dataclass(frozen=True)
class FrozenFiles:
    """Name the files of one list of samples."""

    states: Path
    log_probabilities: Path

    def save(self, outputs: FrozenOutputs) -> None:
        """Write what is in memory beside the store."""
        if outputs.log_probabilities:
            save_file({"values": torch.cat(outputs.log_probabilities)}, self.log_probabilities)

    def open(
        self, engine: BlockEngine, examples: Sequence[EncodedExample], *, everything: bool
    ) -> FrozenOutputs:
        """Return what an earlier process froze into the files."""
        outputs = FrozenOutputs()
        if self.states.is_file():
            outputs.states = _open_store(engine, examples, self.states, everything=everything)
        if self.log_probabilities.is_file():
            counts = [num_labels(example, everything=everything) for example in examples]
            values = load_file(self.log_probabilities)["values"]
            outputs.log_probabilities = list(torch.split(values, counts))
        return outputs


@torch.no_grad()
def freeze_outputs(
    engine: BlockEngine,
    examples: Sequence[EncodedExample],
    needs: frozenset[str],
    file: Path,
    *,
    everything: bool,
    batch_tokens: int,
    progress: Callable[[int], None],
) -> FrozenOutputs:
    """Run every sample once through the unchanged model and keep what the method needs of it.

    Args:
        engine: Engine over the unchanged model, in the dtype of training.
        examples: The samples.
        needs: `log_probabilities` and `distribution`, as in the catalogue of methods.
        file: Where states are kept.
        everything: Whether all tokens are labels.
        batch_tokens: Tokens per forward pass.
        progress: Receives the number of samples done.
    """
    outputs = FrozenOutputs()
    wanted = needs & {"log_probabilities", "distribution"}
    if not wanted:
        return outputs
    counts = [num_labels(example, everything=everything) for example in examples]
    if "distribution" in wanted:
        outputs.states = _open_store(engine, examples, file, everything=everything)
    if "log_probabilities" in wanted:
        outputs.log_probabilities = [torch.empty(0)] * len(examples)
    done = 0
    for chosen in batches_by_length([len(example.input_ids) for example in examples], batch_tokens):
        batch = pack_examples([examples[i] for i in chosen], engine.device, everything=everything)
        states_MD = supervised_states(engine, batch)
        kept = [counts[i] for i in chosen]
        if outputs.states is not None:
            for index, part in zip(chosen, torch.split(states_MD, kept), strict=True):
                outputs.states.write(index, part)
        if "log_probabilities" in wanted:
            logits_MV = head_logits(engine.model, states_MD)
            values_M = logits_MV.log_softmax(-1).gather(1, batch.labels_M[:, None])[:, 0].cpu()
            for index, value in zip(chosen, torch.split(values_M, kept), strict=True):
                outputs.log_probabilities[index] = value.clone()
        done += len(chosen)
        progress(done)
    return outputs
