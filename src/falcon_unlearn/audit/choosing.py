"""Choose one variant of an attack per format: which are still to be asked, and which one is ahead.

A variant that spares the model beats one that destroys it; then the larger accuracy on the selection facts
counts; then the earlier one. Whether a variant spares the model costs more to find out than its accuracy, so
that is found out only where it can matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class Contest(Generic[V]):
    """Follow the best variant of one format."""

    best: V | None = None
    value: float = -1.0
    destroys: bool = True
    _waiting: list[tuple[float, V]] = field(default_factory=list)

    def admits(self, value: float) -> bool:
        """Tell whether a later variant of this accuracy would be ahead if it spares the model."""
        return value > self.value or self.destroys

    def enter(self, variant: V, value: float, *, destroys: bool) -> bool:
        """Take the variant as best if it is ahead, and tell whether it is."""
        if (not destroys, value) <= (not self.destroys, self.value):
            return False
        self.best, self.value, self.destroys = variant, value, destroys
        return True

    def wait(self, variant: V, value: float) -> None:
        """Keep a variant that can be asked later."""
        self._waiting.append((value, variant))
        # Sorting is stable: of equal ones the earlier comes first.
        self._waiting.sort(key=lambda entry: -entry[0])

    def next(self) -> tuple[V, float] | None:
        """Return the waiting variant to be asked now, best first; None where none can be ahead any more."""
        if not self._waiting or not self.admits(self._waiting[0][0]):
            return None
        value, variant = self._waiting.pop(0)
        return variant, value
