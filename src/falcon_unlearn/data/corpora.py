"""Prepare the forget domains and retain sets of a run: load, filter, separate, shuffle, hold out, count."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from falcon_unlearn.config.data import CorpusSettings, DataSettings
from falcon_unlearn.data.overlap import OverlapIndex, duplicate_positions, overlapping_positions, same_texts
from falcon_unlearn.data.sources import LoadedCorpus, load_examples, make_corpus
from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import EncodedExample, Example
from falcon_unlearn.results import CorpusCount, DataResult

Role = Literal["forget", "retain"]
Encode = Callable[[Example], EncodedExample]
SampleSelf = Callable[[int, int, int], list[str]]
"""Number of texts, tokens per text, seed -> texts sampled from the original model."""

SELF = "self"
SMALLEST_SET_HELD_OUT = 10
"""A set of this many examples or more always holds one out, if anything is to be held out."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Hold one set, ready for training and for evaluation on unseen text."""

    name: str
    weight: float
    training: tuple[EncodedExample, ...]
    held_out: tuple[EncodedExample, ...]
    held_out_examples: tuple[Example, ...]
    """The held-out examples as they were read, parallel to `held_out`."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Hold all sets of a run and the record of how they came about."""

    forget: tuple[Corpus, ...]
    retain: tuple[Corpus, ...]
    result: DataResult


@dataclass(frozen=True, slots=True)
class _Loaded:
    settings: CorpusSettings
    role: Role
    corpus: LoadedCorpus
    texts: tuple[str, ...]
    """The plain text of every example."""


def prepare_corpora(
    settings: DataSettings,
    encode: Encode,
    *,
    seed: int,
    sample_self: SampleSelf | None = None,
    load: Callable[[CorpusSettings], LoadedCorpus] = load_examples,
) -> PreparedData:
    """Load every set and keep what can be used.

    The order of a set depends on the seed and its own name only, so adding a set does not change another.
    Examples beyond `limit` are not encoded; `read` exceeds the other counts of a set by their number.

    Args:
        settings: What to load and how to filter.
        encode: Turns an example into tokens.
        seed: Seed of the order and of sampled retain text.
        sample_self: Samples text from the original model, for the retain path `self`.
        load: Reads one set.

    Raises:
        DataError: if a set is missing, malformed or empty after filtering, if a retain set equals a forget
            domain, or if sets overlap and `overlap` is `error`.
    """

    def read(corpus: CorpusSettings, role: Role) -> _Loaded:
        loaded = _sample(corpus, settings, sample_self, seed) if corpus.path == SELF else load(corpus)
        return _Loaded(corpus, role, loaded, tuple(example.plain_text for example in loaded.examples))

    forget = [read(corpus, "forget") for corpus in settings.forget]
    retain = [read(corpus, "retain") for corpus in settings.retain]
    _refuse_identical(forget, retain)
    index = OverlapIndex((text for domain in forget for text in domain.texts), ngram=settings.overlap_ngram)
    warnings: list[str] = []
    prepared: dict[Role, list[Corpus]] = {"forget": [], "retain": []}
    counts = []
    for loaded in (*forget, *retain):
        overlapping = _overlapping(loaded, index, settings, warnings) if loaded.role == "retain" else []
        corpus, count = _prepare(loaded, overlapping, settings, encode, seed)
        warnings += _remarks(count, settings)
        prepared[loaded.role].append(corpus)
        counts.append(count)
    result = DataResult(corpora=counts, warnings=warnings)
    return PreparedData(tuple(prepared["forget"]), tuple(prepared["retain"]), result)


def _sample(
    corpus: CorpusSettings, settings: DataSettings, sample_self: SampleSelf | None, seed: int
) -> LoadedCorpus:
    if sample_self is None:
        raise DataError(
            f"{corpus.name}: `self` samples text from the original model, which is not loaded here",
            hint="name a file instead",
        )
    texts = sample_self(settings.self_samples, settings.self_tokens, seed)
    return make_corpus((Example.of_text(text) for text in texts), SELF)


def _refuse_identical(forget: Sequence[_Loaded], retain: Sequence[_Loaded]) -> None:
    for domain in forget:
        for kept in retain:
            if same_texts(domain.texts, kept.texts):
                raise DataError(
                    f"the retain set {kept.settings.name} ({kept.corpus.source}) holds the same texts as the "
                    f"forget domain {domain.settings.name} ({domain.corpus.source})",
                    hint="name a retain file with other texts, or `--retain self`",
                )


def _overlapping(
    loaded: _Loaded, index: OverlapIndex, settings: DataSettings, warnings: list[str]
) -> list[int]:
    """Return the positions of retain examples that occur in forget text; refuse or remark as set."""
    positions = overlapping_positions(loaded.texts, index, share=settings.overlap_share)
    if not positions:
        return []
    found = f"{len(positions)} of {len(loaded.texts)} retain examples occur in forget text"
    message = f"{loaded.settings.name}: {found}"
    if settings.overlap == "error":
        excerpt = " ".join(loaded.texts[positions[0]].split())[:80]
        raise DataError(
            f"{message}; the first is number {positions[0] + 1}: {excerpt!r}",
            hint="remove them, or set data.overlap to drop or warn",
        )
    outcome = "dropped" if settings.overlap == "drop" else "kept, so training works against itself there"
    warnings.append(f"{message}; {outcome}")
    return positions


def _prepare(
    loaded: _Loaded, overlapping: Sequence[int], settings: DataSettings, encode: Encode, seed: int
) -> tuple[Corpus, CorpusCount]:
    duplicates = set(duplicate_positions(loaded.texts))
    overlap = set(overlapping) - duplicates
    refused = duplicates | (overlap if settings.overlap == "drop" else set())
    order = [position for position in range(len(loaded.texts)) if position not in refused]
    random.Random(f"{seed}:{loaded.settings.name}").shuffle(order)
    kept, too_short = _encode(loaded, order, settings, encode)
    if not kept:
        raise DataError(
            f"{loaded.settings.name}: nothing is left of {len(loaded.texts)} {loaded.role} examples "
            f"({_reasons(too_short, len(duplicates), len(overlap))})",
            hint=f"data.minimum_tokens is {settings.minimum_tokens}; lower it or use longer texts"
            if too_short
            else "use other texts",
        )
    num_held_out = _num_held_out(len(kept), settings.holdout_share)
    held_out, training = kept[:num_held_out], kept[num_held_out:]
    corpus = Corpus(
        name=loaded.settings.name,
        weight=loaded.settings.weight,
        training=tuple(encoded for _, encoded in training),
        held_out=tuple(encoded for _, encoded in held_out),
        held_out_examples=tuple(example for example, _ in held_out),
    )
    count = CorpusCount(
        name=corpus.name,
        role=loaded.role,
        source=loaded.corpus.source,
        sha256=loaded.corpus.sha256,
        read=len(loaded.texts),
        too_short=too_short,
        cut=sum(encoded.was_cut for _, encoded in kept),
        duplicates=len(duplicates),
        overlapping=len(overlap),
        training=len(corpus.training),
        held_out=len(corpus.held_out),
        tokens=sum(len(encoded.input_ids) for encoded in corpus.training),
    )
    return corpus, count


def _encode(
    loaded: _Loaded, order: Sequence[int], settings: DataSettings, encode: Encode
) -> tuple[list[tuple[Example, EncodedExample]], int]:
    """Encode in the given order up to the limit; also return how many were too short."""
    kept: list[tuple[Example, EncodedExample]] = []
    too_short = 0
    for position in order:
        if len(kept) == loaded.settings.limit:
            break
        example = loaded.corpus.examples[position]
        try:
            encoded = None if example.is_blank else encode(example)
        except DataError as error:
            place = f"{loaded.settings.name}, example {position + 1}"
            raise DataError(f"{place}: {error.message}", hint=error.hint) from error
        if (
            encoded is None
            or len(encoded.input_ids) < settings.minimum_tokens
            or not any(encoded.answer_mask)
        ):
            too_short += 1
        else:
            kept.append((example, encoded))
    return kept, too_short


def _num_held_out(num_examples: int, share: float) -> int:
    if share <= 0:
        return 0
    wanted = int(num_examples * share)
    if num_examples >= SMALLEST_SET_HELD_OUT:
        wanted = max(wanted, 1)
    return min(wanted, num_examples - 1)


def _reasons(too_short: int, duplicates: int, overlapping: int) -> str:
    counts = {"too short": too_short, "repeated": duplicates, "found in forget text": overlapping}
    return ", ".join(f"{number} {reason}" for reason, number in counts.items() if number) or "it is empty"


def _remarks(count: CorpusCount, settings: DataSettings) -> list[str]:
    remarks = []
    used = count.training + count.held_out
    if 2 * count.cut > used:
        remarks.append(
            f"{count.name}: {count.cut} of {used} examples were cut at {settings.maximum_tokens} tokens; "
            "split long texts so that nothing is lost"
        )
    if settings.holdout_share > 0 and not count.held_out:
        remarks.append(f"{count.name}: {used} examples are too few to hold one out for evaluation")
    return remarks
