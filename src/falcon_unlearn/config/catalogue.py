"""All methods: what they act on, where they come from, and the settings that differ from FALCON's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MethodName = Literal[
    "falcon",
    "rmu",
    "circuit_breakers",
    "grad_ascent",
    "grad_diff",
    "npo",
    "simnpo",
    "idk_nll",
    "idk_dpo",
    "altpo",
    "scrub",
    "undial",
    "task_vector",
]


@dataclass(frozen=True)
class Method:
    """Describe one method."""

    name: str
    title: str
    acts_on: Literal["states", "outputs"]
    """`states`: hidden states of the layer window; `outputs`: the model's predictions."""
    needs: frozenset[str] = frozenset()
    """Of the frozen model, for outputs: `log_probabilities` of given tokens, `distribution` over the
    vocabulary; `alternatives`: other answers to the forget questions."""
    source: str = ""
    """Paper."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """What the recipe gets where it is silent."""


def _outputs(retain_multiplier: float = 1.0, **objective: Any) -> dict[str, Any]:
    """Return the settings that the incumbents share: all parameters, sum of gradients, 1e-5, constant."""
    return {
        "objective": {
            "retain_multiplier": retain_multiplier,
            "conflict": {"rule": "sum"},
            **objective,
        },
        "train": {"parameters": "all", "learning_rate": 1e-5, "schedule": "constant", "weight_decay": 0.01},
        "data": {"loss_on": "answer"},
    }


_METHODS = (
    Method("falcon", "FALCON", "states", source="Hu et al. 2025, arXiv 2502.01472"),
    Method(
        "rmu",
        "RMU (representation misdirection); adaptive with objective.rmu.adaptive",
        "states",
        source="Li et al. 2024, arXiv 2403.03218; adaptive: Huu-Tien et al. 2024, arXiv 2408.06223",
        defaults={
            "objective": {
                "retain_multiplier": 100.0,
                "conflict": {"rule": "sum"},
                "offset": {"exclude_sinks": False},
            },
            "train": {"learning_rate": 5e-5, "schedule": "constant"},
        },
    ),
    Method(
        "circuit_breakers",
        "Representation rerouting (circuit breakers)",
        "states",
        source="Zou et al. 2024, arXiv 2406.04313",
        defaults={
            "objective": {
                "retain_multiplier": 1.0,
                "conflict": {"rule": "sum"},
                "offset": {"exclude_sinks": False},
            },
            "train": {"learning_rate": 1e-4, "schedule": "constant"},
        },
    ),
    Method(
        "grad_ascent",
        "Gradient ascent",
        "outputs",
        source="Jang et al. 2023, arXiv 2210.01504",
        defaults=_outputs(0.0),
    ),
    Method(
        "grad_diff",
        "Gradient difference",
        "outputs",
        source="Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121",
        defaults=_outputs(),
    ),
    Method(
        "npo",
        "Negative preference optimisation",
        "outputs",
        needs=frozenset({"log_probabilities"}),
        source="Zhang et al. 2024, arXiv 2404.05868",
        defaults=_outputs(),
    ),
    Method(
        "simnpo",
        "SimNPO",
        "outputs",
        source="Fan et al. 2024, arXiv 2410.07163",
        # open-unlearning weighs the forget term with .125; only the ratio matters to Adam.
        defaults=_outputs(8.0),
    ),
    Method(
        "idk_nll",
        "Refusals by likelihood (IDK-NLL)",
        "outputs",
        needs=frozenset({"alternatives"}),
        source="Maini et al. 2024, arXiv 2401.06121",
        defaults=_outputs(),
    ),
    Method(
        "idk_dpo",
        "Refusals by preference (IDK-DPO)",
        "outputs",
        needs=frozenset({"alternatives", "log_probabilities"}),
        source="Maini et al. 2024, arXiv 2401.06121; Rafailov et al. 2023, arXiv 2305.18290",
        defaults=_outputs(),
    ),
    Method(
        "altpo",
        "AltPO: preference for the model's own plausible alternatives",
        "outputs",
        needs=frozenset({"alternatives", "log_probabilities"}),
        source="Mekala et al. 2024, arXiv 2409.13474",
        defaults=_outputs(alternatives={"source": "model"}),
    ),
    Method(
        "scrub",
        "SCRUB",
        "outputs",
        needs=frozenset({"distribution"}),
        source="Kurmanji et al. 2023, arXiv 2302.09880",
        defaults=_outputs(),
    ),
    Method(
        "undial",
        "UNDIAL (self-distillation with adjusted logits)",
        "outputs",
        needs=frozenset({"distribution"}),
        source="Dong et al. 2024, arXiv 2402.10052",
        defaults=_outputs(0.0),
    ),
    Method(
        "task_vector",
        "Task-vector negation",
        "outputs",
        source="Ilharco et al. 2022, arXiv 2212.04089",
        defaults=_outputs(0.0),
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
