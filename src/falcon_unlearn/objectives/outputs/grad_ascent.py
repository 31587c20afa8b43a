"""Gradient ascent: make the forget answers less likely.

Legend: M supervised positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import label_log_probabilities, mean_over_tokens
from falcon_unlearn.objectives.outputs.retention import Retention


@dataclass(frozen=True, kw_only=True)
class GradAscent(Retention):
    """Climb the likelihood loss of forget text (Jang et al. 2023, arXiv 2210.01504).

    The loss has no lower bound: long runs destroy the model. The method as published has no retain term.
    """

    forget_unit: ClassVar[Unit] = "tokens"

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute the mean log-probability of the original answers, in nats per token."""
        return mean_over_tokens(label_log_probabilities(logits_MV, batch), batch)
