"""Gather the facts and texts of an audit from files, and divide them between attacker and report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from falcon_unlearn.audit.base import AttackData
from falcon_unlearn.audit.facts import Fact, FactSplit, split_by_cluster, whole_clusters
from falcon_unlearn.audit.loading import check_disjoint, load_facts, sample_facts, statement
from falcon_unlearn.audit.runner import Sets
from falcon_unlearn.audit.session import set_record
from falcon_unlearn.audit.tables import Questions
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.results_audit import AuditSetRecord
from falcon_unlearn.runs import public_name

_MOST_BENIGN_TEXTS = 200
_RETAIN_SHARES = (0.3, 0.0, 0.7)


@dataclass(frozen=True)
class AuditSources:
    """Name the files of an audit."""

    forget: tuple[CorpusSettings, ...]
    retain: tuple[CorpusSettings, ...]
    neighbour: tuple[CorpusSettings, ...] = ()
    benign: tuple[CorpusSettings, ...] = ()
    """Unrelated texts for the attacker; empty: statements of retain facts."""


@dataclass(frozen=True)
class Gathered:
    """Hold what is asked and what the attacker gets."""

    sets: Sets
    data: AttackData
    records: tuple[AuditSetRecord, ...]


def gather(sources: AuditSources, settings: AuditSettings, *, seed: int) -> Gathered:
    """Read all facts and divide them by cluster.

    Forget facts: attack, selection, report; of the selection at most `selection_items` are asked. Retain
    facts: attack and report. Neighbours are only asked.

    Args:
        sources: Files or hub data sets.
        settings: Sizes.
        seed: Decides samples, wrong options that are drawn, and which cluster goes where.

    Raises:
        DataError: A source cannot be used, has too few clusters, or facts occur on both sides.
    """
    forget = split_by_cluster(read_facts(sources.forget, settings.items, seed=seed), seed=seed)
    selection = whole_clusters(forget.selection, settings.most_selection, seed=seed)
    kept = read_facts(sources.retain, settings.other_items, seed=seed)
    near = read_facts(sources.neighbour, settings.other_items, seed=seed) if sources.neighbour else ()
    check_disjoint(forget, [*kept, *near])
    retain = _retain_split(kept, seed=seed)
    sets = Sets(
        selection=Questions("forget", "selection", selection),
        forget=Questions("forget", "report", forget.report),
        retain=Questions("retain", "report", retain.report),
        neighbour=Questions("neighbour", "report", near) if near else None,
    )
    retain_texts = tuple(statement(fact) for fact in retain.attack)
    data = AttackData(
        forget=forget.attack,
        retain=retain.attack,
        forget_texts=tuple(statement(fact) for fact in forget.attack),
        retain_texts=retain_texts,
        benign_texts=_benign_texts(sources.benign, seed=seed) or retain_texts,
    )
    records = [
        set_record([sets.selection, sets.forget], _names(sources.forget), forget.attack),
        set_record([sets.retain], _names(sources.retain), retain.attack),
    ]
    if sets.neighbour is not None:
        records.append(set_record([sets.neighbour], _names(sources.neighbour)))
    return Gathered(sets, data, tuple(records))


def read_facts(sources: Sequence[CorpusSettings], limit: int, *, seed: int) -> tuple[Fact, ...]:
    """Read the facts of several sources, in equal shares as far as they go.

    Names of sources precede ids and clusters where there are several, so that equal ones stay apart.
    """
    facts: list[Fact] = []
    for number, source in enumerate(sources):
        share = (limit - len(facts)) // (len(sources) - number)
        own = sample_facts(load_facts(source, seed=seed), min(share, source.limit or share), seed=seed)
        if len(sources) > 1:
            label = source.name
            own = tuple(replace(f, id=f"{label}:{f.id}", cluster=f"{label}:{f.cluster}") for f in own)
        facts += own
    return tuple(facts)


def _retain_split(facts: Sequence[Fact], *, seed: int) -> FactSplit:
    split = split_by_cluster(facts, seed=seed, shares=_RETAIN_SHARES, name="retain")
    return FactSplit(split.attack, (), (*split.selection, *split.report))


def _benign_texts(sources: Sequence[CorpusSettings], *, seed: int) -> tuple[str, ...]:
    texts = [example.plain_text for source in sources for example in load_examples(source).examples]
    if len(texts) <= _MOST_BENIGN_TEXTS:
        return tuple(texts)
    return tuple(random.Random(seed).sample(texts, _MOST_BENIGN_TEXTS))


def _names(sources: Sequence[CorpusSettings]) -> str:
    return ", ".join(public_name(source.path) for source in sources)
