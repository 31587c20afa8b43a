"""One unit of data: as read from a file, and as tokens. Shared by `data` and `models`, needs neither."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """Hold a text, a prompt with its completion, or a conversation: exactly one of the three.

    Build it with `of_text`, `of_question`, `of_completion` or `of_messages`.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None
    is_question: bool = False
    """True when prompt and completion are a question and its answer, to be worded by a template."""

    def __post_init__(self) -> None:
        kinds = (self.text is not None, self.prompt is not None, self.messages is not None)
        if sum(kinds) != 1 or (self.prompt is None) != (self.completion is None):
            raise ValueError("an example is a text, a prompt with a completion, or messages: exactly one")

    @classmethod
    def of_text(cls, text: str) -> Example:
        """Wrap a plain text."""
        return cls(text=text)

    @classmethod
    def of_question(cls, question: str, answer: str) -> Example:
        """Wrap a question and its answer; the encoder chooses the wording around them."""
        return cls(prompt=question, completion=answer, is_question=True)

    @classmethod
    def of_completion(cls, prompt: str, completion: str) -> Example:
        """Wrap a prompt and the completion that follows it literally."""
        return cls(prompt=prompt, completion=completion)

    @classmethod
    def of_messages(cls, messages: Sequence[Message]) -> Example:
        """Wrap a conversation."""
        return cls(messages=tuple(messages))

    @property
    def plain_text(self) -> str:
        """Return the words without any template, for comparison and hashing."""
        if self.text is not None:
            return self.text
        if self.messages is not None:
            return "\n".join(message.content for message in self.messages)
        separator = " " if self.is_question else ""
        return f"{self.prompt}{separator}{self.completion}"

    @property
    def is_blank(self) -> bool:
        """Return True when nothing is there to learn from: no text, or no answer."""
        if self.text is not None:
            return not self.text.strip()
        if self.messages is not None:
            return not any(m.role == "assistant" and m.content.strip() for m in self.messages)
        return not (self.completion or "").strip()

    @property
    def canonical(self) -> str:
        """Return one line that identifies kind and content, the input of content hashes."""
        if self.text is not None:
            return json.dumps(["text", self.text])
        if self.messages is not None:
            return json.dumps(["messages", *([m.role, m.content] for m in self.messages)])
        kind = "question_answer" if self.is_question else "prompt_completion"
        return json.dumps([kind, self.prompt, self.completion])


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Hold the tokens of one example."""

    input_ids: tuple[int, ...]
    answer_mask: tuple[bool, ...]
    """True on the tokens of answers and their end marker; all True for plain text."""
    text: str
    """The text that was tokenised, template included, before cutting."""
    was_cut: bool
    """True when tokens were removed to respect the maximum length."""

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.answer_mask):
            raise ValueError("input_ids and answer_mask differ in length")
