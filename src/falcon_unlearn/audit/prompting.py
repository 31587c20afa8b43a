"""Write the prompts of the three formats, plain or through the chat template, transformed by an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from falcon_unlearn.audit.base import Format, PromptTransform
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.choice import lettered_question, letters
from falcon_unlearn.examples import Message
from falcon_unlearn.models.text import render_chat

_ANSWER_CUE = "\nAnswer:"


@dataclass(frozen=True)
class Question:
    """Hold one prompt with its completions."""

    prompt: str
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Prompting:
    """Word facts for one tokenizer."""

    tokenizer: Any
    chat_template: bool = False
    """Ask through the chat template where the transform does not say otherwise."""
    transform: PromptTransform = field(default_factory=PromptTransform)

    def letter_questions(self, fact: Fact, num_orders: int | None = None) -> list[Question]:
        """Return the lettered question once per cyclic order of the options; order i moves them up by i.

        Args:
            fact: What is asked.
            num_orders: Use the first so many orders only.
        """
        asked = self.transform.question(fact, fact.letter_question or fact.question)
        options = fact.options
        prompts = [
            self._prompt(lettered_question(asked, options, shift), "letter", cue=_ANSWER_CUE)
            for shift in range(len(options))[:num_orders]
        ]
        return [Question(prompt, _continued(prompt, list(letters(len(options))))) for prompt in prompts]

    def text_question(self, fact: Fact) -> Question:
        """Return the question without options; the completions are the options' texts."""
        prompt = self._bare(fact, "text")
        return Question(prompt, _continued(prompt, fact.options))

    def generation_prompt(self, fact: Fact) -> str:
        """Return the question whose answer is generated freely."""
        return self._bare(fact, "generation")

    @property
    def uses_template(self) -> bool:
        """Tell whether prompts go through the chat template."""
        wanted = self.transform.chat_template
        return self.chat_template if wanted is None else wanted

    def _bare(self, fact: Fact, format: Format) -> str:
        asked = self.transform.question(fact, fact.question)
        if fact.is_question and not self.uses_template:
            return self._prompt(f"Question: {asked}", format, cue=_ANSWER_CUE)
        return self._prompt(asked, format, cue="")

    def _prompt(self, body: str, format: Format, *, cue: str) -> str:
        before, after = self.transform.preamble(format), self.transform.cue(format)
        body = _join(before, body, "\n\n")
        if self.uses_template:
            return _join(self._chat(body), after, "")
        return _join(body + cue, after, " ")

    def _chat(self, body: str) -> str:
        rendered = render_chat(self.tokenizer, [Message("user", body)], prompt=True)
        if body.strip() not in rendered:
            raise DataError(
                f"the tokenizer's chat template drops or changes the question {body[:60]!r}",
                hint="audit without the chat template",
            )
        return rendered


def _join(first: str, second: str, separator: str) -> str:
    if not first or not second or first[-1].isspace() or second[0].isspace():
        return first + second
    return first + separator + second


def _continued(prompt: str, answers: Sequence[str]) -> tuple[str, ...]:
    space = "" if prompt[-1:].isspace() or not prompt else " "
    return tuple(f"{space}{answer}" for answer in answers)
