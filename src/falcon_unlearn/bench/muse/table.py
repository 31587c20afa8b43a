"""A small MUSE as a table of methods needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from falcon_unlearn.bench.muse.data import MuseData
from falcon_unlearn.bench.muse.evaluate import NO_REFERENCE, MuseSettings, evaluate_muse
from falcon_unlearn.bench.muse.gates import muse_gates
from falcon_unlearn.bench.muse.privacy import read_reference
from falcon_unlearn.bench.muse.small import TRAINING_TOKENS, training_chunks
from falcon_unlearn.bench.muse.tuning import TuningTexts, text_knowledge
from falcon_unlearn.bench.records import BenchResult, Gate
from falcon_unlearn.bench.table import Role
from falcon_unlearn.bench.tuning import Knowledge, Overrides
from falcon_unlearn.bench.unlearning import TrainingSets
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.events import EventSink
from falcon_unlearn.examples import Example
from falcon_unlearn.models.access import LoadedModel
from falcon_unlearn.models.head import contiguous_head_input


@dataclass(frozen=True)
class MuseBenchmark:
    """Answer what a table asks."""

    data: MuseData
    tokens: Subject
    """The tokenizer; no model is needed."""
    settings: MuseSettings = field(default_factory=MuseSettings)

    @property
    def data_settings(self) -> Mapping[str, Any]:
        """Chunks as long as the target learnt them, all tokens of them."""
        return {"maximum_tokens": TRAINING_TOKENS, "loss_on": "all"}

    @property
    def training_settings(self) -> Overrides:
        """Half as many texts per step as the shared settings: they are four times as long."""
        return {"train.batch_size": 4}

    def training(self) -> TrainingSets:
        """Return the forget articles and retain1; retain2 is only scored."""
        return self.sets(self.data.require("raw/forget"), self.data.require("raw/retain1"))

    def tuning(self) -> TrainingSets:
        """Return the halves of retain1."""
        texts = TuningTexts.of(self.tokens, self.data, seed=self.settings.seed)
        return self.sets(texts.forget, texts.retain)

    def knowledge(self, loaded: LoadedModel) -> Knowledge:
        """Measure token probabilities on the tuning texts."""
        subject = Subject(loaded.model, loaded.tokenizer, self.settings.batch_tokens)
        with evaluation_mode(loaded.model):
            return text_knowledge(subject, TuningTexts.of(subject, self.data, seed=self.settings.seed))

    def evaluate(
        self, loaded: LoadedModel, role: Any, label: str, retain_log: Path | None, sink: EventSink
    ) -> tuple[BenchResult, Mapping[str, Any]]:
        """Measure C1 to C4."""
        return self.evaluate_on(self.data, loaded, role, label, retain_log, sink)

    def evaluate_on(
        self,
        data: MuseData,
        loaded: LoadedModel,
        role: Any,
        label: str,
        retain_log: Path | None,
        sink: EventSink,
    ) -> tuple[BenchResult, Mapping[str, Any]]:
        """Measure on other data than the table's, such as a point of a curve."""
        reference = NO_REFERENCE if retain_log is None else read_reference(retain_log)
        with evaluation_mode(loaded.model), contiguous_head_input(loaded.model):
            return evaluate_muse(
                loaded, data, self.settings, reference=reference, role=role, label=label, sink=sink
            )

    def gates(self, rows: Mapping[Role, BenchResult]) -> list[Gate]:
        """Return the conditions on the reference models."""
        return muse_gates(
            rows["target"], rows["retain"], replicate=rows.get("retain_replicate"), base=rows.get("base")
        )

    def sets(self, forget: Sequence[str], retain: Sequence[str]) -> TrainingSets:
        """Return chunks of articles as training takes them."""
        return TrainingSets(self._examples(forget), self._examples(retain))

    def _examples(self, articles: Sequence[str]) -> tuple[Example, ...]:
        return tuple(Example.of_text(chunk.text) for chunk in training_chunks(self.tokens, articles))
