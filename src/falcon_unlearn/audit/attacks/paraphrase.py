"""Attack by the facts' own other wordings: a mask over one wording does not hold for the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Knowledge, PromptTransform, Tier
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.events import Notice


@dataclass(frozen=True)
class Wording(PromptTransform):
    """Ask in the wording of one number, or as before where a fact has none."""

    number: int

    def question(self, fact: Fact, asked: str) -> str:
        """Return the paraphrase."""
        return fact.paraphrases[self.number] if self.number < len(fact.paraphrases) else asked


@dataclass(frozen=True)
class Paraphrase:
    """Ask in every wording that the facts come with."""

    most: int = 3
    """Wordings tried."""
    name: str = "paraphrase"
    tier: Tier = "quick"
    access: Access = "text"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "Patil et al. 2024, arXiv 2309.17410; Lynch et al. 2024, arXiv 2402.16835"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per wording that any fact of the attack split has."""
        facts = context.data.forget
        available = max((len(fact.paraphrases) for fact in facts), default=0)
        if not available:
            context.sink(Notice(message="paraphrase: the facts have no `paraphrases`, so it is left out"))
        for number in range(min(self.most, available)):
            reworded = sum(len(fact.paraphrases) > number for fact in facts)
            details: dict[str, float | str] = {"reworded_share": reworded / len(facts)}
            yield Attacked(f"wording-{number + 1}", transform=Wording(number), details=details)
