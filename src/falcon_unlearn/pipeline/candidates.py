"""Which layers the selection may choose."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_unlearn.config.recipe import Recipe


def candidate_range(recipe: Recipe, num_blocks: int) -> tuple[int, int]:
    """Return first and last block that may be chosen: inside the depth range, with room for the window."""
    low, high = recipe.selection.candidates
    lowest = max(recipe.train.layers - 1, round(low * num_blocks))
    highest = min(num_blocks - 1, round(high * num_blocks))
    return min(lowest, num_blocks - 1), max(min(lowest, num_blocks - 1), highest)


def wants_trial(recipe: Recipe) -> bool:
    """Tell whether a trial is to confirm the layer: for methods that have a loss layer."""
    settings = recipe.selection
    acts_on_states = recipe.method_entry.acts_on == "states"
    return acts_on_states and settings.trial.when != "never" and settings.rule == "earliest_tied"


def tries_layers(recipe: Recipe, *, streamed: bool) -> bool:
    """Tell whether that trial runs, or is left out because the model is read block by block."""
    return wants_trial(recipe) and (not streamed or recipe.selection.trial.when == "always")


def spread_layers(layers: Sequence[int], number: int) -> list[int]:
    """Return at most `number` >= 2 of the layers, evenly spaced, first and last included."""
    if len(layers) <= number:
        return list(layers)
    last = len(layers) - 1
    return [layers[round(place * last / (number - 1))] for place in range(number)]
