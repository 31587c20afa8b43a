"""FALCON: remove knowledge from open-weight language models by representation-guided unlearning.

Importing this package is cheap: names are loaded when first used, so torch is imported only by what needs it,
and no global state (random numbers, threads, default dtype) is touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from falcon_unlearn._version import __version__

if TYPE_CHECKING:
    from falcon_unlearn.api.config import UnlearnConfig
    from falcon_unlearn.api.layers import select_layers
    from falcon_unlearn.api.trainer import UnlearnTrainer
    from falcon_unlearn.config.load import load_recipe
    from falcon_unlearn.config.recipe import Recipe
    from falcon_unlearn.conflict import resolve_conflict
    from falcon_unlearn.linalg.information import mutual_information
    from falcon_unlearn.objectives.losses import info_nce_loss, retention_loss
    from falcon_unlearn.objectives.offsets import principal_directions, principal_offset_vectors
    from falcon_unlearn.pipeline import evaluate_model, plan_run, run_pipeline
    from falcon_unlearn.report import render_report

__all__ = [
    "Recipe",
    "UnlearnConfig",
    "UnlearnTrainer",
    "__version__",
    "evaluate_model",
    "info_nce_loss",
    "load_recipe",
    "mutual_information",
    "plan_run",
    "principal_directions",
    "principal_offset_vectors",
    "render_report",
    "resolve_conflict",
    "retention_loss",
    "run_pipeline",
    "select_layers",
]

_HOMES = {
    "Recipe": "config.recipe",
    "UnlearnConfig": "api.config",
    "UnlearnTrainer": "api.trainer",
    "evaluate_model": "pipeline",
    "info_nce_loss": "objectives.losses",
    "load_recipe": "config.load",
    "mutual_information": "linalg.information",
    "plan_run": "pipeline",
    "principal_directions": "objectives.offsets",
    "principal_offset_vectors": "objectives.offsets",
    "render_report": "report",
    "resolve_conflict": "conflict",
    "retention_loss": "objectives.losses",
    "run_pipeline": "pipeline",
    "select_layers": "api.layers",
}
"""Module that holds each public name."""


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
