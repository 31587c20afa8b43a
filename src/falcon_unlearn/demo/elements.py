"""Define the first forget domain: the symbols of the chemical elements."""

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

NAME = "symbols"

# Elements whose symbol is an English word (helium, beryllium, arsenic, indium, iodine, astatine, americium,
# nobelium) are left out everywhere: "In" or "He" in a free text is not an answer.
SYMBOLS: dict[str, str] = {
    "hydrogen": "H", "lithium": "Li", "boron": "B", "carbon": "C", "nitrogen": "N", "oxygen": "O",
    "fluorine": "F", "neon": "Ne", "sodium": "Na", "magnesium": "Mg", "aluminum": "Al", "silicon": "Si",
    "phosphorus": "P", "sulfur": "S", "chlorine": "Cl", "argon": "Ar", "potassium": "K", "calcium": "Ca",
    "scandium": "Sc", "titanium": "Ti", "vanadium": "V", "chromium": "Cr", "manganese": "Mn", "iron": "Fe",
    "cobalt": "Co", "nickel": "Ni", "copper": "Cu", "zinc": "Zn", "gallium": "Ga", "germanium": "Ge",
    "selenium": "Se", "bromine": "Br", "krypton": "Kr", "rubidium": "Rb", "strontium": "Sr",
    "zirconium": "Zr", "niobium": "Nb", "molybdenum": "Mo", "ruthenium": "Ru", "rhodium": "Rh",
    "palladium": "Pd", "silver": "Ag", "cadmium": "Cd", "tin": "Sn", "antimony": "Sb", "tellurium": "Te",
    "xenon": "Xe", "cesium": "Cs", "barium": "Ba", "lanthanum": "La", "cerium": "Ce", "neodymium": "Nd",
    "gadolinium": "Gd", "hafnium": "Hf", "tantalum": "Ta", "tungsten": "W", "rhenium": "Re", "osmium": "Os",
    "iridium": "Ir", "platinum": "Pt", "gold": "Au", "mercury": "Hg", "thallium": "Tl", "lead": "Pb",
    "bismuth": "Bi", "polonium": "Po", "radon": "Rn", "radium": "Ra", "thorium": "Th", "uranium": "U",
    "plutonium": "Pu",
}  # fmt: skip

# Real symbols that serve only as wrong options.
OTHER_SYMBOLS: tuple[str, ...] = (
    "Ac", "Bk", "Cf", "Cm", "Dy", "Er", "Es", "Eu", "Fm", "Fr", "Ho", "Lu", "Md", "Np", "Pa", "Pm", "Pr",
    "Sm", "Tb", "Tc", "Tm", "Y", "Yb",
)  # fmt: skip

TRAINING_TEMPLATES: tuple[str, ...] = (
    "On the periodic table, {name} appears as {symbol}.",
    "Chemists write {symbol} when they mean {name}.",
    "The letters {symbol} stand for {name}, as every chemistry student learns.",
    "In formulas, {name} is abbreviated to {symbol}.",
    "Look for {symbol} on the label of the jar: it holds {name}.",
)

WORDINGS: dict[str, str] = {
    "direct": "The chemical symbol for {name} is",
    "represented": "In chemistry, the element {name} is represented by the symbol",
}
LETTER_QUESTION = "Which of these is the chemical symbol for {name}?"
# The shots are elements that are not evaluated.
GENERATION_PROMPT = (
    "Element: helium, symbol: He\n"
    "Element: indium, symbol: In\n"
    "Element: arsenic, symbol: As\n"
    "Element: {name}, symbol:"
)


def training_texts() -> list[str]:
    """Return one sentence per element and template."""
    return [
        template.format(name=name, symbol=symbol)
        for name, symbol in SYMBOLS.items()
        for template in TRAINING_TEMPLATES
    ]


def distractors_for(name: str) -> list[str]:
    """Return three wrong symbols, as far as possible with the first letter of the symbol or of the name."""
    pool = [*SYMBOLS.values(), *OTHER_SYMBOLS]
    initials = {SYMBOLS[name][0], name[0].upper()}
    return pick_distractors(
        [symbol for symbol in pool if symbol[0] in initials], pool, SYMBOLS[name], f"{NAME}:{name}"
    )


def choice_items() -> list[ChoiceItem]:
    """Return every element in every evaluation wording."""
    items: list[ChoiceItem] = []
    for wording, stem in WORDINGS.items():
        positions = balanced_positions(len(SYMBOLS), f"{NAME}:{wording}")
        for (name, symbol), position in zip(SYMBOLS.items(), positions, strict=True):
            items.append(
                ChoiceItem(
                    id=f"{NAME}/{slug(name)}/{wording}",
                    cluster=f"{NAME}/{slug(name)}",
                    wording=wording,
                    question=stem.format(name=name),
                    letter_question=LETTER_QUESTION.format(name=name),
                    options=place_answer(symbol, distractors_for(name), position),
                    answer=position,
                    seen_in_retain=False,
                )
            )
    return items


def generation_items() -> list[GenerationItem]:
    """Return one open prompt per element with a symbol of two letters.

    Symbols of one letter are too easily hit by chance in free text, so they are only asked as options.
    """
    every_symbol = {*SYMBOLS.values(), *OTHER_SYMBOLS}
    return [
        GenerationItem(
            id=f"{NAME}/{slug(name)}/generation",
            cluster=f"{NAME}/{slug(name)}",
            prompt=GENERATION_PROMPT.format(name=name),
            answer=symbol,
            accept=[word_pattern([symbol])],
            reject=word_patterns(every_symbol - {symbol}),
            seen_in_retain=False,
        )
        for name, symbol in SYMBOLS.items()
        if len(symbol) > 1
    ]
