"""Which layers the selection may choose."""

from __future__ import annotations

from falcon_unlearn.config.recipe import Recipe


def candidate_range(recipe: Recipe, num_blocks: int) -> tuple[int, int]:
    """Return first and last block that may be chosen: inside the depth range, with room for the window."""
    low, high = recipe.selection.candidates
    lowest = max(recipe.train.layers - 1, round(low * num_blocks))
    highest = min(num_blocks - 1, round(high * num_blocks))
    return min(lowest, num_blocks - 1), max(min(lowest, num_blocks - 1), highest)
