"""UNDIAL: distil the frozen model after lowering its logit of the true token.

Legend: M supervised positions, V vocabulary; p the model, q the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import frozen_logits, log_distribution, mean_over_tokens
from falcon_unlearn.objectives.outputs.retention import Retention


@dataclass(frozen=True, kw_only=True)
class Undial(Retention):
    """Give the model a fixed distribution to learn, which bounds what it can lose."""

    forget_unit: ClassVar[Unit] = "tokens"

    beta: float = 10.0
    """What is subtracted from the frozen logit of the true token."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute the cross-entropy of softmax(q logits - beta onehot(label)) and p, in nats per token.

        Only tokens of the original sequences count. Source: Dong et al. 2024, arXiv 2402.10052.

        Raises:
            ValueError: The batch does not carry the frozen logits, or does not fit the logits.
        """
        log_p_MV = log_distribution(logits_MV, batch)
        reference_MV = frozen_logits(log_p_MV, batch)
        labels_M1 = batch.labels_M[:, None]
        lowered_M1 = torch.full_like(labels_M1, -self.beta, dtype=reference_MV.dtype)
        target_MV = reference_MV.scatter_add(1, labels_M1, lowered_M1).softmax(-1)
        return -mean_over_tokens((target_MV * log_p_MV).sum(-1), batch)
