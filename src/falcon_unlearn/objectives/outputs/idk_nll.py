"""IDK-NLL: learn to refuse the forget questions.

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
class IdkNll(Retention):
    """Fine-tune on alternative answers to the forget questions (Maini et al. 2024, arXiv 2401.06121)."""

    forget_unit: ClassVar[Unit] = "alternative tokens"

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute the negative log-likelihood of the alternative sequences, in nats per token.

        Raises:
            ValueError: The batch has no alternative sequence, or does not fit the logits.
        """
        return -mean_over_tokens(label_log_probabilities(logits_MV, batch), batch, alternative=True)
