"""Compare two evaluations: what changed, and whether the change is more than noise."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from falcon_unlearn.results import EvaluationResult, Metric, SetResult, comparison_rows

MATERIAL_POINTS = 0.02
"""A kept share counts as hurt from this loss on."""
MATERIAL_RATIO = 0.05
"""A kept perplexity counts as hurt from this relative rise on."""
MINIMUM_CLUSTERS = 6
"""Below this many clusters no sign test can reach 5 %; the intervals decide instead."""

METRIC_NAMES = {
    "accuracy_text": ("multiple choice, by text", "choice, text"),
    "accuracy_letter": ("multiple choice, by letter", "choice, letter"),
    "letter_mass": ("probability on option letters", "letter mass"),
    "accuracy_generation": ("free answers", "free answer"),
    "perplexity": ("perplexity", "perplexity"),
    "divergence": ("divergence from the original", "divergence"),
    "answer_probability": ("probability of the answer", "answer prob."),
    "rouge_l": ("ROUGE-L of answers", "ROUGE-L"),
    "extraction_strength": ("extraction strength", "extraction"),
    "exact_memorisation": ("exact memorisation", "memorisation"),
}
KNOWLEDGE_METRICS = frozenset(METRIC_NAMES) - {"letter_mass", "perplexity", "divergence"}
"""Metrics that say whether a fact is still known; the others describe text."""


@dataclass(frozen=True)
class Change:
    """Pair one metric of one set before and after."""

    set_name: str
    role: str
    before: Metric
    after: Metric
    lost: int
    """Clusters of items (or items) whose value fell."""
    gained: int
    """Clusters of items (or items) whose value rose."""
    level: float
    """1 minus the confidence of the intervals."""

    @property
    def label(self) -> str:
        """Name the metric for people."""
        return METRIC_NAMES.get(self.before.name, (self.before.name, ""))[0]

    @property
    def short_label(self) -> str:
        """Name the metric within a chart."""
        return METRIC_NAMES.get(self.before.name, ("", self.before.name))[1]

    @property
    def difference(self) -> float:
        """Subtract before from after."""
        return self.after.value - self.before.value

    @property
    def relative(self) -> float:
        """Divide the difference by the value before; NaN where that is zero."""
        return float(self.difference / self.before.value) if self.before.value else math.nan

    @property
    def is_paired(self) -> bool:
        """Tell whether enough paired items exist for a sign test."""
        return self.lost + self.gained >= MINIMUM_CLUSTERS

    @property
    def is_clear(self) -> bool:
        """Tell whether the change exceeds noise: a paired sign test, else intervals that do not overlap."""
        if math.isnan(self.difference):
            return False
        if self.is_paired and (self.difference < 0) == (self.lost > self.gained):
            return sign_test(self.lost, self.gained) < self.level
        return self.after.high < self.before.low or self.after.low > self.before.high

    @property
    def is_material(self) -> bool:
        """Tell whether the change is large enough to matter for something that is to be kept."""
        if not math.isfinite(self.difference):
            return True
        if self.before.unit == "share":
            return abs(self.difference) >= MATERIAL_POINTS
        return abs(self.difference) >= MATERIAL_RATIO * max(abs(self.before.value), 1e-12)

    @property
    def is_loss(self) -> bool:
        """Tell whether a metric that should be kept moved to the worse side."""
        higher_is_worse = self.before.name in {"perplexity", "divergence"}
        return math.isnan(self.difference) or (self.difference > 0) == higher_is_worse

    @property
    def was_known(self) -> bool:
        """Tell whether the original model was above guessing."""
        return self.before.low > (self.before.chance or 0.0)

    @property
    def is_at_chance(self) -> bool:
        """Tell whether next to nothing is left of the skill above guessing.

        The interval must reach down to a tenth of that skill, and the value to a quarter.
        """
        floor = self.before.chance or 0.0
        skill = self.before.value - floor
        return self.after.low <= floor + 0.1 * skill and self.after.value <= floor + 0.25 * skill

    @property
    def is_below_chance(self) -> bool:
        """Tell whether right answers became rarer than by guessing."""
        return self.before.chance is not None and self.after.high < self.before.chance


def sign_test(lost: int, gained: int) -> float:
    """Return the two-sided exact probability of a split at least this uneven when both are equally likely."""
    total, smaller = lost + gained, min(lost, gained)
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, count) for count in range(smaller + 1))
    return min(1.0, 2 * tail / (1 << total))


def changes(before: EvaluationResult, after: EvaluationResult, confidence: float) -> list[Change]:
    """Pair all metrics that both evaluations hold."""
    earlier = {result.name: result for result in before.sets}
    later = {result.name: result for result in after.sets}
    compared = []
    for row in comparison_rows(before, after):
        name, metric = row["set"], row["before"]
        lost, gained = _moved_clusters(earlier[name], later[name], metric.name)
        compared.append(Change(name, row["role"], metric, row["after"], lost, gained, 1 - confidence))
    return compared


def _moved_clusters(before: SetResult, after: SetResult, metric: str) -> tuple[int, int]:
    """Count clusters with a lower and with a higher mean, over items that both evaluations scored."""
    later = {item.id: item.value for item in after.items if item.metric == metric}
    differences: dict[str, list[float]] = defaultdict(list)
    for item in before.items:
        if item.metric == metric and item.id in later:
            differences[item.cluster or item.id].append(later[item.id] - item.value)
    means = [sum(values) / len(values) for values in differences.values()]
    return sum(mean < -1e-12 for mean in means), sum(mean > 1e-12 for mean in means)
