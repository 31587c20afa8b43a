"""Range checks that the optimizers share."""

from __future__ import annotations

from falcon_unlearn.errors import UsageError


def check_rate(learning_rate: float) -> None:
    """Raise `UsageError` unless the learning rate is positive."""
    if not learning_rate > 0.0:
        raise UsageError(f"learning_rate must be positive, got {learning_rate}.")


def check_fraction(value: float, name: str) -> None:
    """Raise `UsageError` unless a momentum coefficient lies in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise UsageError(f"{name} must lie in [0, 1), got {value}.")


def check_not_negative(value: float, name: str) -> None:
    """Raise `UsageError` for a negative value."""
    if not value >= 0.0:
        raise UsageError(f"{name} must not be negative, got {value}.")
