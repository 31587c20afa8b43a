"""The model under evaluation together with its tokenizer, and how texts become scored token pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from falcon_unlearn.errors import DataError
from falcon_unlearn.models.scoring import (
    CompletionScore,
    completion_log_probabilities,
    full_log_probabilities,
    text_batches,
)
from falcon_unlearn.models.text import pad_id_of, refuse_unknown_tokens

OriginalWeights = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the model object holds its original tensors."""


@dataclass(frozen=True)
class Subject:
    """Bundle a causal language model, its tokenizer and the size of a forward pass."""

    model: Any
    """None where only tokens are needed."""
    tokenizer: Any
    batch_tokens: int = 4096
    """Tokens per forward pass, padding included."""

    generates = True
    """False where an answer of many tokens would need as many passes over the disk."""

    @property
    def compute_dtype(self) -> str | None:
        """Dtype of the arithmetic where the subject decides it, else None."""
        return None

    @property
    def pad_id(self) -> int:
        """Id used for padding; masks come from lengths, so it may also occur as a real token."""
        return pad_id_of(self.tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        found = {self.tokenizer.eos_token_id}
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        found.update(configured if isinstance(configured, list | tuple) else [configured])
        return frozenset(int(value) for value in found if value is not None)

    @property
    def maximum_tokens(self) -> int:
        """Longest sequence the model reads."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    def encode(self, text: str) -> list[int]:
        """Tokenise `text` as the model expects it, without an end token that the text does not hold.

        A start token that a chat template has written already is not doubled.

        Raises:
            DataError: a token has no row in the embedding.
        """
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        while len(ids) > 1 and ids[-1] in self.end_ids and list(plain[-1:]) != ids[-1:]:
            ids.pop()
        refuse_unknown_tokens(ids, self._num_rows, text)
        return ids

    @property
    def _num_rows(self) -> int:
        """Rows of the embedding; without a model there is no limit."""
        config = getattr(self.model, "config", None)
        return int(getattr(config.get_text_config(), "vocab_size", None) or 2**31) if config else 2**31

    def encode_completions(
        self, prompt: str, completions: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Tokenise `prompt + completion` jointly and cut each where it leaves the common prompt.

        Where a tokenizer merges the end of the prompt with the completion, the prompt is shortened for all
        completions, so that they stay comparable and none is empty.

        Raises:
            DataError: no token of the prompt survives.
        """
        whole = [self.encode(prompt + completion) for completion in completions]
        prompt_ids = self.encode(prompt)
        common = min(_common_prefix(prompt_ids, ids) for ids in whole)
        common = min(common, *(len(ids) - 1 for ids in whole))
        if common < 1:
            raise DataError(
                f"the tokenizer leaves no common token in front of the completions of {prompt[:60]!r}",
                hint="use a longer question or prompt",
            )
        return prompt_ids[:common], [ids[common:] for ids in whole]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[CompletionScore]:
        """Score completions given prompts, as token ids."""
        return completion_log_probabilities(
            self.model, pairs, pad_id=self.pad_id, batch_tokens=self.batch_tokens
        )

    def compared(
        self, texts: Sequence[Sequence[int]], original: OriginalWeights
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches of text indices with the log-probabilities under original and present weights.

        Both are N x V, for every token of the texts but their first, one text after the other.
        """
        for batch in text_batches(self.model, texts, batch_tokens=self.batch_tokens):
            chosen = [texts[index] for index in batch]
            changed_NV = full_log_probabilities(self.model, chosen, pad_id=self.pad_id)
            with original():
                original_NV = full_log_probabilities(self.model, chosen, pad_id=self.pad_id)
            yield batch, original_NV, changed_NV


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
