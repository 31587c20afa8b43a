"""Rules that turn three inner products into the weights of the two gradients.

A rule is a pure function `Gramian -> CombinationWeights`; the update direction of its group is
`forget_weight * g_F + retain_weight * g_R`. To add one, write such a function and enter it in `RULES`.

A zero retain gradient is legitimate (at step 0 the model still equals its frozen copy) and counts as no
conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from falcon_unlearn.conflict.gramian import Gramian
from falcon_unlearn.errors import UsageError

REFERENCE_CONFLICT_WEIGHTS = (0.8, 1.2)
"""alpha and beta of the released code where the gradients conflict."""
REFERENCE_ALIGNED_WEIGHTS = (0.1, 1.9)
"""alpha and beta of the released code elsewhere."""


class CombinationWeights(NamedTuple):
    """Hold the factors of the forget gradient and of the retain gradient."""

    forget_weight: float
    retain_weight: float


Rule = Callable[[Gramian], CombinationWeights]


def conflicts(gramian: Gramian) -> bool:
    """Tell whether the gradients oppose each other (eq. 12)."""
    return gramian.forget_retain < 0.0 and gramian.retain_retain > 0.0


def falcon(
    gramian: Gramian,
    conflict_weights: tuple[float, float] = (1.0, 1.0),
    aligned_weights: tuple[float, float] = (1.0, 1.0),
) -> CombinationWeights:
    """Project the forget gradient off the retain gradient on conflict, then weight both (eq. 13 and 14).

    Args:
        gramian: inner products of the group.
        conflict_weights: alpha and beta of eq. 14 on conflict.
        aligned_weights: alpha and beta elsewhere.
    """
    if not conflicts(gramian):
        return CombinationWeights(*aligned_weights)
    alpha, beta = conflict_weights
    return CombinationWeights(alpha, beta - alpha * gramian.forget_retain / gramian.retain_retain)


def plain_sum(gramian: Gramian) -> CombinationWeights:
    """Add both gradients as they are."""
    return CombinationWeights(1.0, 1.0)


def pcgrad(gramian: Gramian) -> CombinationWeights:
    """Project each gradient off the other on conflict and add both (Yu et al., 2020, arXiv 2001.06782)."""
    if not conflicts(gramian):
        return CombinationWeights(1.0, 1.0)
    return CombinationWeights(
        1.0 - gramian.forget_retain / gramian.forget_forget,
        1.0 - gramian.forget_retain / gramian.retain_retain,
    )


def mgda(gramian: Gramian) -> CombinationWeights:
    """Take the shortest convex combination of both gradients (Desideri, 2012).

    With a zero gradient the shortest combination is zero and training could never start, so both are added
    then.
    """
    if gramian.forget_forget == 0.0 or gramian.retain_retain == 0.0:
        return CombinationWeights(1.0, 1.0)
    squared_distance = gramian.forget_forget + gramian.retain_retain - 2.0 * gramian.forget_retain
    if squared_distance <= 0.0:
        return CombinationWeights(0.5, 0.5)
    share = (gramian.retain_retain - gramian.forget_retain) / squared_distance
    share = min(1.0, max(0.0, share))
    return CombinationWeights(share, 1.0 - share)


RULES: Mapping[str, Rule] = {"falcon": falcon, "sum": plain_sum, "pcgrad": pcgrad, "mgda": mgda}


def resolve_rule(
    rule: str | Rule,
    conflict_weights: tuple[float, float] = (1.0, 1.0),
    aligned_weights: tuple[float, float] = (1.0, 1.0),
) -> Rule:
    """Return the rule of a name, with the two pairs of weights bound for `falcon`, or the given function.

    Raises:
        UsageError: unknown name.
    """
    if callable(rule):
        return rule
    if rule not in RULES:
        raise UsageError(f"conflict rule must be one of {', '.join(RULES)}, got {rule!r}.")
    if rule == "falcon":
        return partial(falcon, conflict_weights=conflict_weights, aligned_weights=aligned_weights)
    return RULES[rule]
