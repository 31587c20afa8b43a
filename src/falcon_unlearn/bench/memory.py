"""Peak memory of the stages of one table row, not of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from falcon_unlearn.runs.memory import peak_memory_bytes, reset_peak_memory


class StagePeaks:
    """Collect the peak of every stage: resident memory, and the accelerator's where there is one."""

    def __init__(self) -> None:
        """Start without any stage."""
        self.peaks: dict[str, int] = {}
        """Bytes by stage."""
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; a stage that fails is not recorded."""
        is_own = reset_peak_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        yield
        self.peaks[name] = peak_memory_bytes()
        if torch.cuda.is_available():
            self.peaks[f"{name} on device"] = torch.cuda.max_memory_allocated()
        if not is_own and not self.notes:
            self.notes.append("Peak memory is that of the whole process up to this row.")
