"""Task-vector negation: learn the forget data, so that training can step the other way afterwards.

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
class TaskVector(Retention):
    """Fit the forget data (Ilharco et al. 2022, arXiv 2212.04089); training negates the learnt change.

    A retain term would be learnt and then negated too: it belongs at multiplier 0.
    """

    forget_unit: ClassVar[Unit] = "tokens"

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute the negative log-likelihood of the original answers, in nats per token."""
        return -mean_over_tokens(label_log_probabilities(logits_MV, batch), batch)
