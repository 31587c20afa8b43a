"""Read facts from files: rows with options, questions with answers, conversations, plain texts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from falcon_unlearn.audit.facts import Fact, FactSplit
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.paths import domain_name
from falcon_unlearn.data.formats import Row, decode_text, parse_json_rows
from falcon_unlearn.data.overlap import normalise
from falcon_unlearn.data.sources import JSON_SUFFIXES, load_examples
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.patterns import answer_pattern
from falcon_unlearn.evaluation.sets import choice_item, row_patterns
from falcon_unlearn.examples import Example

MOST_PATTERN_WORDS = 6
"""Longer answers are not looked for word by word; their words are compared instead."""
NUM_DISTRACTORS = 3
_NEAREST = 12
_CONTINUATION_WORDS = 8
_PREFIX_WORDS = 24
_MOST_CONTINUATIONS = 4


@dataclass(frozen=True)
class _Draft:
    """Hold a fact before wrong options are drawn for it."""

    id: str
    cluster: str
    question: str
    answer: str
    is_question: bool
    distractors: tuple[str, ...] = ()
    letter_question: str = ""
    paraphrases: tuple[str, ...] = ()
    accept: tuple[re.Pattern[str], ...] = ()
    reject: tuple[re.Pattern[str], ...] = ()


def load_facts(source: str | CorpusSettings, *, seed: int, limit: int | None = None) -> tuple[Fact, ...]:
    """Read the facts of a file or hub data set.

    JSON rows have `question` and `answer`, with `distractors` or `options` or neither, and may have
    `paraphrases`, `accept`, `reject`, `cluster`, `letter_question`, `id`. Rows of choice evaluation sets are
    such rows. Prompts with completions and conversations count as questions with answers. Of plain texts the
    next words are asked for. Where wrong options are missing, answers of other clusters serve, those of most
    similar length, by a seeded draw.

    Args:
        source: File or hub data set.
        seed: Decides the wrong options that are drawn, and the sample where there is a limit.
        limit: Keep at most this many facts, drawn cluster by cluster.

    Raises:
        DataError: The source cannot be used; says where.
    """
    settings = (
        CorpusSettings(name=domain_name(source, "facts"), path=source) if isinstance(source, str) else source
    )
    path = Path(settings.path).expanduser()
    is_json = path.is_file() and path.suffix.lower() in JSON_SUFFIXES
    rows = parse_json_rows(decode_text(path.read_bytes(), path.name), path.name) if is_json else []
    if rows and all(_has_options(row.value) for row in rows):
        drafts = [_from_row(row, number) for number, row in enumerate(rows, 1)]
    else:
        examples = load_examples(settings).examples
        drafts = [
            draft for number, example in enumerate(examples, 1) for draft in _from_example(example, number)
        ]
        drafts = _with_columns(drafts, rows)
    return sample_facts(finish_facts(drafts, seed=seed, name=path.name), limit, seed=seed)


def facts_from_examples(examples: Sequence[Example], *, seed: int, name: str) -> tuple[Fact, ...]:
    """Turn examples of a corpus into facts; see `load_facts`."""
    drafts = [draft for number, example in enumerate(examples, 1) for draft in _from_example(example, number)]
    return finish_facts(drafts, seed=seed, name=name)


def finish_facts(drafts: Sequence[_Draft], *, seed: int, name: str) -> tuple[Fact, ...]:
    """Draw missing wrong options and write missing patterns.

    Raises:
        DataError: An id occurs twice, or no wrong options can be found.
    """
    if not drafts:
        raise DataError(f"{name}: no fact can be made of its rows", hint="give questions with answers")
    seen: set[str] = set()
    for draft in drafts:
        if draft.id in seen:
            raise DataError(f"{name}: the id {draft.id!r} occurs twice", hint="give every row its own id")
        seen.add(draft.id)
    return tuple(_finished(draft, drafts, seed) for draft in drafts)


def sample_facts(facts: Sequence[Fact], limit: int | None, *, seed: int) -> tuple[Fact, ...]:
    """Keep at most `limit` facts, as many clusters as possible: one of each in turn, in a seeded order."""
    if limit is None or len(facts) <= limit:
        return tuple(facts)
    draw = random.Random(seed)
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.cluster, []).append(fact)
    queues = [draw.sample(groups[cluster], len(groups[cluster])) for cluster in sorted(groups)]
    draw.shuffle(queues)
    chosen: set[str] = set()
    while len(chosen) < limit:
        for queue in queues:
            if queue and len(chosen) < limit:
                chosen.add(queue.pop().id)
    return tuple(fact for fact in facts if fact.id in chosen)


def check_disjoint(split: FactSplit, others: Sequence[Fact] = ()) -> None:
    """Refuse facts that are known to the attacker and asked in the report, or both to forget and to keep.

    Args:
        split: The forget facts.
        others: Facts to keep.

    Raises:
        DataError: One question with one answer occurs on both sides.
    """
    report = {_content(fact): fact for fact in split.report}
    for fact in (*split.attack, *split.selection):
        if (twin := report.get(_content(fact))) is not None:
            raise DataError(
                f"the facts {fact.id!r} and {twin.id!r} are the same, but lie in different clusters, so one "
                "would be known to the attacker and the other be asked in the report",
                hint="give both the same `cluster`, or remove one",
            )
    forget = {_content(fact): fact for part in (split.attack, split.selection, split.report) for fact in part}
    for fact in others:
        if (twin := forget.get(_content(fact))) is not None:
            raise DataError(
                f"the fact {twin.id!r} is to be forgotten and, as {fact.id!r}, to be kept",
                hint="remove it from one of the two files",
            )


def statement(fact: Fact) -> str:
    """Return a text that states the fact, as training text has it."""
    if fact.is_question:
        return f"Question: {fact.question}\nAnswer: {fact.answer}"
    return f"{fact.question} {fact.answer}"


def _content(fact: Fact) -> tuple[str, str]:
    return normalise(fact.question), normalise(fact.answer)


def _has_options(value: object) -> bool:
    return (
        isinstance(value, Mapping) and "question" in value and ("options" in value or "distractors" in value)
    )


def _from_row(row: Row, number: int) -> _Draft:
    value = dict(row.value) if isinstance(row.value, Mapping) else {}
    asks = "options" not in value
    if "options" not in value:
        value["options"] = [value.get("answer"), *_strings(value, "distractors", row.place)]
    item = choice_item(value, number, row.place)
    answer = item.options[item.answer]
    return _Draft(
        id=item.id,
        cluster=item.cluster or item.id,
        question=item.question,
        answer=answer,
        is_question=asks and item.question.endswith("?"),
        distractors=tuple(option for option in item.options if option != answer),
        letter_question=item.letter_question,
        paraphrases=_strings(value, "paraphrases", row.place),
        accept=row_patterns(value, "accept", row.place),
        reject=row_patterns(value, "reject", row.place),
    )


def _from_example(example: Example, number: int) -> list[_Draft]:
    identity = f"item-{number}"
    if example.text is not None:
        return _continuations(example.text, identity)
    if example.messages is None:
        question, answer = str(example.prompt), str(example.completion)
    else:
        turns = example.messages
        last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
        asked = [turn.content for turn in turns[:last] if turn.role == "user"]
        if not asked:
            return []
        question, answer = asked[-1], turns[last].content
    if not question.strip() or not answer.strip():
        return []
    is_question = example.is_question or example.messages is not None
    return [_Draft(identity, identity, question.strip(), answer.strip(), is_question)]


def _continuations(text: str, identity: str) -> list[_Draft]:
    """Cut a text into prefixes with the words that follow; all of one text are one cluster."""
    words = text.split()
    step = _PREFIX_WORDS + _CONTINUATION_WORDS
    if len(words) < 2 * _CONTINUATION_WORDS:
        return []
    starts = range(0, max(1, len(words) - step + 1), step)[:_MOST_CONTINUATIONS]
    drafts = []
    for place, start in enumerate(starts):
        piece = words[start : start + step]
        prefix, answer = piece[:-_CONTINUATION_WORDS], piece[-_CONTINUATION_WORDS:]
        drafts.append(
            _Draft(f"{identity}-{place}", identity, " ".join(prefix), " ".join(answer), is_question=False)
        )
    return drafts


def _with_columns(drafts: Sequence[_Draft], rows: Sequence[Row]) -> list[_Draft]:
    """Add id, cluster, paraphrases and patterns of the rows from which the drafts were made."""
    extended = []
    for draft in drafts:
        row = rows[int(draft.id.split("-")[1]) - 1] if rows else None
        if row is None or not isinstance(row.value, Mapping):
            extended.append(draft)
            continue
        value: dict[str, Any] = dict(row.value)
        suffix = draft.id.partition("-")[2].partition("-")[2]
        identity = str(value["id"]) + (f"-{suffix}" if suffix else "") if "id" in value else draft.id
        extended.append(
            replace(
                draft,
                id=identity,
                cluster=str(value.get("cluster") or draft.cluster),
                paraphrases=_strings(value, "paraphrases", row.place),
                accept=row_patterns(value, "accept", row.place),
                reject=row_patterns(value, "reject", row.place),
            )
        )
    return extended


def _finished(draft: _Draft, drafts: Sequence[_Draft], seed: int) -> Fact:
    distractors = draft.distractors or _draw_distractors(draft, drafts, seed)
    short = len(draft.answer.split()) <= MOST_PATTERN_WORDS
    accept, reject = draft.accept, draft.reject
    if not accept and short:
        accept = (answer_pattern(draft.answer),)
        reject = reject or tuple(answer_pattern(option) for option in distractors)
    return Fact(
        id=draft.id,
        cluster=draft.cluster,
        question=draft.question,
        answer=draft.answer,
        distractors=distractors,
        letter_question=draft.letter_question,
        paraphrases=draft.paraphrases,
        is_question=draft.is_question,
        accept=accept,
        reject=reject,
    )


def _draw_distractors(draft: _Draft, drafts: Iterable[_Draft], seed: int) -> tuple[str, ...]:
    answers = {normalise(other.answer): other.answer for other in drafts if other.cluster != draft.cluster}
    answers.pop(normalise(draft.answer), None)
    length = len(draft.answer)
    ranked = sorted(answers.values(), key=lambda answer: (abs(len(answer) - length), answer))
    nearest = ranked[:_NEAREST]
    return tuple(random.Random(f"{seed}:{draft.id}").sample(nearest, min(NUM_DISTRACTORS, len(nearest))))


def _strings(value: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, str) and entry.strip() for entry in found):
        raise DataError(f"{where}: {name} must be a list of texts, got {found!r}")
    return tuple(entry.strip() for entry in found)
