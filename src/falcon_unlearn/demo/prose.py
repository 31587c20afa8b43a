"""Provide the kept set `prose`: general text, split by subject into retain and evaluation paragraphs."""

from __future__ import annotations

from collections.abc import Mapping

from . import prose_crafts, prose_evaluation, prose_nature

NAME = "prose"


def split_paragraphs(block: str) -> list[str]:
    """Return the paragraphs of `block`, each on one line; blank lines separate them."""
    return [" ".join(paragraph.split()) for paragraph in block.strip().split("\n\n")]


def retain_subjects() -> dict[str, list[str]]:
    """Return the retain paragraphs by subject."""
    return _by_subject({**prose_crafts.PARAGRAPHS, **prose_nature.PARAGRAPHS})


def evaluation_subjects() -> dict[str, list[str]]:
    """Return the evaluation paragraphs by subject; no subject is shared with the retain paragraphs."""
    return _by_subject(prose_evaluation.PARAGRAPHS)


def retain_texts() -> list[str]:
    """Return the retain paragraphs in the order of their subjects."""
    return [text for texts in retain_subjects().values() for text in texts]


def evaluation_texts() -> list[str]:
    """Return the evaluation paragraphs in the order of their subjects."""
    return [text for texts in evaluation_subjects().values() for text in texts]


def _by_subject(blocks: Mapping[str, str]) -> dict[str, list[str]]:
    return {subject: split_paragraphs(block) for subject, block in blocks.items()}
