"""SCRUB: drive the model away from its frozen copy on forget data, and back to it on retain data.

Legend: M supervised positions, V vocabulary; p the model, q the frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from falcon_unlearn.objectives.outputs.base import TokenBatch, Turn, Unit
from falcon_unlearn.objectives.outputs.likelihood import (
    divergences,
    log_distribution,
    mean_over_tokens,
    pick_labels,
)


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Alternate two objectives (Kurmanji et al. 2023, arXiv 2302.09880).

    The forget loss has no lower bound; the last part of a run therefore repairs only.
    """

    forget_unit: ClassVar[Unit] = "tokens"

    divergence_weight: float = 1.0
    """alpha."""
    likelihood_weight: float = 1.0
    """gamma."""
    maximising_share: float = 0.5
    """Share of the run, from its start, that has forget steps."""

    def forget_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute -KL(q || p) over the tokens of the original sequences, in nats per token.

        Raises:
            ValueError: The batch does not carry the frozen logits, or does not fit the logits.
        """
        return -mean_over_tokens(divergences(log_distribution(logits_MV, batch), batch), batch)

    def retain_loss(self, logits_MV: Tensor, batch: TokenBatch) -> Tensor:
        """Compute alpha KL(q || p) + gamma NLL, in nats per token; errors as in `forget_loss`."""
        log_p_MV = log_distribution(logits_MV, batch)
        divergence = mean_over_tokens(divergences(log_p_MV, batch), batch)
        likelihood = -mean_over_tokens(pick_labels(log_p_MV, batch), batch)
        return self.divergence_weight * divergence + self.likelihood_weight * likelihood

    def turn(self, step: int, total: int) -> Turn:
        """Alternate retain and forget steps in the first part of the run, then use retain steps only.

        A retain step comes first: as long as p equals q the divergence has no gradient. Every run of two
        steps or more has a forget step.
        """
        last = max(2, round(self.maximising_share * total))
        return "forget" if step % 2 == 1 and step < last else "retain"
