"""Attack by examples in the prompt: other questions with their answers stand before the one that counts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from falcon_unlearn.audit.base import (
    Access,
    AttackContext,
    Attacked,
    Format,
    Knowledge,
    PromptTransform,
    Tier,
)
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.events import Notice


@dataclass(frozen=True)
class Shots(PromptTransform):
    """Put answered questions in front, in the format that is asked."""

    texts: dict[Format, str]

    def preamble(self, format: Format) -> str:
        """Return the answered questions."""
        return self.texts[format]


@dataclass(frozen=True)
class FewShot:
    """Show answered questions of the retain set, or of the forget set's attack split.

    Forget examples tell the model about the topic: what the null model gains from them is not recovery. All
    come from other clusters than the facts of the report.
    """

    kind: Literal["retain", "forget"] = "retain"
    counts: tuple[int, ...] | None = None
    """Numbers of examples; None: 5 in the quick tier, 1, 5 and 10 in the full one."""
    tier: Tier = "quick"
    access: Access = "text"
    needs_original: bool = False
    source: str = "Doshi and Stickland 2024, arXiv 2411.12103"

    @property
    def name(self) -> str:
        """Return the name with the kind of examples."""
        return f"few-shot-{self.kind}"

    @property
    def knowledge(self) -> Knowledge:
        """Return what of the data the examples show."""
        return "retain data" if self.kind == "retain" else "forget answers"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per number of examples."""
        facts = context.data.retain if self.kind == "retain" else context.data.forget
        if not facts:
            context.sink(Notice(message=f"{self.name}: no facts to show, so it is left out", level="warning"))
            return
        chance = random.Random(f"{context.seed}:{self.name}")
        order = chance.sample(list(facts), len(facts))
        counts = self.counts or ((1, 5, 10) if context.tier == "full" else (5,))
        for count in dict.fromkeys(min(count, len(order)) for count in counts):
            shots = Shots(shown(context.subject.tokenizer, order[:count], chance))
            yield Attacked(f"{count}-{self.kind}", transform=shots, details={"examples": count})


def shown(tokenizer: Any, facts: Sequence[Fact], chance: random.Random) -> dict[Format, str]:
    """Word answered questions in each format; letters in a drawn cyclic order, so that none is favoured."""
    prompting = Prompting(tokenizer)
    lettered, worded = [], []
    for fact in facts:
        order = chance.randrange(len(fact.options))
        by_letter = prompting.letter_questions(fact)[order]
        right = (fact.answer_index - order) % len(fact.options)
        lettered.append(by_letter.prompt + by_letter.completions[right])
        by_text = prompting.text_question(fact)
        worded.append(by_text.prompt + by_text.completions[fact.answer_index])
    texts = "\n\n".join(worded)
    return {"letter": "\n\n".join(lettered), "text": texts, "generation": texts}
