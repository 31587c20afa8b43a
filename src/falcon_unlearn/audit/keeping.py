"""Keep scores and finished attacks in a journal, under keys that change with everything they depend on."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from falcon_unlearn.audit import scoring
from falcon_unlearn.audit.base import Attack, Format
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.scoring import Score, ScoringSettings
from falcon_unlearn.runs import Journal, fingerprint

_MORE = "more"
"""Records that were kept together with another one, by their keys."""


class Memory:
    """Remember pieces of work; without a journal, for this process only."""

    def __init__(self, journal: Journal | None) -> None:
        """Read what an earlier process left."""
        self._journal = journal
        self._records: dict[str, dict[str, Any]] = {}
        for key, record in journal.read().items() if journal is not None else ():
            self._remember(key, record)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key."""
        return self._records.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record."""
        if self._journal is not None:
            self._journal.append(key, record)
        self._remember(key, record)

    def _remember(self, key: str, record: dict[str, Any]) -> None:
        self._records[key] = record
        self._records.update(record.get(_MORE, {}))

    def scores(self, key: str) -> list[Score]:
        """Return the scores kept under a key."""
        rows = self._records[key]["scores"]
        return [Score(**{**row, "leaks": tuple(tuple(leak) for leak in row["leaks"])}) for row in rows]

    def put_scores(self, scores: Mapping[str, Sequence[Score]]) -> None:
        """Keep scores that were computed together in one record: a crash leaves all of them or none."""
        rows = {key: [dataclasses.asdict(entry) for entry in several] for key, several in scores.items()}
        (first, own), *more = rows.items()
        record = {"scores": own, _MORE: {key: {"scores": several} for key, several in more}}
        # What is read in this process is what a later one reads.
        self.put(first, json.loads(json.dumps(record)))


def attack_key(attack: Attack) -> str:
    """Hash an attack's settings and the code of its module."""
    settings = dataclasses.asdict(attack) if dataclasses.is_dataclass(attack) else vars(attack)
    module = inspect.getmodule(type(attack))
    return fingerprint(
        name=attack.name,
        settings=json.loads(json.dumps(settings, default=str)),
        code=inspect.getsource(module) if module is not None else "",
    )


def facts_key(facts: Sequence[Fact]) -> str:
    """Hash what is asked and in which order."""
    return fingerprint(
        facts=[
            [
                fact.id,
                fact.cluster,
                fact.question,
                fact.letter_question,
                fact.is_question,
                *fact.options,
                *fact.paraphrases,
                *(pattern.pattern for pattern in (*fact.accept, *fact.reject)),
            ]
            for fact in facts
        ]
    )


def scoring_key(settings: ScoringSettings, formats: Sequence[Format]) -> str:
    """Hash how facts are asked and the code that scores them."""
    return fingerprint(
        settings=dataclasses.asdict(settings), formats=list(formats), code=inspect.getsource(scoring)
    )
