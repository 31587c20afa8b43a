"""SimNPO: negative preference without a frozen model, with likelihoods per token.

Legend: B sequences, M supervised positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import (
    label_log_probabilities,
    mean_by_sequence,
    mean_of_originals,
)
from falcon_unlearn.objectives.outputs.retention import Retention


@dataclass(frozen=True, kw_only=True)
class SimNpo(Retention):
    """Lower the likelihood per token of forget answers, so that short and long ones weigh the same."""

    forget_unit: ClassVar[Unit] = "sequences"

    beta: float = 4.5
    """Inverse temperature."""
    margin: float = 0.0
    """Called gamma in the paper and delta in open-unlearning."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute -(2 / beta) log sigmoid(-(beta / length) log p - margin), averaged over originals.

        Source: Fan et al. 2024, arXiv 2410.07163. Length is the number of labels of a sequence.
        """
        means_B = mean_by_sequence(label_log_probabilities(logits_MV, batch), batch)
        return mean_of_originals(-2 / self.beta * logsigmoid(-self.beta * means_B - self.margin), batch)
