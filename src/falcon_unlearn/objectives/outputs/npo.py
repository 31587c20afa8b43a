"""Negative preference optimisation: the forget answers as the rejected half of DPO.

Legend: B sequences, M supervised positions, V vocabulary; p the model, q the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from falcon_unlearn.objectives.outputs.base import TokenBatch, Unit
from falcon_unlearn.objectives.outputs.likelihood import log_ratios_by_sequence, mean_of_originals
from falcon_unlearn.objectives.outputs.retention import Retention


@dataclass(frozen=True, kw_only=True)
class Npo(Retention):
    """Lower the likelihood of forget answers below the frozen model's, with fading force."""

    forget_unit: ClassVar[Unit] = "sequences"

    beta: float = 0.1
    """Inverse temperature; towards 0 the gradient becomes that of gradient ascent on whole answers."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute -(2 / beta) log sigmoid(-beta log(p / q)), averaged over the original sequences.

        The ratio is that of whole answers (Zhang et al. 2024, arXiv 2404.05868).

        Raises:
            ValueError: The batch does not carry log q, or does not fit the logits.
        """
        ratios_B = log_ratios_by_sequence(logits_MV, batch)
        return mean_of_originals(-2 / self.beta * logsigmoid(-self.beta * ratios_B), batch)
