"""Keep scores and finished attacks in a journal, under keys that change with everything they depend on."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from falcon_unlearn.audit import scoring
from falcon_unlearn.audit.base import Attack, Format
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.scoring import Score, ScoringSettings
from falcon_unlearn.runs import Journal, fingerprint


class Memory:
    """Remember pieces of work; without a journal, for this process only."""

    def __init__(self, journal: Journal | None) -> None:
        """Read what an earlier process left."""
        self._journal = journal
        self._records: dict[str, dict[str, Any]] = journal.read() if journal is not None else {}

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key."""
        return self._records.get(key)

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record."""
        if self._journal is not None:
            self._journal.append(key, record)
        self._records[key] = record

    def scores(self, key: str, compute: Callable[[], Sequence[Score]]) -> list[Score]:
        """Return the scores of a key, computed once."""
        record = self.get(key)
        if record is None:
            record = {"scores": [dataclasses.asdict(entry) for entry in compute()]}
            self.put(key, json.loads(json.dumps(record)))
            record = self._records[key]
        return [
            Score(**{**row, "leaks": tuple(tuple(leak) for leak in row["leaks"])}) for row in record["scores"]
        ]


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
