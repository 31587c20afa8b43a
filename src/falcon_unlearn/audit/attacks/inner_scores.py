"""Score completions from inside the model for many variants at once, and keep the scores between variants.

Shapes: B batch, L tokens, P positions, T targets, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from falcon_unlearn.audit.base import OptionScorer, TokenIds
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.scoring import check_lengths
from falcon_unlearn.models.text import pad_batch

_VALUE_BUDGET = 2**25
"""Numbers that one layer may compute at a time, 128 MB."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Sequences:
    """Hold one batch of fed tokens and what is read where.

    Padding is on the right, where a causal model cannot see it.
    """

    ids_BL: Tensor
    places_P: Tensor
    """Flat position, row * L + column, of every state that is read."""
    positions_T: Tensor
    """Index among the P states at which a target is scored."""
    targets_T: Tensor
    spans: tuple[tuple[Pair, tuple[int, ...]], ...]
    """Every pair of the batch with the indices of its targets."""

    def rows(self, states_BLD: Tensor) -> Tensor:
        """Return the states that are read, P x D."""
        return states_BLD.flatten(0, 1)[self.places_P]


Reader = Callable[[Sequences], list[Tensor]]
"""Runs the model on a batch and returns T scores per variant."""


class InnerScores:
    """Compute the mean score per token of completions for all variants at once, each pair once.

    Completions of one token share the forward pass of their prompt.
    """

    def __init__(self, subject: Subject, reader: Reader, values_per_position: int = 1) -> None:
        """Start without scores.

        Args:
            subject: The model, which must not change between calls.
            reader: Runs a batch.
            values_per_position: Numbers that the reader computes at a time for every state.
        """
        self._subject, self._reader = subject, reader
        self._room = max(1, _VALUE_BUDGET // values_per_position)
        self._kept: dict[Pair, list[float]] = {}

    def scorer(self, variant: int) -> OptionScorer:
        """Return the scorer that reads variant number `variant` of the reader."""
        return partial(self._scores, variant)

    def _scores(
        self,
        variant: int,
        subject: Subject,
        prompts: Sequence[TokenIds],
        completions: Sequence[Sequence[TokenIds]],
    ) -> list[list[float]]:
        del subject
        asked = [
            [(tuple(prompt), tuple(completion)) for completion in several]
            for prompt, several in zip(prompts, completions, strict=True)
        ]
        self._compute([pair for pairs in asked for pair in pairs if pair not in self._kept])
        return [[self._kept[pair][variant] for pair in pairs] for pairs in asked]

    def _compute(self, pairs: Sequence[Pair]) -> None:
        if not pairs:
            return
        check_lengths(self._subject.model, pairs)
        with torch.inference_mode():
            for batch in self._batches(dict.fromkeys(pairs)):
                values = torch.stack(self._reader(batch)).cpu()
                for pair, indices in batch.spans:
                    self._kept[pair] = values[:, list(indices)].mean(dim=1).tolist()

    def _batches(self, pairs: dict[Pair, None]) -> Iterator[Sequences]:
        """Yield batches of pairs by falling length that fit the tokens of a pass and the room for values."""
        groups: dict[tuple[tuple[int, ...], int], list[Pair]] = {}
        for prompt, completion in pairs:
            fed = (prompt + completion)[:-1]
            groups.setdefault((fed, len(prompt)), []).append((prompt, completion))
        batch: list[tuple[tuple[int, ...], int]] = []
        num_positions = 0
        for fed, start in sorted(groups, key=lambda key: (-len(key[0]), key)):
            positions = len(fed) - start + 1
            too_long = (len(batch) + 1) * len(batch[0][0]) > self._subject.batch_tokens if batch else False
            if batch and (too_long or num_positions + positions > self._room):
                yield self._sequences(batch, groups)
                batch, num_positions = [], 0
            batch.append((fed, start))
            num_positions += positions
        yield self._sequences(batch, groups)

    def _sequences(
        self, batch: list[tuple[tuple[int, ...], int]], groups: dict[tuple[tuple[int, ...], int], list[Pair]]
    ) -> Sequences:
        ids_BL, _ = pad_batch([fed for fed, _ in batch], self._subject.pad_id)
        places: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        spans: list[tuple[Pair, tuple[int, ...]]] = []
        for row, key in enumerate(batch):
            fed, start = key
            first = len(places)
            places += [row * ids_BL.shape[1] + column for column in range(start - 1, len(fed))]
            for pair in groups[key]:
                completion = pair[1]
                spans.append((pair, tuple(range(len(targets), len(targets) + len(completion)))))
                positions += range(first, first + len(completion))
                targets += completion
        device = self._subject.model.device
        return Sequences(
            ids_BL.to(device),
            torch.tensor(places, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(targets, device=device),
            tuple(spans),
        )
