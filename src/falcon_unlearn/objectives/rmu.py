"""Representation misdirection for unlearning: RMU (Li et al. 2024, arXiv 2403.03218) and Adaptive RMU.

Forget states are pulled to one fixed random vector, retain states to where they were. Both losses are squared
errors averaged over the counted tokens and over the hidden dimensions, as in the released code; the paper
sums over the dimensions instead, which scales both losses by D and leaves their ratio alone.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from falcon_unlearn.config.methods import RmuSettings
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.losses import hide_masked, masked_mean
from falcon_unlearn.objectives.offsets import seeded_generator


def mean_squared_error(updated_BLD: Tensor, targets: Tensor, mask_BL: Tensor) -> Tensor:
    """Compute the squared error in float32, averaged over the tokens of the mask and over D.

    Args:
        updated_BLD: States of the model being updated, B x L x D.
        targets: Where they should be, broadcastable to B x L x D.
        mask_BL: Tokens that count, B x L, boolean or 0/1.

    Returns:
        A scalar; exactly 0, with zero gradient, when the mask is empty.
    """
    updated_BLD = hide_masked(updated_BLD.float(), mask_BL)
    targets_BLD = hide_masked(targets.float().expand_as(updated_BLD), mask_BL)
    return masked_mean((updated_BLD - targets_BLD).square().mean(-1), mask_BL)


class RmuObjective:
    """Compute the forget and the retain loss of RMU from window states."""

    def __init__(self, settings: RmuSettings, *, seed: int) -> None:
        """Keep the settings; the random vectors follow from `seed` and the domain alone."""
        self.settings = settings
        self.seed = seed

    @property
    def needs_whole_batch(self) -> bool:
        """Tell whether targets depend on rows of other ranks: never."""
        return False

    def forget_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute the mean squared error to the target, over the counted tokens."""
        return mean_squared_error(updated_BLD, self.targets(batch), batch.counted_BL)

    def retain_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute the mean squared error to the frozen states, over all real tokens."""
        return mean_squared_error(updated_BLD, batch.frozen_BLD, batch.mask_BL)

    def direction(self, domain: int, hidden_size: int) -> Tensor:
        """Return u of a domain, D in float32: uniform on [0, 1)^D, then of length 1.

        All its elements are positive, as in the released code, so u is at about 30 degrees to the vector of
        ones.
        """
        random_D = torch.rand(hidden_size, generator=seeded_generator(self.seed, "rmu", domain))
        unit_D: Tensor = random_D / random_D.norm()
        return unit_D

    def targets(self, batch: StateBatch) -> Tensor:
        """Return c u, D; with `adaptive` c times the norm of each frozen state times u, B x L x D.

        The adaptive scale is that of Huu-Tien et al. 2024, arXiv 2408.06223.
        """
        frozen_BLD = batch.frozen_BLD
        target_D = self.settings.coefficient * self.direction(batch.domain, frozen_BLD.shape[-1])
        target_D = target_D.to(frozen_BLD.device)
        if not self.settings.adaptive:
            return target_D
        norms_BL1: Tensor = frozen_BLD.float().norm(dim=-1, keepdim=True)
        return norms_BL1 * target_D
