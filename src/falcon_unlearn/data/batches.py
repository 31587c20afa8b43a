"""Decide which examples meet in which step, reproducibly and before anything runs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from falcon_unlearn.errors import DataError


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Name the examples of one step."""

    domain: int
    """Index of the forget domain."""
    forget: tuple[int, ...]
    """Indices into the training examples of that domain."""
    retain: tuple[tuple[int, int], ...]
    """Pairs of retain set and index into its training examples."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Hold all steps of a run; a longer plan with the same inputs starts with the same steps."""

    batches: tuple[StepBatch, ...]

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, step: int) -> StepBatch:
        """Return the examples of the 0-based `step`.

        Raises:
            IndexError: if the plan has no such step.
        """
        if not 0 <= step < len(self.batches):
            raise IndexError(f"step {step} is outside the plan of {len(self.batches)} steps")
        return self.batches[step]


def plan_batches(
    sizes_forget: Sequence[int],
    weights_forget: Sequence[float],
    sizes_retain: Sequence[int],
    weights_retain: Sequence[float],
    *,
    batch_size: int,
    steps: int,
    seed: int,
) -> BatchPlan:
    """Pair one forget domain with a mixture of the retain sets in every step.

    Domains take turns in proportion to their weights; the examples of a batch share one domain. Retain sets
    share every batch in proportion to theirs. Each set is read in epochs, every epoch a fresh seeded
    permutation; no example occurs twice in a batch unless its set is smaller than its part of the batch.

    Raises:
        DataError: on an empty set, or on sizes and weights that do not match.
    """
    _check("forget", sizes_forget, weights_forget)
    _check("retain", sizes_retain, weights_retain)
    if batch_size < 1 or steps < 0:
        raise DataError(f"batch_size {batch_size} and steps {steps} must be positive")
    forget = [_Epochs(size, f"{seed}:forget:{index}") for index, size in enumerate(sizes_forget)]
    retain = [_Epochs(size, f"{seed}:retain:{index}") for index, size in enumerate(sizes_retain)]
    slots = rotate(weights_retain)
    batches = []
    for domain in islice(rotate(weights_forget), steps):
        owners = list(islice(slots, batch_size))
        drawn = {owner: iter(retain[owner].take(owners.count(owner))) for owner in sorted(set(owners))}
        batches.append(
            StepBatch(
                domain=domain,
                forget=tuple(forget[domain].take(batch_size)),
                retain=tuple((owner, next(drawn[owner])) for owner in owners),
            )
        )
    return BatchPlan(tuple(batches))


def rotate(weights: Sequence[float]) -> Iterator[int]:
    """Yield indices for ever, each in proportion to its weight, as evenly spaced as possible.

    Every index comes once in the first round, heaviest first, so that a light one is not left out of a short
    run. After that the one furthest behind its share is next; equal weights alternate strictly.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]  # exact, so that ties are ties
    total = sum(exact)
    shares = [weight / total for weight in exact]
    counts = [0] * len(shares)
    turn = 0
    first_round = sorted(range(len(shares)), key=lambda index: (-shares[index], index))
    while True:
        if turn < len(first_round):
            chosen = first_round[turn]
        else:
            chosen = max(
                range(len(shares)), key=lambda index: (shares[index] * (turn + 1) - counts[index], -index)
            )
        counts[chosen] += 1
        turn += 1
        yield chosen


class _Epochs:
    """Read the indices below `size` in one seeded permutation after the other."""

    def __init__(self, size: int, key: str) -> None:
        self._size = size
        self._key = key
        self._epoch = 0
        self._queue: list[int] = []

    def take(self, count: int) -> list[int]:
        """Return the next `count` indices."""
        taken: list[int] = []
        while len(taken) < count:
            if not self._queue:
                self._queue = self._permutation(taken, count)
            missing = count - len(taken)
            taken += self._queue[:missing]
            del self._queue[:missing]
        return taken

    def _permutation(self, taken: list[int], count: int) -> list[int]:
        """Shuffle a new epoch; if it starts inside a batch, first come indices that the batch lacks."""
        order = list(range(self._size))
        random.Random(f"{self._key}:{self._epoch}").shuffle(order)
        self._epoch += 1
        if not taken or self._size < count:
            return order
        head = [index for index in order if index not in taken][: count - len(taken)]
        return head + [index for index in order if index not in head]


def _check(role: str, sizes: Sequence[int], weights: Sequence[float]) -> None:
    if not sizes or len(sizes) != len(weights):
        raise DataError(f"{role}: {len(sizes)} sets but {len(weights)} weights; each set needs one weight")
    for index, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        if size < 1:
            raise DataError(f"{role} set {index} has no training examples")
        if not 0 < weight < float("inf"):
            raise DataError(f"{role} set {index} has weight {weight}; it must be a positive number")
