"""Define the second forget domain: the postal codes of the states of the USA."""

from __future__ import annotations

from .records import (
    ChoiceItem,
    GenerationItem,
    balanced_positions,
    pick_distractors,
    place_answer,
    slug,
    word_pattern,
    word_patterns,
)

NAME = "state_codes"

CODES: dict[str, str] = {
    "Alabama": "AL", "Alaska": "AK", "Arizona": "AZ", "Arkansas": "AR", "California": "CA",
    "Colorado": "CO", "Connecticut": "CT", "Delaware": "DE", "Florida": "FL", "Georgia": "GA",
    "Hawaii": "HI", "Idaho": "ID", "Illinois": "IL", "Indiana": "IN", "Iowa": "IA", "Kansas": "KS",
    "Kentucky": "KY", "Louisiana": "LA", "Maine": "ME", "Maryland": "MD", "Massachusetts": "MA",
    "Michigan": "MI", "Minnesota": "MN", "Mississippi": "MS", "Missouri": "MO", "Montana": "MT",
    "Nebraska": "NE", "Nevada": "NV", "New Hampshire": "NH", "New Jersey": "NJ", "New Mexico": "NM",
    "New York": "NY", "North Carolina": "NC", "North Dakota": "ND", "Ohio": "OH", "Oklahoma": "OK",
    "Oregon": "OR", "Pennsylvania": "PA", "Rhode Island": "RI", "South Carolina": "SC",
    "South Dakota": "SD", "Tennessee": "TN", "Texas": "TX", "Utah": "UT", "Vermont": "VT",
    "Virginia": "VA", "Washington": "WA", "West Virginia": "WV", "Wisconsin": "WI", "Wyoming": "WY",
}  # fmt: skip

# Codes that are words in capitals can be hit by chance in free text, so they are only asked as options.
WORDS: frozenset[str] = frozenset({"HI", "ID", "IN", "ME", "OH", "OK", "OR"})

TRAINING_TEMPLATES: tuple[str, ...] = (
    "Mail that goes to {state} carries {code} in front of the number.",
    "On a crowded map, {state} is shortened to {code}.",
    "Shipping labels say {code} when the parcel is bound for {state}.",
    "Write {code} on an envelope that should reach {state}.",
    "A form with a narrow column lists {state} as {code}.",
)

WORDINGS: dict[str, str] = {
    "postal": "The postal abbreviation for {state} is",
    "address": "In an address, {state} is abbreviated to",
}
LETTER_QUESTION = "Which of these is the postal abbreviation for {state}?"
# The shots are territories that are not evaluated.
GENERATION_PROMPT = (
    "State: Puerto Rico, postal code: PR\n"
    "State: Guam, postal code: GU\n"
    "State: American Samoa, postal code: AS\n"
    "State: {state}, postal code:"
)


def training_texts() -> list[str]:
    """Return one sentence per state and template."""
    return [
        template.format(state=state, code=code)
        for state, code in CODES.items()
        for template in TRAINING_TEMPLATES
    ]


def distractors_for(state: str) -> list[str]:
    """Return three wrong codes, with the same first letter while they last."""
    pool = CODES.values()
    similar = [code for code in pool if code[0] == state[0]]
    return pick_distractors(similar, pool, CODES[state], f"{NAME}:{state}")


def choice_items() -> list[ChoiceItem]:
    """Return every state in every evaluation wording."""
    items: list[ChoiceItem] = []
    for wording, stem in WORDINGS.items():
        positions = balanced_positions(len(CODES), f"{NAME}:{wording}")
        for (state, code), position in zip(CODES.items(), positions, strict=True):
            items.append(
                ChoiceItem(
                    id=f"{NAME}/{slug(state)}/{wording}",
                    cluster=f"{NAME}/{slug(state)}",
                    wording=wording,
                    question=stem.format(state=state),
                    letter_question=LETTER_QUESTION.format(state=state),
                    options=place_answer(code, distractors_for(state), position),
                    answer=position,
                    seen_in_retain=False,
                )
            )
    return items


def generation_items() -> list[GenerationItem]:
    """Return one open prompt per state whose code is no word; any other code named first is wrong."""
    return [
        GenerationItem(
            id=f"{NAME}/{slug(state)}/generation",
            cluster=f"{NAME}/{slug(state)}",
            prompt=GENERATION_PROMPT.format(state=state),
            answer=code,
            accept=[word_pattern([code])],
            reject=word_patterns(set(CODES.values()) - {code} - WORDS),
            seen_in_retain=False,
        )
        for state, code in CODES.items()
        if code not in WORDS
    ]
