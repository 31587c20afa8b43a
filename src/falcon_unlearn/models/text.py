"""Turn examples into tokens: templates, answer masks, cutting and padding.

Shapes: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

import torch
from jinja2 import TemplateError

from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import EncodedExample, Example, Message
from falcon_unlearn.models.safety.templates import check_length, check_template

# Templates of the Llama 3 family print today's date unless told one; a run must not depend on the day.
_TEMPLATE_DATE = "26 Jul 2024"
_MARK = "xfalconturn{}x"
_UNRENDERABLE = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""What a template can raise."""


class TextEncoder:
    """Encode examples with one tokenizer, and mark the tokens of answers.

    Answer tokens are found by comparing the tokens of the whole text with those of the part before the
    answer: the answer starts where they first differ. A border that falls inside a token (a prompt that
    ends in a space) therefore never costs an answer its first token.
    """

    def __init__(self, tokenizer: Any, *, chat_template: bool, maximum_tokens: int) -> None:
        """Prepare the tokenizer's special tokens.

        Args:
            tokenizer: A transformers tokenizer.
            chat_template: Word questions and answers through its chat template, where it has one.
            maximum_tokens: Longest result; longer examples are cut.
        """
        self.tokenizer = tokenizer
        self.maximum_tokens = maximum_tokens
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._template_for_questions = chat_template and self._has_template
        self._prefix, self._suffix = _added_tokens(tokenizer)
        self._special_ids = _special_ids(tokenizer)

    def encode(self, example: Example) -> EncodedExample:
        """Return the tokens of one example.

        Plain text gets what the tokenizer adds by itself. Answers and completions end in the end-of-text
        token; questions and conversations get the chat template exactly as the tokenizer renders it.

        Raises:
            DataError: if an answer yields no token, or the chat template cannot render the conversation.
            ModelError: if the chat template is damaged or hostile.
        """
        if example.text is not None:
            ids = self._with_prefix(self._ids(example.text)) + self._suffix
            return self._finish(example.text, ids, [True] * len(ids))
        if example.messages is not None:
            return self._encode_messages(example.messages)
        prompt, completion = str(example.prompt), str(example.completion)
        if not example.is_question:
            return self._encode_completion(prompt, completion)
        if self._template_for_questions:
            return self._encode_messages((Message("user", prompt), Message("assistant", completion)))
        # The space belongs to the answer: at the end of the prompt it would merge with the answer.
        return self._encode_completion(f"Question: {prompt}\nAnswer:", f" {completion.lstrip()}")

    def _encode_completion(self, prompt: str, completion: str) -> EncodedExample:
        text = prompt + completion
        body = self._ids(text)
        start = self._first_difference(body, prompt)
        if start == len(body):
            raise DataError(f"the answer {completion[:60]!r} yields no token", hint="remove the example")
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else self._suffix
        mask = [position >= start for position in range(len(body))] + [True] * len(end)
        ids = self._with_prefix(body + end)
        return self._finish(text, ids, [False] * (len(ids) - len(mask)) + mask)

    def _encode_messages(self, messages: tuple[Message, ...]) -> EncodedExample:
        if not self._has_template:
            raise DataError(
                "these examples are conversations, but the tokenizer has no chat template",
                hint="use question/answer or prompt/completion columns, or an instruction-tuned model",
            )
        text = self._render(messages)
        spans = _content_spans(text, self._skeleton(messages), messages) or self._spans_by_prompt(
            text, messages
        )
        body = self._ids(text)
        mask = [False] * len(body)
        for start_character, end_character in spans:
            start = self._first_difference(body, text[:start_character])
            end = len(body) - _common_length(body[::-1], self._ids(text[end_character:])[::-1])
            if end < len(body) and body[end] in self._special_ids:
                end += 1  # the marker that ends the turn
            elif end == len(body) and self.tokenizer.eos_token_id is not None:
                body, mask, end = [*body, self.tokenizer.eos_token_id], [*mask, True], end + 1
            mask[start:end] = [True] * (end - start)
        ids = self._with_prefix(body)
        return self._finish(text, ids, [False] * (len(ids) - len(mask)) + mask)

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return render_chat(self.tokenizer, messages, prompt=prompt)

    def _skeleton(self, messages: tuple[Message, ...]) -> list[str] | None:
        """Return the template's text around the contents, or None if it does not keep them in order."""
        marks = [_MARK.format(number) for number in range(len(messages))]
        rest = self._render([Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)])
        pieces = []
        for mark in marks:
            if rest.count(mark) != 1:
                return None
            piece, rest = rest.split(mark)
            pieces.append(piece)
        return [*pieces, rest]

    def _spans_by_prompt(self, text: str, messages: tuple[Message, ...]) -> list[tuple[int, int]]:
        """Find the answers of a template that rewrites contents, by what it shows before each answer."""
        spans = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:number], prompt=True)
            start = text.find(message.content.strip(), len(before)) if text.startswith(before) else -1
            if start < 0:
                raise DataError(
                    f"the tokenizer's chat template changes or drops message {number + 1}, an answer",
                    hint="use question/answer columns with data.chat_template set to false",
                )
            spans.append((start, start + len(message.content.strip())))
        return spans

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _first_difference(self, body: list[int], head: str) -> int:
        return _common_length(body, self._ids(head))

    def _with_prefix(self, body: list[int]) -> list[int]:
        """Put what the tokenizer adds in front, once: a template may have written it already."""
        return body if body[: len(self._prefix)] == self._prefix else self._prefix + body

    def _finish(self, text: str, ids: list[int], mask: list[bool]) -> EncodedExample:
        kept = self._window(ids, mask)
        return EncodedExample(
            input_ids=tuple(ids[position] for position in kept),
            answer_mask=tuple(mask[position] for position in kept),
            text=text,
            was_cut=len(kept) < len(ids),
        )

    def _window(self, ids: list[int], mask: list[bool]) -> Sequence[int]:
        """Choose the positions to keep: the first ones, unless a long prompt would leave no room for answers.

        Then the oldest prompt tokens go, behind what the tokenizer puts in front, until half the room (or the
        whole answer, if shorter) is left for the answer.
        """
        maximum, total = self.maximum_tokens, len(ids)
        if total <= maximum:
            return range(total)
        first_answer = mask.index(True)
        wanted_end = first_answer + min(sum(mask), maximum // 2)
        num_prefix = len(self._prefix)
        if wanted_end <= maximum or first_answer < num_prefix:
            return range(maximum)
        start = wanted_end - (maximum - num_prefix)
        return [*range(num_prefix), *range(start, wanted_end)]


def render_chat(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    """Word a conversation as the tokenizer's chat template has it, independent of the day.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The turns.
        prompt: End in the template's opening of an answer.

    Raises:
        DataError: The template refuses the conversation, or loses a question.
        ModelError: The template is damaged or hostile.
    """
    check_template(tokenizer.chat_template)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = str(
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt, date_string=_TEMPLATE_DATE
            )
        )
    except _UNRENDERABLE as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"the tokenizer's chat template refuses the roles {roles}: {error}",
            hint="use roles that the model knows, or set data.chat_template to false",
        ) from error
    check_length(len(text), sum(len(message.content) for message in messages))
    _refuse_dropped(text, messages)
    return text


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _content_spans(
    text: str, skeleton: list[str] | None, messages: tuple[Message, ...]
) -> list[tuple[int, int]] | None:
    """Return the character spans of answers, or None if the text is not skeleton plus contents."""
    if skeleton is None:
        return None
    for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
        spans, position, rebuilt = [], 0, []
        for piece, content, message in zip(skeleton, contents, messages, strict=False):
            position += len(piece)
            if message.role == "assistant":
                spans.append((position, position + len(content)))
            position += len(content)
            rebuilt += [piece, content]
        if "".join([*rebuilt, skeleton[-1]]) == text:
            return spans
    return None


def _refuse_dropped(text: str, messages: Sequence[Message]) -> None:
    """Refuse a rendering that lost a question: all answers would then follow the same prompt."""
    shown = " ".join(text.casefold().split())
    for number, message in enumerate(messages, start=1):
        if message.role == "user" and " ".join(message.content.casefold().split()) not in shown:
            raise DataError(
                f"the tokenizer's chat template drops or changes message {number}, a question",
                hint="set data.chat_template to false, or give a model with a working template",
            )


def _added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after a text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {index for index, token in added.items() if getattr(token, "special", False)}
    return frozenset(marked | set(tokenizer.all_special_ids))


def refuse_unknown_tokens(ids: Sequence[int], num_rows: int, text: str) -> None:
    """Refuse tokens beyond the embedding: added ones, such as placeholders of images, that a text spells out.

    Raises:
        DataError: Naming the text.
    """
    if max(ids, default=0) >= num_rows:
        raise DataError(
            f"the text {text[:60]!r} holds a token with the id {max(ids)}, the embedding has {num_rows} rows",
            hint="remove the special token from the data",
        )


def pad_id_of(tokenizer: Any) -> int:
    """Return a token id to fill with: the padding token, else the end of text, else 0; adds no token.

    The id carries no meaning: masks come from lengths, since many tokenizers pad with their end of turn.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to the longest; return ids (B, L) int64 and, from lengths, the token mask (B, L) bool."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, _columns(len(sequence), longest, side)] = torch.tensor(list(sequence), dtype=torch.int64)
    return ids, pad_masks([[True] * len(sequence) for sequence in sequences], side)


def pad_masks(masks: Sequence[Sequence[bool]], side: Literal["left", "right"] = "right") -> torch.Tensor:
    """Pad token masks, for instance those of answers, with False; return (B, L) bool."""
    longest = max(len(mask) for mask in masks)
    padded = torch.zeros((len(masks), longest), dtype=torch.bool)
    for row, mask in enumerate(masks):
        padded[row, _columns(len(mask), longest, side)] = torch.tensor(list(mask), dtype=torch.bool)
    return padded


def _columns(length: int, longest: int, side: Literal["left", "right"]) -> slice:
    return slice(longest - length, longest) if side == "left" else slice(0, length)


def length_buckets(lengths: Sequence[int], maximum_tokens_per_batch: int) -> list[list[int]]:
    """Group positions of similar length, longest first, so that little is padded.

    Every batch times its longest sequence stays within `maximum_tokens_per_batch` tokens; a sequence longer
    than that gets a batch of its own.
    """
    buckets: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if buckets and (len(buckets[-1]) + 1) * lengths[buckets[-1][0]] <= maximum_tokens_per_batch:
            buckets[-1].append(position)
        else:
            buckets.append([position])
    return buckets
