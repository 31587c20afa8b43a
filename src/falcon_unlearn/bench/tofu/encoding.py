"""Word questions and answers for a model, and make sure that no answer loses tokens to its prompt.

A prompt that ends in a space merges with the first word of the answer in most tokenizers: short answers are
then left without any scored token. The space therefore belongs to the answer, and every row is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falcon_unlearn.bench.tofu.data import TofuRow
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.answers import split_answer
from falcon_unlearn.examples import Example
from falcon_unlearn.models.text import TextEncoder

MAXIMUM_TOKENS = 512
_PROBE = "A"

Ids = tuple[int, ...]


@dataclass(frozen=True)
class EncodedQuestion:
    """Hold the tokens of one row: a prompt and the answers that are scored after it."""

    prompt: Ids
    answer: Ids
    """With the end token, as all answers."""
    paraphrased: Ids | None
    perturbed: tuple[Ids, ...]

    @property
    def completions(self) -> tuple[Ids, ...]:
        """All answers: the right one, the paraphrased one if any, the wrong ones."""
        paraphrased = () if self.paraphrased is None else (self.paraphrased,)
        return (self.answer, *paraphrased, *self.perturbed)


def encode_rows(encoder: TextEncoder, rows: Sequence[TofuRow], set_name: str) -> list[EncodedQuestion]:
    """Encode rows as `Question: q`, line break, `Answer:`, space, answer, end token, or by the chat template.

    Raises:
        DataError: for a row whose prompt tokens are not a prefix of prompt and answer tokenised together,
            whose answer has no token, or which is too long.
    """
    return [_encode_row(encoder, row, f"{set_name}, row {index}") for index, row in enumerate(rows)]


def _encode_row(encoder: TextEncoder, row: TofuRow, place: str) -> EncodedQuestion:
    # What every answer must start after: the prompt as it stands before any answer.
    prompt, _ = _split(encoder, row.question, _PROBE, place)

    def completion(answer: str) -> Ids:
        found, ids = _split(encoder, row.question, answer, place)
        if found != prompt:
            raise DataError(
                f"{place}: the tokenizer merges the end of the prompt with the answer {answer[:40]!r}",
                hint="scores of such rows miss tokens; use another prompt template or tokenizer",
            )
        return ids

    return EncodedQuestion(
        prompt=prompt,
        answer=completion(row.answer),
        paraphrased=None if row.paraphrased_answer is None else completion(row.paraphrased_answer),
        perturbed=tuple(completion(answer) for answer in row.perturbed_answers),
    )


def _split(encoder: TextEncoder, question: str, answer: str, place: str) -> tuple[Ids, Ids]:
    encoded = encoder.encode(Example.of_question(question, answer))
    if encoded.was_cut:
        raise DataError(f"{place}: more than {encoder.maximum_tokens} tokens", hint="remove the row")
    prompt, completion = split_answer(encoded)
    if not prompt or not completion:
        raise DataError(f"{place}: {len(prompt)} prompt and {len(completion)} answer tokens; each needs one")
    return prompt, completion
