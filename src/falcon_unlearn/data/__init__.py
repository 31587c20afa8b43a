"""Read, check and order the texts to forget and to keep. Needs neither torch nor a tokenizer."""

from __future__ import annotations

from falcon_unlearn.data.batches import BatchPlan, StepBatch, plan_batches
from falcon_unlearn.data.corpora import Corpus, PreparedData, prepare_corpora
from falcon_unlearn.data.sources import LoadedCorpus, load_examples, make_corpus

__all__ = [
    "BatchPlan",
    "Corpus",
    "LoadedCorpus",
    "PreparedData",
    "StepBatch",
    "load_examples",
    "make_corpus",
    "plan_batches",
    "prepare_corpora",
]
