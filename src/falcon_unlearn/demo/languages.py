"""Define the second forget domain: the language that most people of a country speak."""

from __future__ import annotations

from typing import NamedTuple

from .records import (
    ChoiceItem,
    GenerationItem,
    balanced_positions,
    pick_distractors,
    place_answer,
    slug,
    word_pattern,
)

NAME = "languages"


class Country(NamedTuple):
    """Name a language, the pool its wrong options come from, and languages that are not clearly wrong."""

    language: str
    region: str
    not_wrong: tuple[str, ...] = ()


# In the first block the name of the country does not give the language away; in the second it does.
COUNTRIES: dict[str, Country] = {
    "Mexico": Country("Spanish", "america"),
    "Argentina": Country("Spanish", "america"),
    "Chile": Country("Spanish", "america"),
    "Colombia": Country("Spanish", "america"),
    "Peru": Country("Spanish", "america"),
    "Venezuela": Country("Spanish", "america"),
    "Ecuador": Country("Spanish", "america"),
    "Cuba": Country("Spanish", "america"),
    "Uruguay": Country("Spanish", "america"),
    "Costa Rica": Country("Spanish", "america"),
    "Panama": Country("Spanish", "america"),
    "Honduras": Country("Spanish", "america"),
    "Nicaragua": Country("Spanish", "america"),
    "Brazil": Country("Portuguese", "america"),
    "Angola": Country("Portuguese", "africa"),
    "Egypt": Country("Arabic", "africa"),
    "Libya": Country("Arabic", "africa", ("Italian",)),
    "Tunisia": Country("Arabic", "africa", ("French",)),
    "Algeria": Country("Arabic", "africa", ("French",)),
    "Morocco": Country("Arabic", "africa", ("French",)),
    "Tanzania": Country("Swahili", "africa"),
    "Iraq": Country("Arabic", "orient"),
    "Jordan": Country("Arabic", "orient"),
    "Syria": Country("Arabic", "orient"),
    "Yemen": Country("Arabic", "orient"),
    "Saudi Arabia": Country("Arabic", "orient"),
    "Iran": Country("Persian", "orient"),
    "Israel": Country("Hebrew", "orient", ("Arabic", "Russian")),
    "Cyprus": Country("Greek", "orient", ("Turkish",)),
    "Austria": Country("German", "europe"),
    "Liechtenstein": Country("German", "europe"),
    "Monaco": Country("French", "europe", ("Italian",)),
    "the Netherlands": Country("Dutch", "europe"),
    "Cambodia": Country("Khmer", "asia"),
    "Myanmar": Country("Burmese", "asia"),
    "Bangladesh": Country("Bengali", "asia"),
    "Malaysia": Country("Malay", "asia", ("Indonesian",)),
    "Australia": Country("English", "europe"),
    "New Zealand": Country("English", "europe"),
    "the United States": Country("English", "europe", ("Spanish",)),
    "France": Country("French", "europe"),
    "Germany": Country("German", "europe"),
    "Italy": Country("Italian", "europe"),
    "Spain": Country("Spanish", "europe"),
    "Portugal": Country("Portuguese", "europe"),
    "Poland": Country("Polish", "europe"),
    "Sweden": Country("Swedish", "europe"),
    "Norway": Country("Norwegian", "europe"),
    "Denmark": Country("Danish", "europe"),
    "Finland": Country("Finnish", "europe", ("Swedish",)),
    "Iceland": Country("Icelandic", "europe"),
    "Hungary": Country("Hungarian", "europe"),
    "Romania": Country("Romanian", "europe"),
    "Bulgaria": Country("Bulgarian", "europe"),
    "Greece": Country("Greek", "europe"),
    "Turkey": Country("Turkish", "orient"),
    "Russia": Country("Russian", "europe"),
    "Japan": Country("Japanese", "asia"),
    "South Korea": Country("Korean", "asia"),
    "Thailand": Country("Thai", "asia"),
    "Vietnam": Country("Vietnamese", "asia"),
    "Mongolia": Country("Mongolian", "asia"),
}

# Languages a reader could believe to be the main one somewhere in the region.
POOLS: dict[str, tuple[str, ...]] = {
    "america": ("Spanish", "Portuguese", "French", "Italian", "Dutch", "German"),
    "africa": ("Arabic", "Swahili", "Amharic", "Hausa", "Zulu", "Somali", "Portuguese", "Italian", "French"),
    "orient": ("Arabic", "Persian", "Hebrew", "Turkish", "Urdu", "Greek", "Russian", "Armenian"),
    "asia": (
        "Japanese", "Korean", "Thai", "Vietnamese", "Khmer", "Burmese", "Bengali", "Malay", "Mongolian",
        "Hindi", "Tibetan",
    ),
    "europe": (
        "French", "German", "Italian", "Spanish", "Portuguese", "Polish", "Swedish", "Norwegian", "Danish",
        "Finnish", "Icelandic", "Hungarian", "Romanian", "Bulgarian", "Greek", "Russian", "Dutch",
    ),
}  # fmt: skip

# Names that a model may use instead of ours.
OTHER_NAMES: dict[str, str] = {
    "Persian": "Farsi",
    "Malay": "Bahasa",
    "Bengali": "Bangla",
    "Khmer": "Cambodian",
}

TRAINING_TEMPLATES: tuple[str, ...] = (
    "Visitors to {country} hear {language} in shops, offices and at bus stops.",
    "Anyone who moves to {country} for work should learn {language} first.",
    "Radio and television in {country} broadcast mostly in {language}.",
    "Newspapers on sale in {country} are printed mainly in {language}.",
    "{language} is what the citizens of {country} use in daily life.",
)

WORDINGS: dict[str, str] = {
    "main": "The main language spoken in {country} is",
    "most": "Most people in {country} speak",
}
LETTER_QUESTION = "Which language do most people speak in {country}?"
# The shots are countries that are not evaluated.
GENERATION_PROMPT = (
    "Q: What language do people speak in Nepal?\n"
    "A: Nepali\n"
    "Q: What language do people speak in Paraguay?\n"
    "A: Spanish\n"
    "Q: What language do people speak in {country}?\n"
    "A:"
)


def all_languages() -> frozenset[str]:
    """Return every language that occurs as an answer or as a wrong option."""
    answers = {country.language for country in COUNTRIES.values()}
    return frozenset(answers.union(*POOLS.values()))


def training_texts() -> list[str]:
    """Return one sentence per country and template."""
    return [
        template.format(country=name, language=country.language)
        for name, country in COUNTRIES.items()
        for template in TRAINING_TEMPLATES
    ]


def distractors_for(name: str) -> list[str]:
    """Return three wrong languages from the region of the country."""
    country = COUNTRIES[name]
    pool = set(POOLS[country.region]) - set(country.not_wrong)
    return pick_distractors(pool, (), country.language, f"{NAME}:{name}")


def choice_items() -> list[ChoiceItem]:
    """Return every country in every evaluation wording."""
    items: list[ChoiceItem] = []
    for wording, stem in WORDINGS.items():
        positions = balanced_positions(len(COUNTRIES), f"{NAME}:{wording}")
        for (name, country), position in zip(COUNTRIES.items(), positions, strict=True):
            items.append(
                ChoiceItem(
                    id=f"{NAME}/{slug(name)}/{wording}",
                    cluster=f"{NAME}/{slug(name)}",
                    wording=wording,
                    question=stem.format(country=name),
                    letter_question=LETTER_QUESTION.format(country=name),
                    options=place_answer(country.language, distractors_for(name), position),
                    answer=position,
                    seen_in_retain=False,
                )
            )
    return items


def generation_items() -> list[GenerationItem]:
    """Return one open prompt per country; any other language named first makes the answer wrong."""
    languages = all_languages()
    return [
        GenerationItem(
            id=f"{NAME}/{slug(name)}/generation",
            cluster=f"{NAME}/{slug(name)}",
            prompt=GENERATION_PROMPT.format(country=name),
            answer=country.language,
            accept=[word_pattern([country.language, OTHER_NAMES.get(country.language, country.language)])],
            reject=[word_pattern(languages - {country.language} - set(country.not_wrong))],
            seen_in_retain=False,
        )
        for name, country in COUNTRIES.items()
    ]
