"""What training hands to an objective on a model's outputs, and what such an objective must offer.

Legend: B sequences, M supervised positions of all sequences, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

Turn = Literal["both", "forget", "retain"]
Unit = Literal["tokens", "alternative tokens", "sequences", "pairs"]
"""What a loss is a mean of: tokens of original or of alternative sequences, original sequences that have
labels, or originals with their alternatives."""


@dataclass(frozen=True)
class TokenBatch:
    """Hold the supervised tokens of one batch; prompts and padding are not in it."""

    labels_M: Tensor
    """Token ids to be predicted."""
    owners_M: Tensor
    """Sequence, 0 .. B-1, of each label; ascending."""
    num_sequences: int
    is_alternative_B: Tensor
    """Boolean; True for sequences that hold another answer to a forget question (refusal, alternative)."""
    step: int
    """Optimisation step, 0-based."""
    reference_M: Tensor | None = None
    """log q(label) under the frozen model, in nats, float32; None where the method does not need it."""
    reference_logits_MV: Tensor | None = None
    """The frozen model's float32 logits at the same positions; None where the method does not need them."""


class OutputObjective(Protocol):
    """Turn logits into two losses. Implementations hold no model."""

    forget_unit: ClassVar[Unit]
    """What the forget loss is a mean of. The retain loss is a mean over tokens."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Return the scalar to minimise on forget data (with alternatives: both kinds of sequences)."""

    def retain_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Return the scalar to minimise on retain data, multiplier excluded."""

    def turn(self, step: int, total: int) -> Turn:
        """Say which of the two losses step `step` of `total` uses."""
