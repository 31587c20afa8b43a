"""Conflict of two gradients: three inner products in, two weights out (eq. 12-14)."""

from __future__ import annotations

from falcon_unlearn.conflict.apply import ResolvedGradients, resolve_conflict
from falcon_unlearn.conflict.gramian import Gramian, Scope, compute_gramians, cosine
from falcon_unlearn.conflict.rules import (
    REFERENCE_ALIGNED_WEIGHTS,
    REFERENCE_CONFLICT_WEIGHTS,
    RULES,
    CombinationWeights,
    Rule,
    conflicts,
)

__all__ = [
    "REFERENCE_ALIGNED_WEIGHTS",
    "REFERENCE_CONFLICT_WEIGHTS",
    "RULES",
    "CombinationWeights",
    "Gramian",
    "ResolvedGradients",
    "Rule",
    "Scope",
    "compute_gramians",
    "conflicts",
    "cosine",
    "resolve_conflict",
]
