"""C3: can the texts of the forget set be told from texts that no model saw?

Scores are those of `metrics.membership`: a higher one means less likely seen. AUC here is the chance that a
holdout text scores above a forget text: 1 for a model that remembers, about one half for one that never saw
them. MUSE counts from the other end; PrivLeak is computed in its orientation.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from falcon_unlearn.bench.muse.data import Corpus, MuseData
from falcon_unlearn.bench.muse.small import plain_ids
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.linalg.intervals import Estimate, percentile_interval
from falcon_unlearn.metrics.auc import membership_auc, resampled_aucs
from falcon_unlearn.metrics.membership import loss_score, min_k_score, privleak, zlib_score
from falcon_unlearn.metrics.open_unlearning_log import read_log

MIN_K = 0.4
LONGEST_TEXT = 2048

Ids = tuple[int, ...]


@dataclass(frozen=True)
class MembershipTexts:
    """Hold equally many forget and holdout texts as tokens, and the article that each comes from."""

    forget: tuple[Ids, ...]
    holdout: tuple[Ids, ...]
    forget_owners: tuple[int, ...]
    holdout_owners: tuple[int, ...]
    description: str

    @property
    def digest(self) -> str:
        """Identify the texts: scores of two models pair only on the same ones."""
        return hashlib.sha256(repr((self.forget, self.holdout)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class MembershipScores:
    """Hold the scores of one model, text by text."""

    forget: tuple[float, ...]
    """Min-K %."""
    holdout: tuple[float, ...]
    forget_loss: tuple[float, ...]
    holdout_loss: tuple[float, ...]
    forget_zlib: tuple[float, ...]
    holdout_zlib: tuple[float, ...]

    @property
    def auc(self) -> float:
        """Min-K AUC."""
        return membership_auc(self.forget, self.holdout)


@dataclass(frozen=True)
class PrivacyReference:
    """Hold what the retrained model scores on the same texts: the zero of PrivLeak."""

    auc: float
    """Chance that a holdout text scores above a forget text."""
    forget: tuple[float, ...] = ()
    holdout: tuple[float, ...] = ()
    digest: str = ""
    """Of the texts; empty if unknown."""


PUBLISHED_REFERENCES: dict[Corpus, PrivacyReference] = {
    "News": PrivacyReference(1.0 - 0.4772),
    "Books": PrivacyReference(1.0 - 0.5393),
}
"""The retrained models of MUSE (Llama-2-7B, ICLM-7B) on the official texts; for these base models only."""


def read_reference(path: Path) -> PrivacyReference:
    """Take the reference from the log of a retrained model (`*_EVAL.json`, or its `*_SUMMARY.json`).

    Raises:
        DataError: The file is no log, or has no Min-K attack.
    """
    log = read_log(path)
    name = log.find("mia_min_k")
    auc = log.published(name) if name is not None else None
    if name is None or auc is None:
        raise DataError(
            f"{path.name}: no mia_min_k, which PrivLeak refers to", hint="evaluate the retrained model first"
        )
    if not log.has_samples(name, "forget"):
        return PrivacyReference(auc)
    forget, holdout = (log.column(name, "score", side).values for side in ("forget", "holdout"))
    digest = log.entries[name].get("texts", "")
    return PrivacyReference(
        membership_auc(forget, holdout), tuple(forget.tolist()), tuple(holdout.tolist()), str(digest)
    )


def membership_texts(subject: Subject, data: MuseData, *, seed: int = 0) -> MembershipTexts:
    """Prepare the official texts, or equally long chunks of forget and holdout articles.

    Raises:
        DataError: The texts are absent or too short.
    """
    size = data.membership_tokens
    prefix = tuple(subject.encode(""))
    if size is None:
        limit = min(LONGEST_TEXT, subject.maximum_tokens)
        forget, holdout = (
            tuple((*prefix, *plain_ids(subject, text))[:limit] for text in data.require(name))
            for name in ("privleak/forget", "privleak/holdout")
        )
        description = f"{len(forget)} + {len(holdout)} official texts, at most {limit} tokens"
        owners = tuple(range(len(forget))), tuple(range(len(holdout)))
        return MembershipTexts(forget, holdout, *owners, description)
    sides = [_chunks(subject, data.require(name), prefix, size) for name in ("raw/forget", "raw/holdout")]
    count = min(len(side) for side in sides)
    if count == 0:
        raise DataError(
            f"forget and holdout articles give {len(sides[0])} and {len(sides[1])} chunks of {size} tokens",
            hint="PrivLeak needs one of each at least; give longer or more articles",
        )
    chance = random.Random(f"{seed}:membership")
    chosen = [[side[at] for at in sorted(chance.sample(range(len(side)), count))] for side in sides]
    return MembershipTexts(
        forget=tuple(ids for _, ids in chosen[0]),
        holdout=tuple(ids for _, ids in chosen[1]),
        forget_owners=tuple(owner for owner, _ in chosen[0]),
        holdout_owners=tuple(owner for owner, _ in chosen[1]),
        description=f"{count} + {count} chunks of {size} tokens",
    )


def membership_scores(subject: Subject, texts: MembershipTexts, *, share: float = MIN_K) -> MembershipScores:
    """Score all texts; the first token of each is context.

    All tokens count, as in the original; open-unlearning leaves out the last.
    """
    everything = [*texts.forget, *texts.holdout]
    scored = [
        score.token_log_probabilities for score in subject.score([(ids[:1], ids[1:]) for ids in everything])
    ]
    min_k = [min_k_score(values, share=share) for values in scored]
    losses = [loss_score(values) for values in scored]
    zlibs = [
        zlib_score(loss, subject.tokenizer.decode(ids, skip_special_tokens=True))
        for loss, ids in zip(losses, everything, strict=True)
    ]
    cut = len(texts.forget)
    return MembershipScores(
        forget=tuple(min_k[:cut]),
        holdout=tuple(min_k[cut:]),
        forget_loss=tuple(losses[:cut]),
        holdout_loss=tuple(losses[cut:]),
        forget_zlib=tuple(zlibs[:cut]),
        holdout_zlib=tuple(zlibs[cut:]),
    )


def muse_privleak(auc: float, reference_auc: float) -> float:
    """Return PrivLeak in percent, -100 untouched, 0 like the retrained model (Shi et al. 2024).

    Args:
        auc: Chance that a holdout text scores above a forget text.
        reference_auc: The same of the retrained model.

    Raises:
        DataError: The reference tells all texts apart, so there is nothing to divide by.
    """
    return privleak(1.0 - auc, 1.0 - reference_auc, orientation="muse")


def auc_estimate(
    scores: MembershipScores, texts: MembershipTexts, generator: np.random.Generator, resamples: int
) -> Estimate:
    """Return the AUC with a bootstrap interval over articles: chunks of one article are not independent."""
    forget, holdout = np.asarray(scores.forget), np.asarray(scores.holdout)
    replicates = resampled_aucs(forget, holdout, _resampled(texts, generator, resamples))
    return Estimate(scores.auc, *percentile_interval(replicates))


def privleak_estimate(
    scores: MembershipScores,
    reference: PrivacyReference,
    texts: MembershipTexts,
    generator: np.random.Generator,
    resamples: int,
) -> Estimate:
    """Return PrivLeak with a bootstrap interval over articles.

    Where the reference has scores of its own, each resample takes the same texts of both models; else its
    AUC is a constant and its error is not in the interval.

    Raises:
        DataError: The reference was scored on other texts, or tells all texts apart.
    """
    paired = bool(reference.forget)
    if paired:
        _check_same_texts(scores, reference, texts)
    value = muse_privleak(scores.auc, reference.auc)
    forget, holdout = np.asarray(scores.forget), np.asarray(scores.holdout)
    draws = _resampled(texts, generator, resamples)
    found = resampled_aucs(forget, holdout, draws)
    expected = np.full(len(draws), reference.auc)
    if paired:
        expected = resampled_aucs(reference.forget, reference.holdout, draws)
    replicates = [
        muse_privleak(float(own), float(other))
        for own, other in zip(found, expected, strict=True)
        if other < 1.0  # else nothing to divide by
    ]
    return Estimate(value, *percentile_interval(replicates))


def _check_same_texts(scores: MembershipScores, reference: PrivacyReference, texts: MembershipTexts) -> None:
    same_size = (len(scores.forget), len(scores.holdout)) == (len(reference.forget), len(reference.holdout))
    if not same_size or (reference.digest and reference.digest != texts.digest):
        raise DataError(
            f"the reference scored {len(reference.forget)} + {len(reference.holdout)} other texts than these "
            f"{len(scores.forget)} + {len(scores.holdout)}",
            hint="evaluate the retrained model with the same data, tier, seed and tokenizer",
        )


def _chunks(subject: Subject, articles: Sequence[str], prefix: Ids, size: int) -> list[tuple[int, Ids]]:
    """Cut each article into whole chunks, with the article's position; what is left over is not used."""
    room = size - len(prefix)
    chunks: list[tuple[int, Ids]] = []
    for owner, article in enumerate(articles):
        ids = plain_ids(subject, article)
        starts = range(0, len(ids) - room + 1, room)
        chunks += [(owner, prefix + ids[start : start + room]) for start in starts]
    return chunks


def _resampled(
    texts: MembershipTexts, generator: np.random.Generator, resamples: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return positions of forget and holdout texts whose articles were drawn with replacement."""
    sides = [_by_owner(texts.forget_owners), _by_owner(texts.holdout_owners)]
    drawn = []
    for _ in range(resamples):
        forget, holdout = (
            np.concatenate([groups[at] for at in generator.integers(0, len(groups), size=len(groups))])
            for groups in sides
        )
        drawn.append((forget, holdout))
    return drawn


def _by_owner(owners: Sequence[int]) -> list[NDArray[np.int64]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for position, owner in enumerate(owners):
        groups[owner].append(position)
    return [np.asarray(group, dtype=np.int64) for group in groups.values()]
