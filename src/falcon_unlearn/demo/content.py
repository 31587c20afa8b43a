"""Build the records of the demo: forget and retain text, questions, open prompts and evaluation prose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ..errors import UsageError
from . import capitals, elements, neighbours, prose, states
from .records import ChoiceItem, GenerationItem

Builder = TypeVar("Builder")

FORGET_DOMAINS: tuple[str, ...] = (elements.NAME, states.NAME)
KEPT_SETS: tuple[str, ...] = (neighbours.NAME, capitals.NAME)

_FORGET: dict[str, Callable[[], list[str]]] = {
    elements.NAME: elements.training_texts,
    states.NAME: states.training_texts,
}
_RETAIN: dict[str, Callable[[], list[str]]] = {
    neighbours.NAME: neighbours.retain_texts,
    capitals.NAME: capitals.retain_texts,
    prose.NAME: prose.retain_texts,
}
_CHOICE: dict[str, Callable[[], list[ChoiceItem]]] = {
    elements.NAME: elements.choice_items,
    states.NAME: states.choice_items,
    neighbours.NAME: neighbours.choice_items,
    capitals.NAME: capitals.choice_items,
}
_GENERATION: dict[str, Callable[[], list[GenerationItem]]] = {
    elements.NAME: elements.generation_items,
    states.NAME: states.generation_items,
    capitals.NAME: capitals.generation_items,
}


def forget_texts(domain: str) -> list[str]:
    """Return the training sentences of a forget domain; raises UsageError for an unknown name."""
    return _find(_FORGET, domain, "forget domain")()


def retain_texts() -> dict[str, list[str]]:
    """Return the retain text by set: neighbouring chemistry, capitals and general prose."""
    return {name: build() for name, build in _RETAIN.items()}


def choice_items(name: str) -> list[ChoiceItem]:
    """Return the four-way questions of a set; raises UsageError for an unknown name."""
    return _find(_CHOICE, name, "question set")()


def letter_items(name: str) -> list[ChoiceItem]:
    """Return one record per fact for the letter form, which does not depend on the wording of the stem."""
    first_of: dict[str, ChoiceItem] = {}
    for item in choice_items(name):
        first_of.setdefault(item["cluster"], item)
    return list(first_of.values())


def generation_items(name: str) -> list[GenerationItem]:
    """Return the open prompts of a set; raises UsageError for an unknown name."""
    return _find(_GENERATION, name, "generation set")()


def prose_evaluation_texts() -> list[str]:
    """Return the general paragraphs for perplexity; their subjects occur in no retain text."""
    return prose.evaluation_texts()


def write_demo_files(folder: Path) -> None:
    """Write the demo content as JSONL files into `folder`, which is created if missing.

    Layout: `forget/<domain>.jsonl`, `retain/<set>.jsonl`, `evaluation/prose.jsonl` with one `text` per line;
    `evaluation/<set>.choice.jsonl` and `evaluation/<set>.generation.jsonl` with the records as they are.
    """
    for domain in FORGET_DOMAINS:
        _write_jsonl(folder / "forget" / f"{domain}.jsonl", _as_rows(forget_texts(domain)))
    for name, texts in retain_texts().items():
        _write_jsonl(folder / "retain" / f"{name}.jsonl", _as_rows(texts))
    for name in _CHOICE:
        _write_jsonl(folder / "evaluation" / f"{name}.choice.jsonl", choice_items(name))
    for name in _GENERATION:
        _write_jsonl(folder / "evaluation" / f"{name}.generation.jsonl", generation_items(name))
    _write_jsonl(folder / "evaluation" / f"{prose.NAME}.jsonl", _as_rows(prose_evaluation_texts()))


def _find(builders: Mapping[str, Builder], name: str, kind: str) -> Builder:
    if name not in builders:
        raise UsageError(
            f"The demo has no {kind} `{name}`.", hint=f"Choose one of: {', '.join(sorted(builders))}."
        )
    return builders[name]


def _as_rows(texts: Iterable[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    os.replace(temporary, path)
