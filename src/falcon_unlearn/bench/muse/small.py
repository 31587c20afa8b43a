"""A MUSE-News of the size that two processor cores train on, in the same form as the whole.

The forget set are the articles that the first VerbMem samples quote; retain and holdout articles come from
one random split of other news, so that a model that never saw any of them finds them equally easy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from falcon_unlearn.bench.muse.data import MuseData
from falcon_unlearn.bench.muse.dedupe import deduplicate
from falcon_unlearn.bench.muse.matching import included_questions
from falcon_unlearn.bench.muse.verbatim import SEPARATOR, Locator
from falcon_unlearn.errors import DataError, UsageError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.examples import EncodedExample

TRAINING_TOKENS = 512
"""Chunks of 512 tokens instead of the 2048 of MUSE: attention over them is cheaper."""
MEMBERSHIP_TOKENS = 256

_STAND_IN = "Retain and holdout texts are stand-ins: {}. These are not MUSE results."
_NO_RETAIN_QUESTIONS = "the articles they ask about are not among the retain articles of this tier"
_OFFICIAL = ("raw/retain1", "raw/retain2", "raw/holdout")


@dataclass(frozen=True)
class Tier:
    """State one size."""

    name: str
    num_samples: int
    """VerbMem samples, counted from the first; the forget set are the articles they quote."""
    num_retain: int
    """Articles of retain1, and as many of retain2."""


TIERS = {tier.name: tier for tier in (Tier("M-S", 20, 30), Tier("M-M", 40, 60))}


def small_muse(data: MuseData, tier: Tier | str, *, seed: int = 0) -> MuseData:
    """Cut MUSE-News down to a tier.

    Args:
        data: News, with `raw/forget`, VerbMem, and other articles: `raw/other_news`, or the official retain
            and holdout texts, which are then pooled and split anew.
        tier: `M-S`, `M-M`, or sizes of one's own.
        seed: Decides which articles are retain1, retain2 and holdout.

    Raises:
        UsageError: There is no such tier.
        DataError: A needed piece is absent, a sample is not in the forget set, or too few articles are left.
    """
    tier = _tier(tier)
    forget = data.require("raw/forget")
    chosen = quoted_articles(data, tier.num_samples)
    pool_name, pool = _pool(data)
    clean = deduplicate(pool, forget)
    retain1, retain2, holdout = _split(clean.articles, tier, seed)
    texts = {
        "raw/forget": tuple(forget[at] for at in chosen),
        "raw/retain1": retain1,
        "raw/retain2": retain2,
        "raw/holdout": holdout,
    }
    questions = {name: rows for name, rows in data.questions.items() if name.startswith("knowmem/forget")}
    if "knowmem/forget_qa" in questions:
        found = included_questions(questions["knowmem/forget_qa"], forget, chosen)
        questions["knowmem/forget_qa"] = found
    return MuseData(
        corpus=data.corpus,
        source=data.source,
        texts=texts,
        questions=questions,
        verbatim=data.verbatim[: tier.num_samples],
        missing=dict.fromkeys(("knowmem/retain_qa", "knowmem/retain_qa_icl"), _NO_RETAIN_QUESTIONS),
        notes=(*data.notes, _STAND_IN.format(f"{pool_name}, {clean.counts.describe()}")),
        files=data.files,
        setting={
            "corpus": data.corpus,
            "tier": tier.name,
            "split_seed": str(seed),
            "retain_source": pool_name,
            "articles": " + ".join(
                f"{len(rows)} {name.removeprefix('raw/')}" for name, rows in texts.items()
            ),
            "training_tokens": str(TRAINING_TOKENS),
        },
        membership_tokens=MEMBERSHIP_TOKENS,
    )


def quoted_articles(data: MuseData, num_samples: int) -> tuple[int, ...]:
    """Return the positions of all articles that the first VerbMem samples quote, in file order.

    A sample of about a thousand tokens mostly runs over two or three articles. All are needed: a model that
    has not seen the whole passage cannot have memorised it.

    Raises:
        DataError: There are fewer samples, or one is not in the forget set.
    """
    if not 1 <= num_samples <= len(data.verbatim):
        raise DataError(
            f"VerbMem samples: got {num_samples}, {data.source} has {len(data.verbatim)}",
            hint="verbmem/forget.json holds them; choose at most as many",
        )
    locator = Locator(data.require("raw/forget"))
    chosen: set[int] = set()
    for number, sample in enumerate(data.verbatim[:num_samples]):
        place = locator.find(sample)
        if place is None:
            raise DataError(
                f"verbmem/forget, sample {number} is not in raw/forget",
                hint="both files must be of the same corpus and release",
            )
        chosen.update(range(place.first, place.last + 1))
    return tuple(at for at in sorted(chosen) if data.texts["raw/forget"][at].strip())


def target_texts(data: MuseData) -> dict[str, tuple[str, ...]]:
    """Return what the target model is trained on: forget and both retain sets."""
    return {"raw/forget": data.require("raw/forget")} | retain_texts(data)


def retain_texts(data: MuseData) -> dict[str, tuple[str, ...]]:
    """Return what the retrained model is trained on: both retain sets."""
    return {name: data.require(name) for name in ("raw/retain1", "raw/retain2")}


def training_chunks(
    subject: Subject, texts: Sequence[str], *, tokens: int = TRAINING_TOKENS
) -> list[EncodedExample]:
    """Cut the joined texts into chunks of at most `tokens` tokens, all of them to be learnt.

    Joining first keeps neighbouring articles together, as VerbMem samples quote them. Each chunk starts with
    what the tokenizer puts in front of a text.

    Raises:
        DataError: The texts hold no token.
    """
    prefix = tuple(subject.encode(""))
    body = plain_ids(subject, SEPARATOR.join(text for text in texts if text.strip()))
    room = tokens - len(prefix)
    if not body or room < 1:
        raise DataError(f"{len(texts)} texts give no chunk of {tokens} tokens", hint="give longer texts")
    parts = [prefix + body[start : start + room] for start in range(0, len(body), room)]
    return [
        EncodedExample(
            input_ids=ids,
            answer_mask=(True,) * len(ids),
            text=subject.tokenizer.decode(ids, skip_special_tokens=True),
            was_cut=False,
        )
        for ids in parts
        if len(ids) > 1
    ]


def plain_ids(subject: Subject, text: str) -> tuple[int, ...]:
    """Tokenise without anything in front or behind, however long the text is."""
    return tuple(subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _tier(tier: Tier | str) -> Tier:
    if isinstance(tier, Tier):
        return tier
    if tier not in TIERS:
        raise UsageError(f"tier: got {tier!r}", hint=f"allowed: {', '.join(TIERS)}")
    return TIERS[tier]


def _pool(data: MuseData) -> tuple[str, tuple[str, ...]]:
    if "raw/other_news" in data.texts:
        return "raw/other_news", data.texts["raw/other_news"]
    return " + ".join(_OFFICIAL), tuple(text for name in _OFFICIAL for text in data.require(name))


def _split(
    articles: Sequence[str], tier: Tier, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if len(articles) < 2 * tier.num_retain + 1:
        raise DataError(
            f"tier {tier.name} needs {2 * tier.num_retain} retain articles and a holdout, "
            f"{len(articles)} are left after de-duplication",
            hint="give more articles, or a smaller tier",
        )
    order = list(range(len(articles)))
    random.Random(f"{seed}:muse").shuffle(order)
    bounds = (0, tier.num_retain, 2 * tier.num_retain, len(articles))
    first, second, third = (
        tuple(articles[at] for at in sorted(order[start:stop])) for start, stop in pairwise(bounds)
    )
    return first, second, third
