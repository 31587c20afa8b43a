"""Named bundles of settings: the paper as written, and the released code as it runs.

A preset fills what the recipe leaves unsaid, and the defaults of the method what both leave unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falcon_unlearn.config.catalogue import METHODS

PRESETS: dict[str, dict[str, Any]] = {
    # Our defaults: the paper's method with the corrections that docs/design.md explains.
    "default": {},
    # Eq. 8-14 literally: one target per domain, all tokens, one layer, the joint gradient, weights of one.
    "paper": {
        "objective": {
            "offset": {
                "mode": "paper",
                "granularity": "domain",
                "principal": "literal",
                "exclude_sinks": False,
            },
            "retain_multiplier": 1.0,
            "conflict": {"rule": "falcon", "scope": "global"},
        },
        "train": {"layers": 1},
    },
    # The released code (commit 2033d33) with its Zephyr defaults; padding stays masked and sums in float32.
    "reference": {
        "selection": {"layer": 7},
        "objective": {
            "temperature": 0.7,
            "negatives": 1,
            "retain_multiplier": 100.0,
            "offset": {"mode": "reference", "directions": 1000, "exclude_sinks": False},
            "conflict": {
                "rule": "falcon",
                "scope": "tensor",
                "conflict_weights": [0.8, 1.2],
                "aligned_weights": [0.1, 1.9],
            },
        },
        "train": {
            "steps": 80,
            "batch_size": 4,
            "layers": 3,
            "optimizer": "sophia_reference",
            "learning_rate": 5e-5,
            "weight_decay": 1e-3,
        },
    },
}


def fill_from_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's values with those of preset and method underneath; unknown names fail later."""
    preset = PRESETS.get(str(values.get("preset", "default")), {})
    method = METHODS.get(str(values.get("method", "falcon")))
    defaults = method.defaults if method is not None else {}
    filled: dict[str, Any] = _freeze(_merge(_merge(defaults, preset), values))
    return filled


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(under, value)
        else:
            merged[key] = value
    return merged


def _freeze(value: Any) -> Any:
    # Strict validation takes tuples where JSON has lists, and after this step the values are no longer JSON.
    if isinstance(value, Mapping):
        return {key: _freeze(entry) for key, entry in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
