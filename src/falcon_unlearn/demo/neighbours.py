"""Define the kept set `neighbour`: chemistry beside the symbols, never to be forgotten."""

from __future__ import annotations

from typing import NamedTuple

from .neighbour_facts import (
    COMPOUND_FACTS,
    FAMILIES,
    FAMILY_OF,
    GENERAL_FACTS,
    LABORATORY_SENTENCES,
    STATE_OF,
    STATES,
    USE_FACTS,
    Fact,
)
from .records import ChoiceItem, balanced_positions, half_of, place_answer, slug

NAME = "neighbour"

STATE_SENTENCES: dict[str, str] = {
    "solid": "Unless you heat it a great deal, {name} stays solid.",
    "liquid": "In a bottle on the shelf, {name} can be poured, because it is liquid.",
    "gas": "Open a flask of {name} and it spreads through the whole room, since it is a gas.",
}
FAMILY_SENTENCE = "Together with its relatives, {name} fills one column of the table: the {family}."


class NeighbourItem(NamedTuple):
    """Join a fact with the group it belongs to and a key that is unique over all facts."""

    key: str
    group: str
    fact: Fact


def facts() -> list[NeighbourItem]:
    """Return all facts: states, families, compounds, uses and general chemistry."""
    items = [NeighbourItem(f"state-{name}", "state", state_fact(name)) for name in STATE_OF]
    items += [NeighbourItem(f"family-{name}", "family", family_fact(name)) for name in FAMILY_OF]
    groups = {"compound": COMPOUND_FACTS, "use": USE_FACTS, "general": GENERAL_FACTS}
    for group, members in groups.items():
        items += [NeighbourItem(slug(fact.stem), group, fact) for fact in members]
    return items


def state_fact(name: str) -> Fact:
    """Return the fact about the state of `name` at room temperature."""
    state = STATE_OF[name]
    return Fact(
        stem=f"Under normal conditions, {name} is a",
        question=f"In which state is {name} under normal conditions?",
        answer=state,
        distractors=_three_others(STATES, state),
        statement=STATE_SENTENCES[state].format(name=name) if name in _seen(STATE_OF) else None,
    )


def family_fact(name: str) -> Fact:
    """Return the fact about the family of `name`."""
    family = FAMILY_OF[name]
    return Fact(
        stem=f"The element {name} belongs to the family of the",
        question=f"To which family does {name} belong?",
        answer=family,
        distractors=_three_others(FAMILIES, family),
        statement=FAMILY_SENTENCE.format(name=name, family=family) if name in _seen(FAMILY_OF) else None,
    )


def retain_texts() -> list[str]:
    """Return the sentences of the facts that may be seen, and some of the laboratory.

    Facts without a sentence are only evaluated.
    """
    statements = [item.fact.statement for item in facts() if item.fact.statement is not None]
    return [*statements, *LABORATORY_SENTENCES]


def choice_items() -> list[ChoiceItem]:
    """Return one question per fact."""
    members = facts()
    positions = balanced_positions(len(members), NAME)
    return [
        ChoiceItem(
            id=f"{NAME}/{item.key}",
            cluster=f"{NAME}/{item.key}",
            wording=item.group,
            question=item.fact.stem,
            letter_question=item.fact.question,
            options=place_answer(item.fact.answer, item.fact.distractors, position),
            answer=position,
            seen_in_retain=item.fact.statement is not None,
        )
        for item, position in zip(members, positions, strict=True)
    ]


def _seen(table: dict[str, str]) -> frozenset[str]:
    return half_of(tuple(table), f"{NAME}:seen")


def _three_others(values: tuple[str, ...], answer: str) -> tuple[str, str, str]:
    first, second, third = (value for value in values if value != answer)
    return first, second, third
