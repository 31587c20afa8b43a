"""Turn the rows of a step into tensors: those of this rank, padded to the length of the whole batch.

Legend: B rows of this rank, L tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.activations.collect import CachedStates, sink_tokens
from falcon_unlearn.config.objective import OffsetSettings
from falcon_unlearn.data.batches import StepBatch
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.training.micro_batches import split_by_tokens


@dataclass(frozen=True)
class CachedCorpus:
    """Hold one corpus as training sees it."""

    name: str
    states: CachedStates
    answer_masks: tuple[Tensor, ...]
    """Per sample, boolean L: tokens that the forget loss may count."""


Row = tuple[CachedCorpus, int]


@dataclass(frozen=True)
class WindowBatch:
    """Hold what one pass through the window needs."""

    inputs_BLD: Tensor
    """States that enter the window, in its compute dtype."""
    states: StateBatch
    num_tokens: int
    """Real tokens of the whole batch, over all ranks."""
    lengths: tuple[int, ...]
    """Real tokens of each row of this rank."""

    def parts(self, maximum_tokens: int | None) -> list[WindowBatch]:
        """Split the rows into parts of at most so many tokens, padding included; longer rows are alone.

        Parts keep the length of the batch, because seeded draws depend on it.
        """
        num_rows, length = self.inputs_BLD.shape[:2]
        parts = split_by_tokens([length] * num_rows, maximum_tokens)
        if len(parts) == 1:
            return [self]
        return [
            WindowBatch(
                self.inputs_BLD[part],
                self.states.part(part),
                int(self.states.mask_BL[part].sum()),
                tuple(self.lengths[row] for row in part),
            )
            for part in parts
        ]


class BatchReader:
    """Read the batches of a run from the stores."""

    def __init__(
        self,
        forget: Sequence[CachedCorpus],
        retain: Sequence[CachedCorpus],
        offset: OffsetSettings,
        device: torch.device,
        dtype: torch.dtype,
        team: Team,
        *,
        needs_whole_batch: bool,
    ) -> None:
        """Keep where things are.

        Args:
            forget: Corpora of the forget domains.
            retain: Retain corpora.
            offset: How sinks are treated.
            device: Where the tensors go.
            dtype: Compute dtype of the window.
            team: The ranks that share every batch.
            needs_whole_batch: Also give the frozen states of the rows of other ranks.
        """
        self._forget, self._retain, self._offset = forget, retain, offset
        self._device, self._dtype, self._team = device, dtype, team
        self._needs_whole_batch = needs_whole_batch and team.size > 1

    def forget(self, step: int, indices: StepBatch) -> WindowBatch:
        """Return this rank's share of the forget batch of a step."""
        corpus = self._forget[indices.domain]
        return self._read([(corpus, i) for i in indices.forget], step, indices.domain)

    def retain(self, step: int, indices: StepBatch) -> WindowBatch:
        """Return this rank's share of the retain batch of a step."""
        return self._read([(self._retain[c], i) for c, i in indices.retain], step, -1)

    def _read(self, rows: Sequence[Row], step: int, domain: int) -> WindowBatch:
        lengths = [corpus.states.inputs.lengths[i] for corpus, i in rows]
        own = self._team.own_rows(lengths)
        whole = self._frozen(rows, max(lengths), step, domain) if self._needs_whole_batch else None
        # A rank without a row runs one that counts nowhere, because every rank takes part in every sum.
        mine = [rows[row] for row in own or [0]]
        states = self._frozen(mine, max(lengths), step, domain, whole, tuple(own or [0]), counts=bool(own))
        inputs_BLD, _ = stack_rows([corpus.states.inputs.read(i) for corpus, i in mine], max(lengths))
        inputs_BLD = to_device(inputs_BLD, self._device).to(self._dtype)
        own_lengths = tuple(lengths[row] for row in own) or (0,)
        return WindowBatch(inputs_BLD, states, sum(lengths), own_lengths)

    def _frozen(
        self,
        rows: Sequence[Row],
        length: int,
        step: int,
        domain: int,
        whole: StateBatch | None = None,
        positions: tuple[int, ...] = (),
        *,
        counts: bool = True,
    ) -> StateBatch:
        frozen_BLD, mask_BL = stack_rows([corpus.states.outputs.read(i) for corpus, i in rows], length)
        answers_BL, _ = stack_rows([corpus.answer_masks[i] for corpus, i in rows], length)
        mask_BL = mask_BL & counts
        frozen_BLD, mask_BL = to_device(frozen_BLD, self._device), to_device(mask_BL, self._device)
        sinks_BL = sink_tokens(frozen_BLD, mask_BL, self._offset.sink_factor)
        counted_BL = to_device(answers_BL, self._device) & mask_BL
        if self._offset.exclude_sinks:
            counted_BL = counted_BL & ~sinks_BL
        samples = tuple(i for _, i in rows)
        return StateBatch(frozen_BLD, mask_BL, counted_BL, sinks_BL, samples, domain, step, whole, positions)


def stack_rows(rows: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad tensors of shape L or L x D with zeros, to `length` or the longest; also return the mask."""
    length = length or max(len(row) for row in rows)
    stacked = rows[0].new_zeros((len(rows), length, *rows[0].shape[1:]))
    mask_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
        mask_BL[index, : len(row)] = True
    return stacked, mask_BL


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the processor to the device; to CUDA through pinned memory, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
