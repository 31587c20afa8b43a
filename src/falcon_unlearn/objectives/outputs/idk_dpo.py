"""IDK-DPO and AltPO: prefer another answer to the true one.

Legend: B sequences, K pairs, M supervised positions, V vocabulary; p the model, q the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import log_ratios_by_sequence
from falcon_unlearn.objectives.outputs.retention import Retention


@dataclass(frozen=True, kw_only=True)
class IdkDpo(Retention):
    """Raise the alternative answer and lower the original one, both against the frozen model.

    The two methods differ in where the alternatives come from: refusals (Maini et al. 2024, arXiv
    2401.06121) or the model's own plausible answers (Mekala et al. 2024, arXiv 2409.13474).
    """

    forget_unit: ClassVar[Unit] = "pairs"

    beta: float = 0.1
    """Inverse temperature."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute -(2 / beta) log sigmoid(beta (alternative - original)) of log(p / q), averaged over pairs.

        The k-th alternative sequence of the batch belongs to the k-th original one. Source: Rafailov et al.
        2023, arXiv 2305.18290, eq. 7, scaled by 2 / beta as NPO is.

        Raises:
            ValueError: Sequences without partner, no log q, or a batch that does not fit the logits.
        """
        ratios_B = log_ratios_by_sequence(logits_MV, batch)
        chosen_K, rejected_K = ratios_B[batch.is_alternative_B], ratios_B[~batch.is_alternative_B]
        if len(chosen_K) != len(rejected_K):
            raise ValueError(
                "every original sequence needs one alternative: the batch has "
                f"{len(rejected_K)} originals and {len(chosen_K)} alternatives"
            )
        return (-2 / self.beta * logsigmoid(self.beta * (chosen_K - rejected_K))).mean()
