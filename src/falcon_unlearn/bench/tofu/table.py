"""TOFU as a table of methods needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_unlearn.bench.records import BenchResult, Gate
from falcon_unlearn.bench.table import Role
from falcon_unlearn.bench.tofu.data import TofuData, forget_rows, question_examples, retained_rows
from falcon_unlearn.bench.tofu.evaluate import evaluate_tofu
from falcon_unlearn.bench.tofu.gates import tofu_gates
from falcon_unlearn.bench.tofu.settings import TofuSetting
from falcon_unlearn.bench.tofu.tuning import TuningAuthors, answer_probabilities
from falcon_unlearn.bench.tuning import Knowledge, Overrides
from falcon_unlearn.bench.unlearning import TrainingSets
from falcon_unlearn.events import EventSink
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.models.access import LoadedModel


@dataclass(frozen=True)
class TofuBenchmark:
    """Answer what a table asks."""

    data: TofuData
    setting: TofuSetting
    retain_rows: int | None = None
    """Retain questions to score, instead of the setting's number."""

    @property
    def data_settings(self) -> Mapping[str, Any]:
        """No settings of its own: questions are worded the default way."""
        return {}

    @property
    def training_settings(self) -> Overrides:
        """No settings of its own: the shared ones were chosen for rows this short."""
        return {}

    def training(self) -> TrainingSets:
        """Return the rows of the forget split and of the retained authors."""
        return TrainingSets(
            question_examples(forget_rows(self.data, self.setting)),
            question_examples(retained_rows(self.data, self.setting)),
        )

    def tuning(self) -> TrainingSets:
        """Return other authors that the target knows."""
        authors = TuningAuthors.of(self.data, self.setting)
        return TrainingSets(question_examples(authors.forget), question_examples(authors.retain))

    def knowledge(self, loaded: LoadedModel) -> Knowledge:
        """Measure answer probabilities on the tuning authors."""
        return answer_probabilities(loaded, TuningAuthors.of(self.data, self.setting))

    def evaluate(
        self, loaded: LoadedModel, role: Any, label: str, retain_log: Path | None, sink: EventSink
    ) -> tuple[BenchResult, Mapping[str, Any]]:
        """Score a model on all question sets."""
        result, log = evaluate_tofu(
            loaded,
            self.data,
            self.setting,
            retain_log=None if retain_log is None else read_log(retain_log),
            sink=sink,
            retain_rows=self.retain_rows,
            role=role,
            label=label,
        )
        return result, log.entries

    def gates(self, rows: Mapping[Role, BenchResult]) -> list[Gate]:
        """Return G1 to G5."""
        return tofu_gates(rows["target"], rows["retain"], rows.get("retain_replicate"), rows.get("base"))
