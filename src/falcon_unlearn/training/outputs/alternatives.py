"""Put another answer behind the question of a forget sample: a refusal, a given text or a sampled one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from falcon_unlearn.config.methods import AlternativeSettings
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.sampling import sample_continuations
from falcon_unlearn.objectives.outputs.refusals import REFUSALS

_SPACE_MARKS = ("Ġ", "▁", " ")


def answer_span(example: EncodedExample) -> tuple[int, int]:
    """Return first position and end of the last answer of an example.

    Raises:
        UsageError: The example has no question in front of its answer.
    """
    mask = example.answer_mask
    end = max((i + 1 for i, counted in enumerate(mask) if counted), default=0)
    start = end
    while start > 0 and mask[start - 1]:
        start -= 1
    if start == 0:
        raise UsageError(
            "this method needs questions with answers, but a forget example is plain text",
            hint="Give question/answer rows, or choose a method that needs no alternative answers.",
        )
    return start, end


def with_answer(tokenizer: Any, example: EncodedExample, answer: str) -> EncodedExample:
    """Return the example with `answer` in place of its last answer; its end marker stays."""
    start, end = answer_span(example)
    ids = list(example.input_ids)
    tail = ids[end - 1 : end] if ids[end - 1] in set(tokenizer.all_special_ids) else []
    middle = _answer_ids(tokenizer, answer, tokenizer.convert_ids_to_tokens([ids[start]])[0])
    new = ids[:start] + middle + tail + ids[end:]
    counted = len(middle) + len(tail)
    mask = [*example.answer_mask[:start], *[True] * counted, *[False] * (len(new) - start - counted)]
    return EncodedExample(tuple(new), tuple(mask), answer, was_cut=example.was_cut)


def _answer_ids(tokenizer: Any, answer: str, first_token: str) -> list[int]:
    """Tokenise an answer with a leading space where the answer that it replaces had one."""
    spaced = [f" {answer}", answer] if first_token.startswith(_SPACE_MARKS) else [answer, f" {answer}"]
    ids: list[int] = tokenizer(spaced[0], add_special_tokens=False)["input_ids"]
    return ids


def alternative_examples(
    model: Any,
    tokenizer: Any,
    examples: Sequence[EncodedExample],
    settings: AlternativeSettings,
    seed: int,
) -> tuple[EncodedExample, ...]:
    """Return one alternative per example.

    Raises:
        UsageError: Examples are plain text, or the file is not named.
        DataError: The file cannot be used.
    """
    if settings.source == "model":
        return _sampled(model, tokenizer, examples, seed)
    if settings.source == "file":
        return _from_file(tokenizer, examples, settings.path, seed)
    chance = random.Random(f"{seed}:refusals")
    return tuple(with_answer(tokenizer, example, chance.choice(REFUSALS)) for example in examples)


def _from_file(
    tokenizer: Any, examples: Sequence[EncodedExample], path: str | None, seed: int
) -> tuple[EncodedExample, ...]:
    if path is None:
        raise UsageError("objective.alternatives.path: nothing given, but source is `file`")
    file = Path(path).expanduser()
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"objective.alternatives.path: {file.name!r} cannot be read: {error}") from error
    if not lines:
        raise DataError(f"objective.alternatives.path: {file.name!r} is empty")
    if not lines[0].lstrip().startswith("{"):
        chance = random.Random(f"{seed}:alternatives")
        return tuple(with_answer(tokenizer, example, chance.choice(lines)) for example in examples)
    rows = [_row(line, number, file.name) for number, line in enumerate(lines, start=1)]
    return tuple(_matched(tokenizer, example, rows, file.name) for example in examples)


def _row(line: str, number: int, name: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return str(row["question"]), str(row["answer"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name}, line {number}: a JSON object with question and answer is needed") from error


def _matched(
    tokenizer: Any, example: EncodedExample, rows: Sequence[tuple[str, str]], name: str
) -> EncodedExample:
    # The longest question wins: a short one may be part of another.
    fitting = [row for row in rows if row[0].strip() in example.text]
    if not fitting:
        raise DataError(f"{name}: no alternative for the forget example {example.text[:60]!r}")
    return with_answer(tokenizer, example, max(fitting, key=lambda row: len(row[0]))[1])


def _sampled(
    model: Any, tokenizer: Any, examples: Sequence[EncodedExample], seed: int
) -> tuple[EncodedExample, ...]:
    """Sample the model's own answers; one that repeats the true answer is drawn again, hotter."""
    prompts = [list(example.input_ids[: answer_span(example)[0]]) for example in examples]
    longest = max(end - start for start, end in map(answer_span, examples))
    texts = [""] * len(examples)
    missing = list(range(len(examples)))
    for attempt, temperature in enumerate((1.0, 1.3, 1.6)):
        drawn = sample_continuations(
            model,
            tokenizer,
            [prompts[i] for i in missing],
            min(longest, 128),
            seed + attempt,
            temperature=temperature,
        )
        for index, text in zip(missing, drawn, strict=True):
            texts[index] = text.strip().split("\n")[0]
        missing = [i for i in missing if not texts[i] or _same(tokenizer, examples[i], texts[i])]
        if not missing:
            break
    chance = random.Random(f"{seed}:refusals")
    for index in missing:
        texts[index] = chance.choice(REFUSALS)
    return tuple(with_answer(tokenizer, example, text) for example, text in zip(examples, texts, strict=True))


def _same(tokenizer: Any, example: EncodedExample, text: str) -> bool:
    start, end = answer_span(example)
    original: str = tokenizer.decode(example.input_ids[start:end], skip_special_tokens=True)
    return original.strip().casefold() == text.casefold()
