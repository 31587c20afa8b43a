"""Turn item values into metrics with intervals. Items of one cluster are resampled together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.config.evaluation import SetRole
from falcon_unlearn.linalg.intervals import Interval, percentile_interval, wilson_interval
from falcon_unlearn.results import EvaluationItem, Metric

Unit = Literal["share", "per token", "nats per token", "ratio"]
Desired = Literal["lower", "unchanged", "higher"]
Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# A model that has forgotten is more surprised by forget text and further from the original there.
_RISES_WHEN_FORGOTTEN = frozenset({"perplexity", "perplexity_word", "perplexity_byte", "divergence"})
_NEVER_A_GOAL = frozenset({"letter_mass"})


@dataclass(frozen=True)
class ItemValue:
    """Hold what one item adds to a metric: the metric is sum(numerator) / sum(denominator), transformed."""

    id: str
    cluster: str
    """Empty: the item is independent of all others."""
    numerator: float
    denominator: float = 1.0


@dataclass(frozen=True)
class Summariser:
    """Compute the metrics of one evaluation set."""

    set_name: str
    role: SetRole
    seed: int
    confidence: float
    resamples: int

    def share(self, name: str, items: Sequence[ItemValue], *, chance: float | None = None) -> Metric:
        """Return the mean of values in [0, 1].

        The interval is Wilson's where every item is independent and 0 or 1, else a bootstrap over clusters.
        Where all values are 0, or all 1, a bootstrap has no width; then it is Wilson's, clusters as trials.
        """
        num_clusters = len({_cluster(item) for item in items})
        values = [item.numerator for item in items]
        total = sum(values)
        if num_clusters == len(items) and all(value in (0.0, 1.0) for value in values):
            return self._metric(
                name, items, wilson_interval(round(total), len(items), self.confidence), "wilson", chance
            )
        if total in (0.0, float(len(items))):
            successes = num_clusters if total else 0
            interval = wilson_interval(successes, num_clusters, self.confidence)
            return self._metric(name, items, interval, "wilson", chance)
        return self.ratio(name, items, unit="share", chance=chance)

    def ratio(
        self,
        name: str,
        items: Sequence[ItemValue],
        *,
        unit: Unit,
        transform: Transform = np.asarray,
        chance: float | None = None,
    ) -> Metric:
        """Return transform(sum of numerators / sum of denominators), with a cluster bootstrap."""
        numerators, denominators = _cluster_sums(items)
        generator = np.random.default_rng([self.seed, zlib.crc32(f"{self.set_name}/{name}".encode())])
        size = len(numerators)
        counts = generator.multinomial(size, np.full(size, 1.0 / size), size=self.resamples)
        interval = percentile_interval(
            transform((counts @ numerators) / (counts @ denominators)), self.confidence
        )
        value = float(transform(np.asarray(numerators.sum() / denominators.sum())))
        return self._metric(name, items, interval, "bootstrap", chance, value=value, unit=unit)

    def fixed(self, name: str, value: float, *, unit: Unit, num_items: int) -> Metric:
        """Return a value that is known exactly."""
        return Metric(
            name=name,
            value=value,
            low=value,
            high=value,
            interval="bootstrap",
            unit=unit,
            desired=desired_direction(name, self.role),
            num_items=num_items,
        )

    def _metric(
        self,
        name: str,
        items: Sequence[ItemValue],
        interval: Interval,
        kind: Literal["wilson", "bootstrap"],
        chance: float | None,
        *,
        value: float | None = None,
        unit: Unit = "share",
    ) -> Metric:
        plain = sum(item.numerator for item in items) / sum(item.denominator for item in items)
        return Metric(
            name=name,
            value=plain if value is None else value,
            low=interval.low,
            high=interval.high,
            interval=kind,
            unit=unit,
            chance=chance,
            desired=desired_direction(name, self.role),
            num_items=len(items),
        )


def desired_direction(name: str, role: SetRole) -> Desired:
    """Say where a metric should go: forget sets away from knowledge, everything else nowhere."""
    if role != "forget" or name in _NEVER_A_GOAL:
        return "unchanged"
    return "higher" if name in _RISES_WHEN_FORGOTTEN else "lower"


def exponential(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(values), bounded so that a destroyed model still gives a finite perplexity."""
    return np.asarray(np.exp(np.minimum(values, 700.0)))


def item_records(
    name: str, items: Sequence[ItemValue], transform: Transform = np.asarray
) -> list[EvaluationItem]:
    """Return the record of each item: its own numerator / denominator, transformed."""
    return [
        EvaluationItem(
            id=item.id,
            cluster=item.cluster,
            metric=name,
            value=float(transform(np.asarray(item.numerator / item.denominator))),
        )
        for item in items
    ]


def _cluster(item: ItemValue) -> tuple[bool, str]:
    # The flag keeps an item whose id happens to be another item's cluster apart.
    return (True, item.cluster) if item.cluster else (False, item.id)


def _cluster_sums(items: Sequence[ItemValue]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sums: dict[tuple[bool, str], list[float]] = {}
    for item in items:
        entry = sums.setdefault(_cluster(item), [0.0, 0.0])
        entry[0] += item.numerator
        entry[1] += item.denominator
    table = np.array(list(sums.values()), dtype=np.float64)
    return table[:, 0], table[:, 1]
