"""Score layers by gradient conflict: a few steps of unlearning at one block each, cosine after the first.

Before the first step the retain gradient is zero, so the cosine is taken along a short trajectory, as the
paper's Fig. 3 does. The parameters are put back after every layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.conflict import Gramian
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.events import EventSink, Progress, ignore_events
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.runs import WorkFolder
from falcon_unlearn.selection.gradients import score_gradient_conflict
from falcon_unlearn.selection.score import LayerScores
from falcon_unlearn.training.session import probe_window

PROBE_STEPS = 8
"""Steps per layer; the first has no retain gradient and is left out."""
PROBE_SAMPLES = 48
"""Training samples per corpus that the probe may use."""


def probe_gradient_conflict(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    layers: Iterable[int],
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None = None,
) -> LayerScores:
    """Return the mean cosine of forget and retain gradient at each layer, trained alone.

    `work` keeps the products of every finished layer.

    Raises:
        NumericalError: A probe diverged, or has no retain gradient on all but one step.
    """
    layers = list(layers)
    small = _shorten(data)
    settings = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(
                update={
                    "steps": PROBE_STEPS,
                    "layers": 1,
                    "warmup_steps": 0,
                    "maximum_retain_drift": None,
                    "maximum_utility_loss": None,
                }
            )
        }
    )
    gramians: dict[int, list[Gramian]] = {}
    for done, layer in enumerate(layers):
        sink(Progress(stage="select", done=done, total=len(layers), message=f"gradients at layer {layer}"))
        kept = None if work is None else work.get(f"gradients at layer {layer}")
        if kept is not None:
            gramians[layer] = [Gramian(*row) for row in kept["gramians"]]
            continue
        gramians[layer] = probe_window(engine, small, settings, layer, folder, ignore_events)[1:]
        if work is not None:
            work.put(f"gradients at layer {layer}", {"gramians": [list(row) for row in gramians[layer]]})
    sink(Progress(stage="select", done=len(layers), total=len(layers)))
    return score_gradient_conflict(gramians, num_resamples=recipe.selection.resamples, seed=recipe.seed)


def _shorten(data: PreparedData) -> PreparedData:
    def cut(corpora: tuple[Corpus, ...]) -> tuple[Corpus, ...]:
        return tuple(replace(corpus, training=corpus.training[:PROBE_SAMPLES]) for corpus in corpora)

    return replace(data, forget=cut(data.forget), retain=cut(data.retain))
