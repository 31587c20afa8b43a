"""Choose weights to set to zero: by magnitude, by Wanda's score, or by two importance scores at once.

Shapes: ... x I weight (I inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from falcon_unlearn.errors import UsageError


def smallest(scores: Tensor, share: float) -> Tensor:
    """Mark the `share` of entries with the smallest scores in the whole tensor; of ties, any.

    Raises:
        UsageError: The share does not lie between 0 and 1.
    """
    return _lowest(scores.flatten(), count_of(scores.numel(), share)).view(scores.shape)


def smallest_per_output(scores: Tensor, share: float) -> Tensor:
    """Mark the `share` of entries with the smallest scores of every output, the comparison group of Wanda."""
    return _lowest(scores, count_of(scores.shape[-1], share))


def largest(scores: Tensor, share: float) -> Tensor:
    """Mark the `share` of entries with the largest scores in the whole tensor."""
    return smallest(-scores, share)


def wanda_scores(weight: Tensor, input_norms_I: Tensor) -> Tensor:
    """Return |w_ij| ||x_j||_2 (Sun et al. 2023, eq. 1)."""
    return weight.detach().abs().float() * input_norms_I.to(weight.device).float()


def set_difference(wanted: Tensor, protected: Tensor, share_wanted: float, share_protected: float) -> Tensor:
    """Mark entries in the top `share_wanted` of one score and not in the top `share_protected` of another.

    Wei et al. 2024, arXiv 2402.05162, section 3.3.
    """
    return largest(wanted, share_wanted) & ~largest(protected, share_protected)


def random_mask(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mark `count` entries of a tensor of the shape of `like`, drawn without replacement."""
    mask = torch.zeros(like.numel(), dtype=torch.bool)
    mask[torch.randperm(like.numel(), generator=generator)[:count]] = True
    return mask.view(like.shape).to(like.device)


def count_of(total: int, share: float) -> int:
    """Return the number of entries that a share means, rounded to the nearest."""
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"a share of weights lies between 0 and 1, got {share}")
    return round(total * share)


def _lowest(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    # Selection instead of sorting: a model has a hundred million entries.
    chosen = scores.float().topk(count, dim=-1, largest=False, sorted=False).indices
    return mask.scatter_(-1, chosen, True)
