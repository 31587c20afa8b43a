"""Carry out one audit: models, facts and attacks in, the record and its item rows out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from falcon_unlearn._version import __version__
from falcon_unlearn.audit.base import FORMATS, Attack, AttackData, Format
from falcon_unlearn.audit.baselines import baseline, no_attack_summary
from falcon_unlearn.audit.checks import check_model
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.frame import Frame
from falcon_unlearn.audit.gates import check_gates
from falcon_unlearn.audit.keeping import Memory, facts_key
from falcon_unlearn.audit.membership import (
    Samples,
    TextScores,
    fact_samples,
    memorisation_result,
    score_texts,
)
from falcon_unlearn.audit.models import AuditedModel, OpenModel, opened
from falcon_unlearn.audit.runner import Runner, Sets
from falcon_unlearn.audit.scoring import (
    MOST_NEW_TOKENS,
    ScoringSettings,
    answer_budget,
    favourite_letter,
)
from falcon_unlearn.audit.summarise import (
    AttackRun,
    attack_summary,
    control_summaries,
    with_holm,
    worst_case,
)
from falcon_unlearn.audit.tables import Questions, Table
from falcon_unlearn.audit.verdict import Evidence, decide, decide_format
from falcon_unlearn.audit.warnings import Findings, find_warnings
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.errors import PrerequisiteError
from falcon_unlearn.events import EventSink, Notice, Progress, ignore_events
from falcon_unlearn.results import EnvironmentResult
from falcon_unlearn.results_audit import (
    NO_ATTACK,
    AttackSummary,
    AuditedModelRecord,
    AuditResult,
    AuditSetRecord,
    AuditWarning,
    Baseline,
    ItemRow,
    MemorisationResult,
    ModelRole,
)

CONSTANT_LETTER = 0.95
"""Share of orders in which one letter is chosen, from which letters are not asked."""
Originals = Mapping[ModelRole, Callable[[], Mapping[str, Tensor]]]


@dataclass(frozen=True)
class AuditInputs:
    """Hold what an audit is about."""

    models: Mapping[ModelRole, AuditedModel]
    """`original`, `unlearned` and, where there is one, `null`."""
    sets: Sets
    data: AttackData
    attacks: tuple[Attack, ...]
    settings: AuditSettings
    set_records: tuple[AuditSetRecord, ...]
    originals: Originals
    """Per model: gives the original's tensors where they differ from that model's."""
    batch_tokens: int = 4096


@dataclass(frozen=True)
class Audit:
    """Hold the record and the rows it was made from."""

    result: AuditResult
    rows: tuple[ItemRow, ...]


def run_audit(
    inputs: AuditInputs,
    *,
    memory: Memory,
    environment: Callable[[], EnvironmentResult],
    sink: EventSink = ignore_events,
) -> Audit:
    """Ask all models as they are, attack the unlearned one, repeat what was chosen on the others, decide.

    Args:
        inputs: Models, facts, attacks and limits.
        memory: Keeps finished scores, so that an interrupted audit goes on.
        environment: Describes the machine.
        sink: Receives progress.

    Raises:
        FalconError: A model or the facts cannot be used, or an attack left a model changed.
    """
    started = time.perf_counter()
    work = _Work(inputs, memory, sink)
    work.baselines()
    work.attack()
    work.repeat()
    return Audit(work.result(environment(), started), tuple(work.runner.rows))


class _Work:
    def __init__(self, inputs: AuditInputs, memory: Memory, sink: EventSink) -> None:
        settings = inputs.settings
        self.inputs = inputs
        self.sink = sink
        self.scoring = ScoringSettings(
            settings.chat_template, settings.letter_orders, settings.maximum_new_tokens or MOST_NEW_TOKENS
        )
        self.runner = Runner(inputs.sets, inputs.data, settings, self.scoring, memory, inputs.originals, sink)
        self.records: dict[ModelRole, AuditedModelRecord] = {}
        self.runs: list[AttackRun] = []
        self.skipped: list[str] = []
        self.technical: list[AuditWarning] = []
        self.formats: list[Format] = []
        self.samples: Samples | None = None
        self.text_scores: dict[ModelRole, TextScores] = {}

    @property
    def roles(self) -> list[ModelRole]:
        """Return the models in the order in which they are asked."""
        order: tuple[ModelRole, ...] = ("original", "null", "unlearned")
        return [role for role in order if role in self.inputs.models]

    def baselines(self) -> None:
        """Ask every model as it is, and keep the formats in which the original knows something."""
        formats = self.inputs.settings.formats
        for role in self.roles:
            with opened(self.inputs.models[role], batch_tokens=self.inputs.batch_tokens) as model:
                self.records[role] = model.record
                if role == "original":
                    self._fit_answers(model)
                    formats = self._worth_asking(model)
                self.runner.baseline(model, formats)
                self._measure_texts(role, model)
                if role == "unlearned":
                    facts = self.inputs.sets.selection.facts
                    self.technical = check_model(model.subject, facts, self.scoring)
        entries = self._baselines(self._frame())
        self.formats = [entry.format for entry in entries if entry.informative]
        self.skipped += [
            f"{entry.format} format under attacks: the original knows no more than the null there"
            for entry in entries
            if not entry.informative
        ]

    def _fit_answers(self, original: OpenModel) -> None:
        """Let free answers be as long as the facts need, where the settings do not say it."""
        if self.inputs.settings.maximum_new_tokens is None:
            sets = self.inputs.sets
            facts = [fact for part in sets.reported for fact in part.facts]
            budget = answer_budget(facts, original.subject)
            self.scoring = self.runner.scoring = replace(self.scoring, maximum_new_tokens=budget)

    def _worth_asking(self, original: OpenModel) -> tuple[Format, ...]:
        """Leave letters out where the original names one letter whatever is asked: they cost most."""
        formats = self.inputs.settings.formats
        if "letter" not in formats or len(formats) == 1:
            return formats
        scores = self.runner.selected(original, "letter")
        letter, share = favourite_letter(score.chosen for score in scores)
        if share < CONSTANT_LETTER:
            return formats
        self.skipped.append(
            f"letter format: the original answers {letter} in {share:.0%} of all orders of {len(scores)} "
            "selection facts, so letters measure nothing and were not asked any further"
        )
        return tuple(format for format in formats if format != "letter")

    def _measure_texts(self, role: ModelRole, model: OpenModel) -> None:
        """Measure memorisation on the texts of the first model, worded by its tokenizer."""
        if self.samples is None:
            self.samples = fact_samples(
                self.inputs.sets.forget.facts,
                seed=self.inputs.settings.seeds[0],
                chat_template=self.scoring.chat_template,
                tokenizer=model.subject.tokenizer,
            )
        self.text_scores[role] = score_texts(model.subject, self.samples)

    def _memorisation(self) -> MemorisationResult | None:
        if self.samples is None:
            return None
        return memorisation_result(self.samples, self.text_scores, seed=self.inputs.settings.seeds[0])

    def attack(self) -> None:
        """Attack the unlearned model."""
        attacks = self.inputs.attacks if self.formats else ()
        if attacks:
            self._fetch_original("unlearned")
        with opened(self.inputs.models["unlearned"], batch_tokens=self.inputs.batch_tokens) as model:
            for done, attack in enumerate(attacks):
                self._announce(done, attack, "unlearned")
                try:
                    run = self.runner.choose(model, attack, self.formats)
                except PrerequisiteError as error:
                    self.skipped.append(f"{attack.name}: {error.message}")
                    self.sink(Notice(message=self.skipped[-1], level="warning"))
                    continue
                if run.chosen:
                    self.runs.append(run)
                else:
                    self.skipped.append(f"{attack.name}: it has no variant for this model and these facts")

    def repeat(self) -> None:
        """Attack the other models in the variants chosen."""
        for number, role in enumerate(role for role in self.roles if role != "unlearned"):
            if not self.runs:
                return
            if any(run.attack.needs_original for run in self.runs):
                self._fetch_original(role)
            with opened(self.inputs.models[role], batch_tokens=self.inputs.batch_tokens) as model:
                for done, run in enumerate(self.runs):
                    self._announce(
                        len(self.inputs.attacks) + number * len(self.runs) + done, run.attack, role
                    )
                    self.runner.repeat(model, run)

    def result(self, environment: EnvironmentResult, started: float) -> AuditResult:
        """Summarise, decide and warn."""
        frame = self._frame()
        entries = self._baselines(frame)
        summaries = self._summaries(frame, entries)
        attacks = [summary for summary in summaries if summary.attack != NO_ATTACK]
        selection = self.inputs.sets.selection
        worst = [worst_case(frame, self.runs, attacks, format, selection) for format in self.formats]
        evidence = Evidence(
            tuple(entries),
            tuple(summary for summary in summaries if summary.counts),
            tuple(worst),
            frame.has_null,
            frame.settings,
        )
        verdict, reasons = decide(evidence)
        settings = self.inputs.settings
        memorisation = self._memorisation()
        findings = Findings(
            frame,
            tuple(entries),
            tuple(attacks),
            tuple(self.runs),
            tuple(self.records.values()),
            selection,
            memorisation,
        )
        warnings = [*self.technical, *find_warnings(findings)]
        return AuditResult(
            package_version=__version__,
            tier=settings.run_tier,
            seeds=list(settings.seeds),
            chat_template=settings.chat_template,
            null_source="model" if frame.has_null else "chance",
            models=list(self.records.values()),
            sets=list(self.inputs.set_records),
            settings=_plain_settings(settings) | {"maximum_new_tokens": self.scoring.maximum_new_tokens},
            baselines=entries,
            attacks=attacks,
            controls=[c for run in self.runs for c in control_summaries(frame, run, self.formats)],
            worst=worst,
            verdict=verdict,
            reasons=reasons,
            format_verdicts={entry.format: decide_format(evidence, entry.format) for entry in entries},
            warnings=sorted(warnings, key=lambda warning: warning.number),
            skipped=self.skipped,
            gates=check_gates(settings.gates, entries, worst),
            memorisation=memorisation,
            environment=environment,
            seconds=time.perf_counter() - started,
        )

    def _summaries(self, frame: Frame, entries: Sequence[Baseline]) -> list[AttackSummary]:
        informative = [entry for entry in entries if entry.informative]
        found = [no_attack_summary(frame, entry) for entry in informative]
        found += [attack_summary(frame, run, entry.format) for run in self.runs for entry in informative]
        return with_holm([summary for summary in found if summary is not None])

    def _frame(self) -> Frame:
        sets = self.inputs.sets
        return Frame(
            Table(self.runner.rows),
            sets.forget,
            sets.retain,
            sets.neighbour,
            self.inputs.settings,
            "null" in self.inputs.models,
        )

    def _baselines(self, frame: Frame) -> list[Baseline]:
        return [entry for format in FORMATS if (entry := baseline(frame, format)) is not None]

    def _fetch_original(self, role: ModelRole) -> None:
        """Compare a model with the original now, while neither is in memory; the result is kept."""
        give = self.inputs.originals.get(role)
        if give is not None:
            give()

    def _announce(self, done: int, attack: Attack, role: ModelRole) -> None:
        total = len(self.inputs.attacks) * len(self.roles)
        self.runner.progress = (done, total)
        self.sink(Progress(stage="audit", done=done, total=total, message=f"{role}: {attack.name}"))


def _plain_settings(settings: AuditSettings) -> dict[str, float | int | str | bool]:
    kept = ("items", "other_items", "delta", "alpha", "utility_loss")
    more = ("degenerate_rise", "least_removed", "resamples")
    plain = {name: getattr(settings, name) for name in (*kept, *more)}
    return plain | {"selection_items": settings.most_selection or "all"}


def set_record(questions: Sequence[Questions], source: str, attack: Sequence[Fact] = ()) -> AuditSetRecord:
    """Count the facts of one set: those asked, split by split, and those given to the attacker."""
    facts = [*attack, *(fact for part in questions for fact in part.facts)]
    counts = {part.split: len(part.facts) for part in questions}
    return AuditSetRecord(
        role=questions[0].set,
        source=source,
        sha256=facts_key(facts),
        facts=len(facts),
        clusters=len({fact.cluster for fact in facts}),
        attack=len(attack),
        selection=counts.get("selection", 0),
        report=counts.get("report", 0),
    )
