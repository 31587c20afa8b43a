"""Batches for passes without gradients, the stores they fill, and pooled states for the selection.

Legend: B batch, L tokens, D hidden, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.activations.store import ActivationStore, mask_from_lengths
from falcon_unlearn.distributed.stores import exchange_states
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import LARGEST_PADDING

SMALLEST_BATCH = 256
"""Tokens below which a batch is not closed for its padding: matrix products of few rows are slow."""
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class CachedStates:
    """Hold what training needs of one corpus: states entering the window and frozen states leaving it."""

    inputs: ActivationStore
    outputs: ActivationStore

    @property
    def num_bytes(self) -> int:
        """Return the size on disk in bytes."""
        return self.inputs.num_bytes + self.outputs.num_bytes


def batches_by_length(lengths: Sequence[int], maximum_tokens: int) -> Iterator[list[int]]:
    """Group sample indices of similar length.

    A padded batch holds at most `maximum_tokens` tokens, of which few are padding.
    """
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        wasteful = total >= SMALLEST_BATCH and total + lengths[index] < (1 - LARGEST_PADDING) * padded
        if batch and (padded > maximum_tokens or wasteful):
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


def pad_token_ids(
    samples: Sequence[Sequence[int]], indices: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return right-padded token ids and their mask, both B x L. Padding is 0 and always masked."""
    lengths = [len(samples[i]) for i in indices]
    ids_BL = torch.zeros((len(indices), max(lengths)), dtype=torch.long)
    for row, index in enumerate(indices):
        ids_BL[row, : lengths[row]] = torch.tensor(samples[index], dtype=torch.long)
    return ids_BL.to(device), mask_from_lengths(lengths).to(device)


def state_files(folder: Path, name: str) -> list[Path]:
    """Return the two files of cached states: inputs and outputs."""
    return [folder / f"{name}.inputs", folder / f"{name}.outputs"]


def open_states(
    folder: Path, name: str, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype
) -> CachedStates:
    """Open the files of cached states; those that exist keep their content."""
    inputs, outputs = (
        ActivationStore(path, lengths, hidden_size, dtype) for path in state_files(folder, name)
    )
    return CachedStates(inputs, outputs)


def reopen_states(
    folder: Path, name: str, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype, team: Team
) -> CachedStates:
    """Open what the leader's machine has kept, and copy it to the other machines."""
    states = open_states(folder, name, lengths, hidden_size, dtype)
    exchange_states(team, (states.inputs, states.outputs), [range(len(lengths))])
    return states


@torch.no_grad()
def pool_all_layers(
    engine: BlockEngine,
    samples: Sequence[Sequence[int]],
    *,
    pooling: str,
    sink_factor: float,
    batch_tokens: int,
    progress: ProgressCallback,
) -> Tensor:
    """Pool the output of every block over tokens, in one pass that holds one batch at a time.

    Args:
        engine: The engine.
        samples: Token ids of each sample.
        pooling: `last` token, or `mean` over the tokens that are not attention sinks.
        sink_factor: A token is a sink when its norm exceeds this many times its sequence's median norm.
        batch_tokens: Padded tokens per forward pass.
        progress: Receives samples done and in total.

    Returns:
        Blocks x N x D in float32 on the processor.
    """
    lengths = [len(sample) for sample in samples]
    num_blocks = engine.structure.num_blocks
    pooled = torch.empty(num_blocks, len(samples), engine.structure.hidden_size)
    done = 0
    for batch in batches_by_length(lengths, batch_tokens):
        ids_BL, mask_BL = pad_token_ids(samples, batch, engine.device)

        def keep(layer: int, states_BLD: Tensor, batch: list[int] = batch, mask_BL: Tensor = mask_BL) -> None:
            pooled[layer, batch] = pool_tokens(states_BLD, mask_BL, pooling, sink_factor).float().cpu()

        with engine.observe(keep):
            engine.run(engine.embed(ids_BL), 0, num_blocks - 1)
        done += len(batch)
        progress(done, len(samples))
    return pooled


def pool_tokens(states_BLD: Tensor, mask_BL: Tensor, pooling: str, sink_factor: float) -> Tensor:
    """Return one state per sequence, B x D: that of the last token, or the mean without sinks (float32)."""
    if pooling == "last":
        last_B = mask_BL.sum(1) - 1
        return states_BLD[torch.arange(len(states_BLD), device=states_BLD.device), last_B]
    kept_BL = (mask_BL.bool() & ~sink_tokens(states_BLD, mask_BL, sink_factor)).float()
    return (states_BLD.float() * kept_BL[..., None]).sum(1) / kept_BL.sum(1, keepdim=True).clamp_min(1)


def sink_tokens(states_BLD: Tensor, mask_BL: Tensor, sink_factor: float) -> Tensor:
    """Mark attention sinks: tokens whose norm exceeds `sink_factor` times the median norm of their sequence.

    Returns:
        Boolean B x L, False on padding.
    """
    norms_BL = states_BLD.float().norm(dim=-1).masked_fill(mask_BL == 0, float("nan"))
    median_B1 = norms_BL.nanmedian(dim=1, keepdim=True).values
    sinks_BL: Tensor = (norms_BL > sink_factor * median_B1) & mask_BL.bool()
    return sinks_BL
