"""The retain term that most objectives on outputs share: likelihood, or closeness to the frozen model.

Legend: M supervised positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from falcon_unlearn.objectives.outputs.base import TokenBatch, Turn
from falcon_unlearn.objectives.outputs.likelihood import (
    divergences,
    label_log_probabilities,
    log_distribution,
    mean_over_tokens,
)

RetainLoss = Literal["nll", "kl"]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Compute the retain loss; both losses are used in every step."""

    retain: RetainLoss = "nll"
    """`nll`: negative log-likelihood of the labels; `kl`: KL(q || p) over the vocabulary."""

    def retain_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute the retain term, in nats per token.

        Raises:
            ValueError: `kl` without the frozen logits, or a batch that does not fit the logits.
        """
        if self.retain == "kl":
            return mean_over_tokens(divergences(log_distribution(logits_MV, batch), batch), batch)
        return -mean_over_tokens(label_log_probabilities(logits_MV, batch), batch)

    def turn(self, step: int, total: int) -> Turn:
        """Use both losses, whatever the step."""
        return "both"
