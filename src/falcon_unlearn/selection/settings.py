"""Settings of the information estimators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from falcon_unlearn.errors import UsageError
from falcon_unlearn.linalg.intervals import check_confidence

_CHOICES = {
    "estimator": ("paired", "pooled"),
    "density": ("kde", "ksg", "gaussian"),
    "pairs": ("random", "given"),
    "on_failure": ("raise", "record"),
}


@dataclass(frozen=True)
class InformationSettings:
    """Set an information estimator.

    Attributes:
        estimator: `pooled` or `paired`.
        density: estimator of entropies for `paired`: `kde` (eq. 6), `ksg` or `gaussian`.
        pairs: `random` or `given`, for `paired`.
        eta: weight of the information between forget domains (eq. 5).
        minimum_explained_variance: variance share that the shared PCA keeps.
        maximum_components: upper bound on PCA components; one per four samples is the other bound.
        num_pairings: random pairings that `paired` averages over.
        num_permutations: permutations of the null.
        num_resamples: bootstrap resamples.
        confidence: of all intervals.
        seed: of pairings, permutations and resamples.
        on_failure: `raise`, or `record` to list a layer that cannot be scored under `missing`.
    """

    estimator: Literal["paired", "pooled"] = "pooled"
    density: Literal["kde", "ksg", "gaussian"] = "kde"
    pairs: Literal["random", "given"] = "random"
    eta: float = 0.0
    minimum_explained_variance: float = 0.95
    maximum_components: int | None = 64
    num_pairings: int = 8
    num_permutations: int = 50
    num_resamples: int = 200
    confidence: float = 0.95
    seed: int = 0
    on_failure: Literal["raise", "record"] = "raise"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: a value outside its range.
        """
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name, lowest in (("num_pairings", 1), ("num_permutations", 2), ("num_resamples", 2)):
            if getattr(self, name) < lowest:
                raise UsageError(f"{name} must be at least {lowest}, got {getattr(self, name)}.")
        check_confidence(self.confidence)
