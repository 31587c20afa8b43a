"""The learning rate over the steps."""

from __future__ import annotations

from falcon_unlearn.config.train import TrainSettings


def scheduled_rate(settings: TrainSettings, learning_rate: float, step: int) -> float:
    """Return the learning rate of the 0-based `step`: linear warm-up, then constant or linear to zero."""
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    decay = 1.0 - step / settings.steps if settings.schedule == "linear" else 1.0
    return learning_rate * warmup * decay
