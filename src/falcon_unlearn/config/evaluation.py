"""What is measured before and after."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from falcon_unlearn.config.base import Settings

SetRole = Literal["forget", "neighbour", "retain", "general"]


class EvaluationSetSettings(Settings):
    """Describe one evaluation set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Name in tables."""
    role: SetRole
    """Forget: should fall; neighbour, retain and general: should stay."""
    kind: Literal["choice", "generation", "perplexity", "divergence"]
    """Four-way questions, free generation, perplexity of text, or KL divergence to the original model."""
    path: str = Field(min_length=1)
    """JSONL file: {question, options, answer[, letter_question, wording, cluster]} for choice,
    {prompt, answer[, accept, reject]} for generation, {text} for perplexity and divergence."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many items, after seeded shuffling."""
    letter: bool | None = None
    """Choice only: score this set by letter too, or not; None does as evaluation.letter says."""


class EvaluationSettings(Settings):
    """Choose sets, formats and intervals."""

    sets: tuple[EvaluationSetSettings, ...] = ()
    """Own evaluation sets; besides them the held-out share of every corpus is always measured."""
    letter: bool = True
    """Score choice sets by letter too, averaged over cyclic orders of the options."""
    held_out: bool = True
    """Measure perplexity and divergence on the held-out share of the corpora, and the probability and
    ROUGE-L of answers where rows have them."""
    batch_tokens: int = Field(default=4096, ge=64)
    """Tokens per forward pass."""
    maximum_new_tokens: int = Field(default=16, ge=1, le=1024)
    """Length of generated answers."""
    maximum_divergence_tokens: int = Field(default=4096, ge=16)
    """Tokens on which the divergence to the original model is measured."""
    sample_generations: int = Field(default=6, ge=0)
    """Generations per set shown in the report."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples."""

    def scores_letters(self, entry: EvaluationSetSettings) -> bool:
        """Tell whether the choice set `entry` is scored by letter."""
        return self.letter if entry.letter is None else entry.letter
