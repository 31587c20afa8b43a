"""Keep hidden states of many samples in one memory-mapped file per kind, unpadded.

Legend: N samples, L tokens of one sample, T tokens of all samples, D hidden.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.errors import PrerequisiteError

RELEASE_BYTES = 2**24
"""Bytes read or written after which the pages of a store leave this process's memory; the file keeps them.
A run has two stores per corpus: a small part of what `pipeline.costs.STORE_PAGES` counts for all."""


class ActivationStore:
    """Hold states of N samples as T x D on disk; only the rows asked for are read."""

    def __init__(self, path: Path, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype) -> None:
        """Create the file at its full size; one that exists keeps its content.

        Raises:
            PrerequisiteError: The disk has too little free space; says how many bytes are needed.
        """
        self.lengths = tuple(lengths)
        self.offsets = tuple(torch.tensor([0, *self.lengths]).cumsum(0).tolist())
        self.num_bytes: int = self.offsets[-1] * hidden_size * dtype.itemsize
        free = shutil.disk_usage(path.parent).free
        missing = self.num_bytes - (path.stat().st_size if path.is_file() else 0)
        if missing > free:
            raise PrerequisiteError(
                f"the cached states need {missing / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free",
                hint="Free disk space, lower data.maximum_tokens or set `limit` on the corpora.",
            )
        path.touch()
        with path.open("r+b") as file:
            file.truncate(max(dtype.itemsize, self.num_bytes))
            self._map = mmap.mmap(file.fileno(), 0)
        # One flat shared mapping: torch reads bfloat16 from it, which NumPy's memmap cannot.
        count = self.offsets[-1] * hidden_size
        self._states: Tensor = torch.frombuffer(self._map, dtype=dtype)[:count].view(-1, hidden_size)
        self._touched = 0

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    def write(self, index: int, states_LD: Tensor) -> None:
        """Store the states of sample `index`, L x D."""
        rows_LD = self._rows(index)
        rows_LD.copy_(states_LD)

    def read(self, index: int) -> Tensor:
        """Return the states of sample `index`, L x D, as a view of the file."""
        return self._rows(index)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return right-padded states B x L x D and their mask B x L."""
        lengths = [self.lengths[i] for i in indices]
        states_BLD = self._states.new_zeros((len(indices), max(lengths), self._states.shape[1]))
        for row, index in enumerate(indices):
            states_BLD[row, : lengths[row]] = self.read(index)
        return states_BLD, mask_from_lengths(lengths)

    def _rows(self, index: int) -> Tensor:
        rows_LD = self._states[self.offsets[index] : self.offsets[index + 1]]
        self._touched += rows_LD.nbytes
        if self._touched > RELEASE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            # A shared mapping loses nothing: its pages stay in the file cache, which is not ours to count.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = rows_LD.nbytes
        return rows_LD


def mask_from_lengths(lengths: Sequence[int]) -> Tensor:
    """Return the right-padding mask of B sequences, B x L, 1 for real tokens."""
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
