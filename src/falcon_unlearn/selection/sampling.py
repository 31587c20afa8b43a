"""Order of samples, pairings, permutations and bootstrap weights, all drawn once for all layers.

Shapes: N samples, D hidden, W bootstrap resamples, P permutations or pairings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from falcon_unlearn.errors import DataError
from falcon_unlearn.selection.settings import InformationSettings

RETAIN = "retain"
MINIMUM_SAMPLES = 8

Activations = Mapping[int, Tensor]
Order = NDArray[np.int64]


@dataclass(frozen=True)
class SamplingPlan:
    """Hold every random choice of a selection.

    Attributes:
        num_samples: samples by set name, domains in alphabetical order, then "retain".
        orders: row order by set name, content-sorted and then shuffled by the seed.
        weights: Bayesian bootstrap weights by set name (N x W), columns sum to N.
        pairings: by pair of names, pairings to average over (P x N of the smaller set).
        shuffles: by pair of names, permutations of the null: of the pairs for `paired` (P x N of the smaller
            set), of all labels for `pooled` (P x N of both sets).
    """

    num_samples: dict[str, int]
    orders: dict[str, Order]
    weights: dict[str, Tensor]
    pairings: dict[tuple[str, str], Tensor]
    shuffles: dict[tuple[str, str], Tensor]


def plan_sampling(
    forget: Mapping[str, Activations], retain: Activations, settings: InformationSettings
) -> SamplingPlan:
    """Check the shapes of all activations and draw what the estimators need.

    Raises:
        DataError: no domain, a domain called "retain", layers that differ between sets, row counts that
            differ between layers, fewer than 8 samples, or given pairs of unequal number.
    """
    if not forget or RETAIN in forget:
        raise DataError(
            "at least one forget domain is needed, and none may be called 'retain'.",
            hint="Name forget sets as --forget NAME=FILE.",
        )
    sets = {name: forget[name] for name in sorted(forget)} | {RETAIN: retain}
    num_samples = {name: _num_samples(name, activations, retain) for name, activations in sets.items()}
    given = settings.estimator == "paired" and settings.pairs == "given"
    if given and len(set(num_samples.values())) > 1:
        raise DataError(f"given pairs need equally many samples in every set, got {num_samples}.")
    generators = _generators(settings.seed)
    deepest = {name: activations[max(activations)] for name, activations in sets.items()}
    if given:
        shared = _content_order(torch.cat(list(deepest.values())[::-1], dim=1), next(generators))
        orders = dict.fromkeys(sets, shared)
    else:
        orders = {name: _content_order(states_ND, next(generators)) for name, states_ND in deepest.items()}
    weights = {
        name: _bootstrap_weights(number, settings.num_resamples, next(generators))
        for name, number in num_samples.items()
    }
    names = list(sets)
    pairings, shuffles = {}, {}
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            sizes = (num_samples[first], num_samples[second])
            identity = torch.arange(min(sizes)).unsqueeze(0)
            drawn = _permutations(min(sizes), settings.num_pairings, next(generators))
            pairings[first, second] = identity if given else drawn
            length = sum(sizes) if settings.estimator == "pooled" else min(sizes)
            shuffles[first, second] = _permutations(length, settings.num_permutations, next(generators))
    return SamplingPlan(num_samples, orders, weights, pairings, shuffles)


def _num_samples(name: str, activations: Activations, retain: Activations) -> int:
    if not activations or activations.keys() != retain.keys():
        raise DataError(f"{name!r} has layers {sorted(activations)} but the retain set has {sorted(retain)}.")
    counts = {layer: states.shape[0] for layer, states in activations.items()}
    number = next(iter(counts.values()))
    if any(states.ndim != 2 for states in activations.values()) or len(set(counts.values())) > 1:
        raise DataError(f"activations of {name!r} must be N x D with one N for all layers, got {counts}.")
    if number < MINIMUM_SAMPLES:
        raise DataError(
            f"{name!r} has {number} samples; layer selection needs at least {MINIMUM_SAMPLES}.",
            hint="Give more texts, raise selection.samples, or fix the layer with selection.layer.",
        )
    return number


def _content_order(states_ND: Tensor, generator: np.random.Generator) -> Order:
    """Return an order of rows that depends on their content and the seed, not on the order they came in.

    The deepest layer decides, because there the states of different texts differ most.
    """
    rows = states_ND.detach().cpu().double().numpy()
    by_content = np.asarray(sorted(range(rows.shape[0]), key=lambda row: tuple(rows[row])), dtype=np.int64)
    return by_content[generator.permutation(rows.shape[0])]


def _bootstrap_weights(num_samples: int, num_resamples: int, generator: np.random.Generator) -> Tensor:
    """Draw Rubin's Bayesian bootstrap: Dirichlet weights, which leave every sample some weight."""
    weights_WN = generator.dirichlet(np.ones(num_samples), size=num_resamples) * num_samples
    return torch.from_numpy(np.ascontiguousarray(weights_WN.T))


def _permutations(length: int, number: int, generator: np.random.Generator) -> Tensor:
    return torch.from_numpy(np.stack([generator.permutation(length) for _ in range(number)]))


def _generators(seed: int) -> Iterator[np.random.Generator]:
    """Yield independent generators, one per purpose, so that sizes of one do not shift another."""
    for stream in range(1_000_000):
        yield np.random.default_rng([seed, stream])
