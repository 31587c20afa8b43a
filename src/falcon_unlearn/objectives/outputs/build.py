"""The objective of each method on outputs, from the settings of a recipe."""

from __future__ import annotations

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.config.objective import ObjectiveSettings
from falcon_unlearn.errors import UsageError
from falcon_unlearn.objectives.outputs.base import OutputObjective
from falcon_unlearn.objectives.outputs.grad_ascent import GradAscent
from falcon_unlearn.objectives.outputs.grad_diff import GradDiff
from falcon_unlearn.objectives.outputs.idk_dpo import IdkDpo
from falcon_unlearn.objectives.outputs.idk_nll import IdkNll
from falcon_unlearn.objectives.outputs.npo import Npo
from falcon_unlearn.objectives.outputs.scrub import Scrub
from falcon_unlearn.objectives.outputs.simnpo import SimNpo
from falcon_unlearn.objectives.outputs.task_vector import TaskVector
from falcon_unlearn.objectives.outputs.undial import Undial


def build_output_objective(method: str, settings: ObjectiveSettings) -> OutputObjective:
    """Build the objective of a method on outputs.

    Args:
        method: Its name in the catalogue.
        settings: The recipe's objective; SCRUB has a retain term of its own and ignores `retain_loss`.

    Raises:
        UsageError: The method acts on hidden states, or does not exist.
    """
    retain = settings.retain_loss
    match method:
        case "grad_ascent":
            return GradAscent(retain=retain)
        case "grad_diff":
            return GradDiff(retain=retain)
        case "npo":
            return Npo(beta=settings.npo.beta, retain=retain)
        case "simnpo":
            return SimNpo(beta=settings.simnpo.beta, margin=settings.simnpo.margin, retain=retain)
        case "idk_nll":
            return IdkNll(retain=retain)
        case "idk_dpo" | "altpo":
            return IdkDpo(beta=settings.preference.beta, retain=retain)
        case "scrub":
            return Scrub(**settings.scrub.model_dump())
        case "undial":
            return Undial(beta=settings.undial.beta, retain=retain)
        case "task_vector":
            return TaskVector(retain=retain)
    raise _no_output_method(method)


def _no_output_method(method: str) -> UsageError:
    allowed = ", ".join(name for name, entry in METHODS.items() if entry.acts_on == "outputs")
    reason = "acts on hidden states, not on outputs" if method in METHODS else "does not exist"
    return UsageError(f"method: {method!r} {reason}", hint=f"Methods on outputs: {allowed}.")
