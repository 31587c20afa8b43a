"""Provide the content of `falcon-unlearn demo`, written for this package from plain facts."""

from __future__ import annotations

from .content import (
    FORGET_DOMAINS,
    KEPT_SETS,
    choice_items,
    forget_texts,
    generation_items,
    letter_items,
    prose_evaluation_texts,
    retain_texts,
    write_demo_files,
)
from .records import ChoiceItem, GenerationItem, is_correct_generation

__all__ = [
    "FORGET_DOMAINS",
    "KEPT_SETS",
    "ChoiceItem",
    "GenerationItem",
    "choice_items",
    "forget_texts",
    "generation_items",
    "is_correct_generation",
    "letter_items",
    "prose_evaluation_texts",
    "retain_texts",
    "write_demo_files",
]
