"""Gradient difference: gradient ascent on forget text, with a retain term."""

from __future__ import annotations

from dataclasses import dataclass

from falcon_unlearn.objectives.outputs.grad_ascent import GradAscent


@dataclass(frozen=True, kw_only=True)
class GradDiff(GradAscent):
    """Climb on forget text and descend on retain text (Liu et al. 2022, arXiv 2203.12817).

    With `retain="kl"` it is what Maini et al. 2024 (arXiv 2401.06121) call KL minimisation.
    """
