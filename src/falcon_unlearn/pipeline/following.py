"""What the other ranks of a distributed job do: what training needs, and nothing that is written."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.events import ignore_events
from falcon_unlearn.pipeline.running import train_in
from falcon_unlearn.pipeline.workspace import open_workspace, seeded


def follow_run(recipe: Recipe) -> None:
    """Load the model, then select and unlearn together with the leader, silently.

    Raises:
        FalconError: As the leader's run; the first rank that fails tells it.
    """
    with seeded(recipe.seed, recipe.runtime.threads), TemporaryDirectory(prefix="falcon-") as scratch:
        workspace = open_workspace(recipe, ignore_events, {})
        train_in(workspace, recipe, ignore_events, {}, Path(scratch))
