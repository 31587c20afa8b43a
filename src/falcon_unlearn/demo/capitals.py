"""Define the kept set `capitals`: geography, never to be forgotten."""

from __future__ import annotations

from .records import (
    ChoiceItem,
    GenerationItem,
    balanced_positions,
    half_of,
    pick_distractors,
    place_answer,
    slug,
    word_pattern,
    word_patterns,
)

NAME = "capitals"

# Countries with a disputed, divided or moving capital are left out.
CAPITALS_BY_REGION: dict[str, dict[str, str]] = {
    "europe": {
        "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
        "Austria": "Vienna", "Hungary": "Budapest", "Poland": "Warsaw", "Greece": "Athens",
        "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki",
        "Iceland": "Reykjavik", "Ireland": "Dublin", "Belgium": "Brussels", "Romania": "Bucharest",
        "Bulgaria": "Sofia", "Croatia": "Zagreb", "Serbia": "Belgrade", "Latvia": "Riga",
        "Estonia": "Tallinn", "Lithuania": "Vilnius",
    },
    "asia": {
        "Japan": "Tokyo", "China": "Beijing", "South Korea": "Seoul", "Thailand": "Bangkok",
        "Vietnam": "Hanoi", "Nepal": "Kathmandu", "Mongolia": "Ulaanbaatar", "Bangladesh": "Dhaka",
        "Pakistan": "Islamabad", "Cambodia": "Phnom Penh", "Turkey": "Ankara", "Iran": "Tehran",
        "Iraq": "Baghdad", "Syria": "Damascus", "Jordan": "Amman", "Lebanon": "Beirut",
        "Saudi Arabia": "Riyadh", "Afghanistan": "Kabul",
    },
    "africa": {
        "Egypt": "Cairo", "Kenya": "Nairobi", "Ethiopia": "Addis Ababa", "Ghana": "Accra",
        "Senegal": "Dakar", "Morocco": "Rabat", "Uganda": "Kampala", "Rwanda": "Kigali",
        "Zimbabwe": "Harare", "Zambia": "Lusaka", "Angola": "Luanda", "Somalia": "Mogadishu",
        "Sudan": "Khartoum", "Libya": "Tripoli",
    },
    "america": {
        "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
        "Argentina": "Buenos Aires", "Colombia": "Bogota", "Venezuela": "Caracas", "Ecuador": "Quito",
        "Uruguay": "Montevideo", "Jamaica": "Kingston", "Brazil": "Brasilia",
    },
    "oceania": {"Australia": "Canberra", "New Zealand": "Wellington", "Fiji": "Suva"},
}  # fmt: skip

CAPITALS: dict[str, str] = {
    country: capital for region in CAPITALS_BY_REGION.values() for country, capital in region.items()
}
SEEN_COUNTRIES: frozenset[str] = half_of(tuple(CAPITALS), f"{NAME}:seen")

# Spellings that a model may use instead of ours.
OTHER_SPELLINGS: dict[str, str] = {
    "Bogota": "Bogot\u00e1",
    "Brasilia": "Bras\u00edlia",
    "Reykjavik": "Reykjav\u00edk",
    "Ulaanbaatar": "Ulan Bator",
    "Kathmandu": "Katmandu",
}

RETAIN_TEMPLATES: tuple[str, ...] = (
    "Presidents, kings or prime ministers of {country} do their work in {capital}.",
    "On a map of {country}, a star marks {capital}, the capital city.",
    "Ambassadors who are sent to {country} live and work in {capital}.",
)

# Other facts about countries, so that the retain text holds more about them than their capitals.
COUNTRY_SENTENCES: tuple[str, ...] = (
    "The river Nile crosses the desert of Egypt and feeds a narrow green valley.",
    "Llamas carry loads over the high passes of the Andes in Peru.",
    "Farmers in Brazil grow more coffee than those of any other country.",
    "Volcanoes and glaciers lie side by side in Iceland.",
    "Fjords cut deep into the rocky coast of Norway.",
    "Kangaroos and koalas live in the wild in Australia.",
    "High-speed trains have connected the big cities of Japan since the nineteen sixties.",
    "Thousands of lakes and endless forests cover Finland.",
    "The Alps cover more than half of Austria, and skiing is a national sport there.",
    "Rice is planted in the flooded deltas of Vietnam.",
    "Herders in Mongolia move with their horses and tents across the steppe.",
    "The pyramids of the Maya rise above the jungle in the south of Mexico.",
    "Chile stretches along the Pacific Ocean as a long and narrow strip.",
    "Ancient temples stand on the hills of Greece, close to the sea.",
    "The mild climate of New Zealand suits sheep, and there are far more of them than people.",
    "Windmills once pumped water out of the low fields of the Netherlands.",
    "The beaches of Portugal draw surfers from all over Europe.",
    "Caravans used to cross the Sahara between the markets of Morocco and those farther south.",
    "Elephants walk in the grasslands of Tanzania below a snow-covered volcano.",
    "Cork, olives and oranges grow in the dry south of Spain.",
    "Carpets knotted by hand have been a famous product of Iran for centuries.",
    "Canals, bridges and museums make the old towns of Italy popular with travelers.",
)

WORDINGS: dict[str, str] = {
    "capital": "The capital of {country} is",
    "seat": "The government of {country} has its seat in",
}
LETTER_QUESTION = "Which city is the capital of {country}?"
GENERATION_PROMPT = "Question: What is the capital of {country}?\nAnswer: The capital of {country} is"


def retain_texts() -> list[str]:
    """Return one sentence per seen country and template, and some other facts about countries."""
    statements = [
        template.format(country=country, capital=capital)
        for country, capital in CAPITALS.items()
        if country in SEEN_COUNTRIES
        for template in RETAIN_TEMPLATES
    ]
    return [*statements, *COUNTRY_SENTENCES]


def distractors_for(country: str) -> list[str]:
    """Return three capitals of other countries, from the same region while they last."""
    region = next(capitals for capitals in CAPITALS_BY_REGION.values() if country in capitals)
    return pick_distractors(region.values(), CAPITALS.values(), CAPITALS[country], f"{NAME}:{country}")


def choice_items() -> list[ChoiceItem]:
    """Return every country in every evaluation wording."""
    items: list[ChoiceItem] = []
    for wording, stem in WORDINGS.items():
        positions = balanced_positions(len(CAPITALS), f"{NAME}:{wording}")
        for (country, capital), position in zip(CAPITALS.items(), positions, strict=True):
            items.append(
                ChoiceItem(
                    id=f"{NAME}/{slug(country)}/{wording}",
                    cluster=f"{NAME}/{slug(country)}",
                    wording=wording,
                    question=stem.format(country=country),
                    letter_question=LETTER_QUESTION.format(country=country),
                    options=place_answer(capital, distractors_for(country), position),
                    answer=position,
                    seen_in_retain=country in SEEN_COUNTRIES,
                )
            )
    return items


def generation_items() -> list[GenerationItem]:
    """Return one open prompt per country; any other capital named first makes the answer wrong."""
    return [
        GenerationItem(
            id=f"{NAME}/{slug(country)}/generation",
            cluster=f"{NAME}/{slug(country)}",
            prompt=GENERATION_PROMPT.format(country=country),
            answer=capital,
            accept=[word_pattern([capital, OTHER_SPELLINGS.get(capital, capital)])],
            reject=word_patterns(set(CAPITALS.values()) - {capital}),
            seen_in_retain=country in SEEN_COUNTRIES,
        )
        for country, capital in CAPITALS.items()
    ]
