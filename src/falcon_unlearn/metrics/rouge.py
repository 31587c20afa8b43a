"""ROUGE as the public benchmarks compute it: the rouge-score package with the Porter stemmer on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rouge_score.rouge_scorer import RougeScorer


@dataclass(frozen=True)
class RougeScores:
    """Hold the three numbers that open-unlearning logs; TOFU averages L recall, MUSE L F1."""

    rouge_1_recall: float
    rouge_l_recall: float
    rouge_l_f1: float


def rouge_scores(ground_truth: str, generation: str, *, use_stemmer: bool = True) -> RougeScores:
    """Compare a generation with the true text, both without markers and surrounding blanks.

    open-unlearning and TOFU stem, the original MUSE code does not (`use_stemmer=False`). Letters outside
    ASCII do not count.
    """
    scores = _scorer(use_stemmer).score(ground_truth, generation)
    return RougeScores(
        rouge_1_recall=float(scores["rouge1"].recall),
        rouge_l_recall=float(scores["rougeL"].recall),
        rouge_l_f1=float(scores["rougeL"].fmeasure),
    )


@cache
def _scorer(use_stemmer: bool) -> RougeScorer:
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=use_stemmer)
