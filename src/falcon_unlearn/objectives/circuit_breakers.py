"""Representation rerouting, the loss of circuit breakers (Zou et al. 2024, arXiv 2406.04313, algorithm 1).

Forget states are turned until they are orthogonal to the frozen ones, retain states are held by the length of
their displacement: by default relative to the frozen state, a named deviation (see `displacement_loss`). The
weight of the first term falls over the run and that of the second rises: c_s = alpha (1 - t / 2T) and
c_r = alpha t / 2T at step t of T. Both losses are returned with their weight.

Legend: B batch, L tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from falcon_unlearn.config.methods import CircuitBreakerSettings
from falcon_unlearn.objectives.base import StateBatch
from falcon_unlearn.objectives.losses import hide_masked, masked_mean
from falcon_unlearn.objectives.offsets import seeded_generator

NUDGE = 0.01
"""Length of the random offset of the frozen states at step 0, relative to their norm."""


def rerouting_loss(updated_BLD: Tensor, frozen_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Compute ReLU(cosine of updated and frozen state), averaged over the tokens of the mask, in float32.

    Returns:
        A scalar in 0 .. 1; 0, with zero gradient, when the mask is empty.
    """
    cosine_BL = cosine_similarity(
        hide_masked(updated_BLD.float(), mask_BL), hide_masked(frozen_BLD.float(), mask_BL), dim=-1
    )
    return masked_mean(torch.relu(cosine_BL), mask_BL)


def displacement_loss(
    updated_BLD: Tensor, frozen_BLD: Tensor, mask_BL: Tensor, *, relative: bool = False
) -> Tensor:
    """Compute the Euclidean norm of the change of a state, averaged over the tokens of the mask, in float32.

    The norm is not squared. Where a state has not moved its gradient is zero.

    Args:
        updated_BLD: States of the model being updated, B x L x D.
        frozen_BLD: Where they were.
        mask_BL: Tokens that count, B x L, boolean or 0/1.
        relative: Divide each norm by that of the frozen state. The gradient of the rerouting loss falls with
            the length of a state and that of an absolute displacement does not, so that the published weights
            fit states of one length only; relative to the frozen norm both fall alike.
    """
    frozen_BLD = hide_masked(frozen_BLD.float(), mask_BL)
    change_BLD = hide_masked(updated_BLD.float(), mask_BL) - frozen_BLD
    length_BL = torch.linalg.vector_norm(change_BLD, dim=-1)
    if relative:
        length_BL = length_BL / torch.linalg.vector_norm(frozen_BLD, dim=-1).clamp_min(1e-12)
    return masked_mean(length_BL, mask_BL)


class CircuitBreakerObjective:
    """Compute the weighted forget and retain loss of representation rerouting from window states."""

    def __init__(self, settings: CircuitBreakerSettings, *, total_steps: int, seed: int) -> None:
        """Keep the settings.

        Args:
            settings: alpha.
            total_steps: T of the schedule.
            seed: Seed of the offsets of step 0.
        """
        self.settings = settings
        self.total_steps = total_steps
        self.seed = seed

    def weights(self, step: int) -> tuple[float, float]:
        """Return c_s and c_r at the 0-based step."""
        progress = step / (2 * self.total_steps)
        return self.settings.alpha * (1.0 - progress), self.settings.alpha * progress

    @property
    def needs_whole_batch(self) -> bool:
        """Tell whether targets depend on rows of other ranks: never."""
        return False

    def forget_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute c_s times the mean ReLU cosine over the counted tokens."""
        frozen_BLD = self._nudged(batch) if batch.step == 0 else batch.frozen_BLD
        return self.weights(batch.step)[0] * rerouting_loss(updated_BLD, frozen_BLD, batch.counted_BL)

    def retain_loss(self, updated_BLD: Tensor, batch: StateBatch) -> Tensor:
        """Compute c_r times the mean displacement over all real tokens."""
        relative = self.settings.displacement == "relative"
        loss = displacement_loss(updated_BLD, batch.frozen_BLD, batch.mask_BL, relative=relative)
        return self.weights(batch.step)[1] * loss

    def _nudged(self, batch: StateBatch) -> Tensor:
        """Return the frozen states, each moved a little in a random direction, B x L x D in float32.

        Before the first update the cosine is 1, its maximum, where the gradient vanishes. The released code
        leaves that point by rounding noise, which differs from machine to machine; this start is seeded.
        """
        frozen_BLD = batch.frozen_BLD.float()
        length, hidden_size = frozen_BLD.shape[1:]
        rows = [
            torch.randn((length, hidden_size), generator=seeded_generator(self.seed, "nudge", *key))
            for key in ((batch.domain, sample) for sample in batch.samples)
        ]
        random_BLD = normalize(torch.stack(rows), dim=-1).to(frozen_BLD.device)
        norms_BL1: Tensor = frozen_BLD.norm(dim=-1, keepdim=True)
        return frozen_BLD + NUDGE * norms_BL1 * random_BLD
