"""Build the objective of a method on states from what was cached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_unlearn.activations.collect import sink_tokens
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.errors import UsageError
from falcon_unlearn.objectives.base import RepresentationObjective
from falcon_unlearn.objectives.circuit_breakers import CircuitBreakerObjective
from falcon_unlearn.objectives.falcon import FalconObjective, fit_domain_directions, fit_retain_statistics
from falcon_unlearn.objectives.rmu import RmuObjective
from falcon_unlearn.training.batches import CachedCorpus


@dataclass(frozen=True)
class Caches:
    """Hold the cached states of all corpora."""

    forget: list[CachedCorpus]
    retain: list[CachedCorpus]
    compute_dtype: torch.dtype
    seconds: float
    """Wall time of the caching pass."""

    @property
    def num_tokens(self) -> int:
        """Count the real tokens of all corpora."""
        return sum(sum(c.states.inputs.lengths) for c in (*self.forget, *self.retain))

    @property
    def num_bytes(self) -> int:
        """Return the size of all stores in bytes."""
        return sum(c.states.num_bytes for c in (*self.forget, *self.retain))


def counted_chunks(corpus: CachedCorpus, recipe: Recipe, *, answers_only: bool) -> Iterator[Tensor]:
    """Yield the frozen states of each group of samples that count for directions and means, N x D."""
    offset = recipe.objective.offset
    rows: list[Tensor] = []
    for index in range(len(corpus.states.outputs)):
        states_LD = corpus.states.outputs.read(index)
        counted_L = (
            corpus.answer_masks[index].clone()
            if answers_only
            else torch.ones(len(states_LD), dtype=torch.bool)
        )
        if offset.exclude_sinks:
            counted_L &= ~sink_tokens(states_LD[None], torch.ones(1, len(states_LD)), offset.sink_factor)[0]
        rows.append(states_LD[counted_L].float())
        if sum(len(row) for row in rows) >= max(256, states_LD.shape[1] // 2):
            yield torch.cat(rows)
            rows = []
    if rows:
        yield torch.cat(rows)


def fit_objective(caches: Caches, recipe: Recipe) -> RepresentationObjective:
    """Return the objective of a method on states.

    Raises:
        UsageError: The method acts on outputs.
    """
    if recipe.method == "rmu":
        return RmuObjective(recipe.objective.rmu, seed=recipe.seed)
    if recipe.method == "circuit_breakers":
        settings = recipe.objective.circuit_breakers
        return CircuitBreakerObjective(settings, total_steps=recipe.train.steps, seed=recipe.seed)
    if recipe.method != "falcon":
        raise UsageError(f"method: {recipe.method} acts on outputs and has no loss on hidden states")
    return _fit_falcon(caches, recipe)


def _fit_falcon(caches: Caches, recipe: Recipe) -> FalconObjective:
    offset = recipe.objective.offset
    retain = None
    if offset.mode == "paper" and offset.principal != "literal":
        chunks = (
            chunk for corpus in caches.retain for chunk in counted_chunks(corpus, recipe, answers_only=False)
        )
        retain = fit_retain_statistics(chunks, offset.directions)
    directions: list[Tensor] = []
    if offset.mode == "paper" and offset.resolved_granularity != "batch":
        directions = [
            fit_domain_directions(counted_chunks(corpus, recipe, answers_only=True), offset, retain)
            for corpus in caches.forget
        ]
    return FalconObjective(
        recipe.objective, directions, seed=recipe.seed, retain=retain, model_dtype=caches.compute_dtype
    )
