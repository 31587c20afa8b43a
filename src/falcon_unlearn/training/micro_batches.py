"""Take a step in parts: split its rows, and put the means of the parts together to the mean of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def split_by_tokens(lengths: Sequence[int], maximum_tokens: int | None) -> list[list[int]]:
    """Return the positions of the rows in parts of at most `maximum_tokens` tokens, in their order.

    Args:
        lengths: Tokens of each row.
        maximum_tokens: Tokens of a part; a longer row is a part of its own. None: everything in one part.
    """
    if maximum_tokens is None:
        return [list(range(len(lengths)))]
    parts: list[list[int]] = []
    room = 0
    for row, length in enumerate(lengths):
        if not parts or length > room:
            parts.append([])
            room = maximum_tokens
        parts[-1].append(row)
        room -= length
    return parts


class MeanOfParts:
    """Average a loss and its gradients over parts, each weighted by what it averages over itself.

    With the number of tokens (or sequences) of each part as weight, the result equals the mean over all of
    them at once, up to rounding. One part alone is returned as it is, bit by bit.
    """

    def __init__(self) -> None:
        """Start without any part."""
        self.weight = 0.0
        self.loss = 0.0
        self.gradients: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, weight: float, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """Take in one part; its gradients may be changed in place later.

        Args:
            weight: Number of things that the part averages over; with 0 it changes nothing.
            loss: Mean over the part.
            gradients: Of that mean, float32.
        """
        self.weight += weight
        share = weight / self.weight if self.weight else 1.0
        self.loss += share * (loss - self.loss)
        if not self.gradients:
            self.gradients = dict(gradients)
            return
        for name, mean in self.gradients.items():
            mean.add_(gradients[name] - mean, alpha=share)
