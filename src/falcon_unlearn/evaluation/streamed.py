"""Score texts with a model that stays on disk: every block is read once per measurement and sees all texts.

Legend: B batch, L tokens, N scored positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from falcon_unlearn.activations.store import ActivationStore
from falcon_unlearn.activations.sweep import open_stores, sweep_blocks
from falcon_unlearn.evaluation.subject import OriginalWeights, Subject
from falcon_unlearn.models.scoring import (
    CompletionScore,
    completion_batches,
    scores_from_logits,
    text_batches,
)
from falcon_unlearn.models.streaming import StreamedEngine

NO_GENERATION = "the model is read block by block, and every generated token would read all of it again"
_NAME = "texts"


@dataclass(frozen=True, kw_only=True)
class StreamedSubject(Subject):
    """Score with one block in memory at a time. States, and so scores, are those of the model in memory."""

    engine: StreamedEngine
    dtype: torch.dtype
    """Dtype of the products and of the states between blocks."""
    folder: Path
    """Existing folder for the states."""
    generates = False

    @property
    def compute_dtype(self) -> str:
        """Dtype of the arithmetic."""
        return str(self.dtype).removeprefix("torch.")

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[CompletionScore]:
        """Score completions given prompts, as token ids."""
        batches = list(completion_batches(self.model, pairs, batch_tokens=self.batch_tokens))
        scores: dict[int, CompletionScore] = {}
        with TemporaryDirectory(dir=self.folder) as scratch, torch.inference_mode():
            fed = [[*prompt, *completion][:-1] for prompt, completion in pairs]
            states = self._last_states(fed, Path(scratch))
            with self.engine.head(self.dtype):
                for batch in batches:
                    rows_ND = torch.cat([states.read(i)[len(pairs[i][0]) - 1 :] for i in batch])
                    chosen = [pairs[i] for i in batch]
                    scores.update(zip(batch, scores_from_logits(self._logits(rows_ND), chosen), strict=True))
        return [scores[index] for index in range(len(pairs))]

    def compared(
        self, texts: Sequence[Sequence[int]], original: OriginalWeights
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches of text indices with the log-probabilities under original and present weights."""
        batches = list(text_batches(self.model, texts, batch_tokens=self.batch_tokens))
        with TemporaryDirectory(dir=self.folder) as first, TemporaryDirectory(dir=self.folder) as second:
            fed = [list(text[:-1]) for text in texts]
            changed = self._last_states(fed, Path(first))
            with original():
                before = self._last_states(fed, Path(second))
            with self.engine.head(self.dtype), torch.inference_mode():
                for batch in batches:
                    yield (
                        batch,
                        self._log_probabilities(before, batch),
                        self._log_probabilities(changed, batch),
                    )

    def _last_states(self, samples: Sequence[Sequence[int]], folder: Path) -> ActivationStore:
        """Return the states that leave the last block, before the final norm."""
        stores = open_stores(
            self.engine,
            {_NAME: samples},
            folder,
            "states",
            store_dtype=self.dtype,
            compute_dtype=self.dtype,
            batch_tokens=self.batch_tokens,
        )
        sweep_blocks(
            self.engine,
            stores,
            0,
            self.engine.structure.num_blocks - 1,
            compute_dtype=self.dtype,
            batch_tokens=self.batch_tokens,
            progress=lambda *_: None,
        )
        return stores[_NAME]

    def _log_probabilities(self, states: ActivationStore, batch: Sequence[int]) -> Tensor:
        rows_ND = torch.cat([states.read(index) for index in batch])
        return torch.log_softmax(self._logits(rows_ND).float(), dim=-1)

    def _logits(self, rows_ND: Tensor) -> Tensor:
        states_BLD = rows_ND[None].to(self.engine.device)
        return self.engine.head_logits(states_BLD)[0]
