"""Write per-sample values in the layout of open-unlearning's `*_EVAL.json`, so that its tools read them too.

A log quotes the data. It stays with the user and is not published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from falcon_unlearn.bench.muse.criteria import AnswerScore, Generated, VerbatimScore
from falcon_unlearn.bench.muse.privacy import MembershipScores
from falcon_unlearn.metrics.auc import membership_auc

Log = dict[str, Any]


def verbatim_entries(scores: Sequence[VerbatimScore]) -> Log:
    """Return the entries of C1."""
    return {
        "forget_verbmem_ROUGE": rouge_entry([score.generated for score in scores]),
        "forget_verbmem_Prob": probability_entry([score.mean_log_probability for score in scores]),
        "exact_memorization": score_entry([score.exact_memorisation for score in scores]),
        "extraction_strength": score_entry([score.extraction_strength for score in scores]),
    }


def knowledge_entries(name: str, scores: Sequence[AnswerScore]) -> Log:
    """Return the entries of KnowMem; `name` is `forget` or `retain`."""
    return {
        f"{name}_knowmem_ROUGE": rouge_entry([score.generated for score in scores]),
        f"{name}_knowmem_Prob": probability_entry([score.mean_log_probability for score in scores]),
    }


def membership_entries(scores: MembershipScores, digest: str) -> Log:
    """Return the attacks; `texts` inside them identifies the texts, so that references can be checked."""
    attacks = {
        "mia_min_k": (scores.forget, scores.holdout),
        "mia_loss": (scores.forget_loss, scores.holdout_loss),
        "mia_zlib": (scores.forget_zlib, scores.holdout_zlib),
    }
    entries: Log = {}
    for name, (forget, holdout) in attacks.items():
        auc = membership_auc(forget, holdout)
        entries[name] = {
            "forget": score_entry(forget),
            "holdout": score_entry(holdout),
            "auc": auc,
            "agg_value": auc,
            "texts": digest,
        }
    return entries


def rouge_entry(samples: Sequence[Generated]) -> Log:
    """Return a ROUGE metric; its aggregate is L F1, as on all of MUSE."""
    rows = [
        {
            "rouge1_recall": sample.rouge.rouge_1_recall,
            "rougeL_f1": sample.rouge.rouge_l_f1,
            "rougeL_recall": sample.rouge.rouge_l_recall,
            "input": sample.prompt,
            "ground_truth": sample.truth,
            "generation": sample.generation,
        }
        for sample in samples
    ]
    return _entry(rows, [sample.rouge.rouge_l_f1 for sample in samples])


def probability_entry(mean_log_probabilities: Sequence[float]) -> Log:
    """Return a probability metric from log-probabilities per token."""
    rows = [{"prob": math.exp(value), "avg_loss": -value} for value in mean_log_probabilities]
    return _entry(rows, [row["prob"] for row in rows])


def score_entry(values: Sequence[float]) -> Log:
    """Return a metric of one number per sample."""
    return _entry([{"score": value} for value in values], values)


def _entry(rows: Sequence[Log], values: Sequence[float]) -> Log:
    return {
        "agg_value": sum(values) / len(values),
        "value_by_index": {str(index): row for index, row in enumerate(rows)},
    }
