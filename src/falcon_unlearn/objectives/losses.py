"""The contrastive forget loss and the retention loss (paper eq. 9-11), as pure functions in float32.

Legend: B batch, L tokens, D hidden, Z negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def info_nce_loss(
    anchors_BLD: Tensor, positives: Tensor, negatives_ZBLD: Tensor, mask_BL: Tensor, temperature: float
) -> Tensor:
    """Compute the InfoNCE forget loss (eq. 9 and 10), averaged over the tokens of the mask.

    With one negative it equals softplus((S- - S+) / temperature).

    Args:
        anchors_BLD: States of the model being updated, B x L x D.
        positives: Targets, broadcastable to B x L x D.
        negatives_ZBLD: Frozen states, Z x B x L x D.
        mask_BL: Tokens that count, B x L, boolean or 0/1.
        temperature: tau.

    Returns:
        A scalar in nats; exactly 0, with zero gradient, when the mask is empty.
    """
    anchors_BLD = hide_masked(anchors_BLD.float(), mask_BL)
    positives_BLD = hide_masked(positives.float().expand_as(anchors_BLD), mask_BL)
    negatives_ZBLD = hide_masked(negatives_ZBLD.float(), mask_BL)
    positive_BL = cosine_similarity(anchors_BLD, positives_BLD, dim=-1) / temperature
    negative_ZBL = cosine_similarity(anchors_BLD[None], negatives_ZBLD, dim=-1) / temperature
    logits = torch.cat([positive_BL[None], negative_ZBL])
    return masked_mean(torch.logsumexp(logits, dim=0) - positive_BL, mask_BL)


def retention_loss(updated_BLD: Tensor, frozen_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Compute 1 minus the mean cosine of updated and frozen retain states (eq. 11) over the masked tokens.

    Computed as half the squared distance of the unit vectors, which is the same number: 1 - cosine would
    cancel all digits of a small drift, and its gradient at no drift would be noise instead of zero.
    """
    updated_BLD = hide_masked(updated_BLD.float(), mask_BL)
    frozen_BLD = hide_masked(frozen_BLD.float(), mask_BL)
    difference_BLD = normalize(updated_BLD, dim=-1) - normalize(frozen_BLD, dim=-1)
    return masked_mean(0.5 * difference_BLD.square().sum(-1), mask_BL)


def masked_mean(values_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Average finite values over the tokens of the mask; 0 when it is empty."""
    weights_BL = mask_BL.to(values_BL.dtype)
    return (values_BL * weights_BL).sum() / weights_BL.sum().clamp_min(1)


def hide_masked(states: Tensor, mask_BL: Tensor) -> Tensor:
    """Put ones where the mask is 0, so that non-finite padding reaches neither the loss nor its gradient."""
    return torch.where(mask_BL.bool()[..., None], states, torch.ones((), device=states.device))


def draw_negatives(
    frozen_BLD: Tensor, mask_BL: Tensor, num_negatives: int, generator: torch.Generator
) -> Tensor:
    """Collect Z negatives per token: the frozen state of the same token, then states of random other tokens.

    Args:
        frozen_BLD: Frozen forget states, B x L x D.
        mask_BL: Tokens to draw from.
        num_negatives: Z >= 1.
        generator: Seeded source of the draws.

    Returns:
        Z x B x L x D; 1 x B x L x D when no token may be drawn.
    """
    own = frozen_BLD[None]
    if num_negatives == 1:
        return own
    pool_ND = frozen_BLD[mask_BL.bool()]
    if not len(pool_ND):
        return own
    shape = (num_negatives - 1, *frozen_BLD.shape[:2])
    indices = torch.randint(len(pool_ND), shape, generator=generator).to(frozen_BLD.device)
    return torch.cat([own, pool_ND[indices]])
