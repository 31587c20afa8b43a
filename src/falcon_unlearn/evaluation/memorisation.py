"""The memorisation measures under the name that the evaluation uses; the mathematics is in `metrics`."""

from __future__ import annotations

from falcon_unlearn.metrics.memorisation import exact_memorisation, extraction_strength

__all__ = ["exact_memorisation", "extraction_strength"]
