"""Prefixes as tokens and as text: which tokens may stand in one, and what the model reads then."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from falcon_unlearn.audit.base import Format, PromptTransform
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject

Tokens = tuple[int, ...]
_DRAWS = 200


@dataclass(frozen=True)
class WithPrefix(PromptTransform):
    """Put a text in front of every prompt."""

    text: str

    def preamble(self, format: Format) -> str:
        """Return the text."""
        del format
        return self.text


@dataclass(frozen=True)
class Task:
    """Hold what stands around the prefix for one fact, as tokens."""

    before: Tokens
    after: Tokens
    target: Tokens


def right_options(facts: Sequence[Fact]) -> list[str]:
    """Return what the facts are to be answered with."""
    return [fact.answer for fact in facts]


@dataclass
class PrefixSpace:
    """Offer the prefixes whose text the tokenizer reads as the same tokens again."""

    subject: Subject
    facts: Sequence[Fact]
    answers: Sequence[str]
    chat_template: bool = False
    allowed: list[int] = field(init=False)
    """Printable ASCII tokens that survive alone."""
    tasks: list[Task] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tokens.

        Raises:
            DataError: Too few tokens survive.
        """
        self.allowed = printable_tokens(self.subject)
        example = self._example()
        self.tasks = [
            self._task(fact, answer, example) for fact, answer in zip(self.facts, self.answers, strict=True)
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the prefix as text."""
        return str(self.subject.tokenizer.decode(list(tokens)))

    def survives(self, tokens: Tokens) -> bool:
        """Tell whether the prefix, in front of the first prompt, is read as these tokens."""
        task = self.tasks[0]
        prompt = self._prompt(self.facts[0], self.text(tokens))
        return tuple(self.subject.encode(prompt)) == (*task.before, *tokens, *task.after)

    def drawn(self, count: int, chance: random.Random) -> Tokens:
        """Return a random prefix that survives.

        Raises:
            DataError: None was found.
        """
        for _ in range(_DRAWS):
            tokens: Tokens = ()
            for _ in range(4 * count):
                longer = (*tokens, chance.choice(self.allowed))
                if self.survives(longer):
                    tokens = longer
                if len(tokens) == count:
                    return tokens
        raise DataError(f"no prefix of {count} tokens is read as the tokens that it was written from")

    def losses(self, prefixes: Sequence[Tokens]) -> list[float]:
        """Return the mean over prompts of the loss per target token, in nats, of each prefix."""
        pairs = [
            ((*task.before, *prefix, *task.after), task.target) for prefix in prefixes for task in self.tasks
        ]
        scores = iter(self.subject.score(pairs))
        return [
            -sum(next(scores).mean_log_probability for _ in self.tasks) / len(self.tasks) for _ in prefixes
        ]

    def _prompt(self, fact: Fact, text: str) -> str:
        prompting = Prompting(self.subject.tokenizer, self.chat_template, WithPrefix(text))
        return prompting.text_question(fact).prompt

    def _example(self) -> int:
        """Return a token that a prompt shows as itself."""
        plain = self.subject.encode(self._prompt(self.facts[0], ""))
        for token in self.allowed:
            ids = self.subject.encode(self._prompt(self.facts[0], self.text([token])))
            if token not in plain and ids.count(token) == 1:
                return token
        raise DataError("the tokenizer has no token that survives in front of a prompt")

    def _task(self, fact: Fact, answer: str, example: int) -> Task:
        prompt = self._prompt(fact, self.text([example]))
        space = "" if prompt[-1].isspace() else " "
        ids, (target,) = self.subject.encode_completions(prompt, [space + answer])
        place = ids.index(example)
        return Task(tuple(ids[:place]), tuple(ids[place + 1 :]), tuple(target))


def printable_tokens(subject: Subject) -> list[int]:
    """Return the ordinary tokens whose text is printable ASCII and is read as that token alone."""
    tokenizer = subject.tokenizer
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), len(subject.model.get_input_embeddings().weight))
    texts = tokenizer.batch_decode([[token] for token in range(size)])
    chosen = [
        token
        for token, text in enumerate(texts)
        if token not in special and text.isascii() and text.isprintable() and text.strip()
    ]
    encoded = tokenizer([texts[token] for token in chosen], add_special_tokens=False)["input_ids"]
    kept = [token for token, ids in zip(chosen, encoded, strict=True) if list(ids) == [token]]
    if len(kept) < 2:
        raise DataError(f"only {len(kept)} tokens of the vocabulary survive as text")
    return kept
