"""Attack by asking in the other wording: through the chat template if the audit does not, else without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Knowledge, PromptTransform, Tier


class _Worded(PromptTransform):
    def __init__(self, chat_template: bool) -> None:
        self.chat_template = chat_template


@dataclass(frozen=True)
class Wording:
    """Ask with and without the chat template; what is hidden under one may show under the other."""

    name: str = "wording"
    tier: Tier = "quick"
    access: Access = "text"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "control of prompt format; no paper"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield both wordings; without a chat template there is nothing to compare."""
        if getattr(context.subject.tokenizer, "chat_template", None):
            yield Attacked("chat template", transform=_Worded(chat_template=True))
            yield Attacked("plain", transform=_Worded(chat_template=False))
