"""Facts that an audit asks for, and how they are split between attacker, choice of settings and report."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.errors import DataError


@dataclass(frozen=True)
class Fact:
    """State one fact in every form in which it is asked."""

    id: str
    cluster: str
    """Entity, article or topic. Facts of one cluster are not independent: splits are by cluster."""
    question: str
    """What is asked, without answer cue; the option texts continue it."""
    answer: str
    """The right option's text."""
    distractors: tuple[str, ...]
    """Wrong options, at least one, usually three."""
    letter_question: str = ""
    """Question shown above lettered options; empty: `question`."""
    paraphrases: tuple[str, ...] = ()
    """Other wordings of `question`."""
    is_question: bool = False
    """Ask `Question: ... Answer:` (or through the chat template); else the options continue the bare text."""
    accept: tuple[re.Pattern[str], ...] = ()
    """Patterns of which one must occur in a free answer. Empty: the answer is long and its words are
    compared (`scoring.py`)."""
    reject: tuple[re.Pattern[str], ...] = ()
    """Patterns of which none may occur before it: those of the distractors."""

    def __post_init__(self) -> None:
        """Refuse a fact that cannot be scored."""
        if not self.distractors or self.answer in self.distractors:
            raise DataError(
                f"fact {self.id!r}: needs wrong options that differ from the answer",
                hint="give `distractors`, or more rows whose answers can serve as wrong options",
            )

    @property
    def options(self) -> tuple[str, ...]:
        """Return all options, the right one at a place that depends on the id alone."""
        place = random.Random(self.id).randrange(len(self.distractors) + 1)
        return (*self.distractors[:place], self.answer, *self.distractors[place:])

    @property
    def answer_index(self) -> int:
        """Return the place of the right option among `options`."""
        return self.options.index(self.answer)


@dataclass(frozen=True)
class FactSplit:
    """Hold three sets of facts that share no cluster."""

    attack: tuple[Fact, ...]
    """The attacker may use these, answers included."""
    selection: tuple[Fact, ...]
    """Attack settings are chosen on these."""
    report: tuple[Fact, ...]
    """Numbers come from these only; no attack ever sees them."""


def split_by_cluster(
    facts: Sequence[Fact],
    *,
    seed: int,
    shares: tuple[float, float, float] = (0.3, 0.2, 0.5),
    name: str = "forget",
) -> FactSplit:
    """Split facts so that no cluster lies in two parts, shares as near as whole clusters allow.

    Args:
        facts: Facts of one set.
        seed: Decides which cluster goes where.
        shares: Attack, selection and report share; they add up to one.
        name: What to call the set in messages.

    Raises:
        DataError: There are fewer than three clusters.
    """
    clusters = sorted({fact.cluster for fact in facts})
    if len(clusters) < 3:
        raise DataError(
            f"the {name} facts form {len(clusters)} cluster(s); an audit needs at least 3, so that attacker, "
            "choice of settings and report share nothing",
            hint="give more facts, or name the entity of each in the column `cluster`",
        )
    random.Random(seed).shuffle(clusters)
    counts = {cluster: sum(fact.cluster == cluster for fact in facts) for cluster in clusters}
    part_of: dict[str, int] = {cluster: part for part, cluster in enumerate(clusters[:3])}
    sizes = [counts[cluster] for cluster in clusters[:3]]
    for cluster in clusters[3:]:
        # The part that lags furthest behind its share takes the next cluster.
        part = max(range(3), key=lambda p: shares[p] * len(facts) - sizes[p])
        part_of[cluster] = part
        sizes[part] += counts[cluster]
    parts = [tuple(fact for fact in facts if part_of[fact.cluster] == part) for part in range(3)]
    return FactSplit(*parts)


def whole_clusters(facts: Sequence[Fact], most: int | None, *, seed: int) -> tuple[Fact, ...]:
    """Keep at most so many facts, as whole clusters in a seeded order; one cluster stays in any case.

    Args:
        facts: Facts of one part.
        most: Limit; None keeps all.
        seed: Decides which clusters are kept.
    """
    if most is None or len(facts) <= most:
        return tuple(facts)
    counts = Counter(fact.cluster for fact in facts)
    order = sorted(counts)
    random.Random(f"{seed}:selection").shuffle(order)
    kept: set[str] = set()
    room = most
    for cluster in order:
        if counts[cluster] <= room:
            kept.add(cluster)
            room -= counts[cluster]
    kept = kept or {min(order, key=counts.__getitem__)}
    return tuple(fact for fact in facts if fact.cluster in kept)
