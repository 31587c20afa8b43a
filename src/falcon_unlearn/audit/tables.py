"""Arrange item rows as arrays that hold the same items in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.results_audit import NO_ATTACK, FormatName, ItemRow, ModelRole, SetRole, Split

FloatArray = NDArray[np.float64]
Cell = tuple[ModelRole, str, str, int, FormatName, SetRole, Split]
PLAIN_VARIANT = "as it is"


@dataclass(frozen=True)
class Questions:
    """Hold the facts of one set and split, in the order of all arrays."""

    set: SetRole
    split: Split
    facts: tuple[Fact, ...]

    @property
    def clusters(self) -> list[str]:
        """Return the cluster of each fact."""
        return [fact.cluster for fact in self.facts]

    @property
    def chance(self) -> FloatArray:
        """Return the expected accuracy of a guess among the options, fact by fact."""
        return np.array([1.0 / len(fact.options) for fact in self.facts])


class Table:
    """Find the rows of a model under an attack."""

    def __init__(self, rows: Iterable[ItemRow]) -> None:
        self._cells: dict[Cell, dict[str, ItemRow]] = {}
        for row in rows:
            cell = (row.model, row.attack, row.variant, row.seed, row.format, row.set, row.split)
            self._cells.setdefault(cell, {})[row.item] = row

    def rows(
        self,
        model: ModelRole,
        format: FormatName,
        questions: Questions,
        *,
        attack: str = NO_ATTACK,
        variant: str = PLAIN_VARIANT,
        seed: int = 0,
    ) -> list[ItemRow]:
        """Return the rows of all questions in their order; empty if one is missing."""
        cell = self._cells.get((model, attack, variant, seed, format, questions.set, questions.split), {})
        found = [cell[fact.id] for fact in questions.facts if fact.id in cell]
        return found if len(found) == len(questions.facts) else []

    def values(
        self,
        model: ModelRole,
        format: FormatName,
        questions: Questions,
        *,
        attack: str = NO_ATTACK,
        variant: str = PLAIN_VARIANT,
        seeds: Sequence[int] = (0,),
    ) -> FloatArray | None:
        """Return accuracies (seeds, items) of the seeds that were run; None if there are none."""
        tables = [
            [row.value for row in rows]
            for seed in seeds
            if (rows := self.rows(model, format, questions, attack=attack, variant=variant, seed=seed))
        ]
        return np.array(tables) if tables else None
