"""Run attacks on the models of an audit and collect one row per item.

The unlearned model comes first: each attack's variants are scored on the selection facts, and only a variant
that does better than those before it is scored on the report facts. Original and null are then scored under
the chosen variants only. All scores go through a journal, so that a killed audit goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn._version import __version__
from falcon_unlearn.audit.base import Attack, AttackContext, AttackData, Attacked, Format
from falcon_unlearn.audit.keeping import Memory, attack_key, facts_key, scoring_key
from falcon_unlearn.audit.models import ModelState, OpenModel, probe_logits
from falcon_unlearn.audit.scoring import PLAIN, Score, ScoringSettings, score
from falcon_unlearn.audit.statistics import exact_mcnemar
from falcon_unlearn.audit.summarise import DISCLOSURE, AttackRun, VariantInfo
from falcon_unlearn.audit.tables import Questions
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.errors import DataError
from falcon_unlearn.events import EventSink, Progress, ignore_events
from falcon_unlearn.results_audit import NO_ATTACK, ItemRow, ModelRole
from falcon_unlearn.runs import fingerprint

INACTIVE = "inactive"
"""Detail of a variant that did not change what the model computes."""
_NUM_PROBES = 2


@dataclass(frozen=True)
class Sets:
    """Hold the facts that are asked."""

    selection: Questions
    forget: Questions
    """Report facts."""
    retain: Questions
    neighbour: Questions | None = None

    @property
    def reported(self) -> list[Questions]:
        """Return the sets asked without attack."""
        return [s for s in (self.selection, self.forget, self.retain, self.neighbour) if s is not None]


@dataclass
class _Best:
    """Follow the best variant of one format."""

    variant: str | None = None
    value: float = -1.0
    destroys: bool = True


@dataclass
class Runner:
    """Score models under attacks."""

    sets: Sets
    data: AttackData
    settings: AuditSettings
    scoring: ScoringSettings
    memory: Memory
    originals: Mapping[ModelRole, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    """Per model: gives the original's tensors where they differ from that model's."""
    sink: EventSink = ignore_events
    rows: list[ItemRow] = field(default_factory=list)
    progress: tuple[int, int] = (0, 0)
    """Finished and planned attacks, for events."""
    _kept: set[str] = field(default_factory=set)
    _data_key: str = ""
    _replaying: bool = False

    def baseline(self, opened: OpenModel, formats: Sequence[Format]) -> None:
        """Score a model without attack on all sets."""
        for questions in self.sets.reported:
            for format in formats:
                self._scored(opened, NO_ATTACK, "", 0, PLAIN, questions, format)

    def selected(self, opened: OpenModel, format: Format) -> list[Score]:
        """Score a model without attack on the selection facts."""
        return self._scored(opened, NO_ATTACK, "", 0, PLAIN, self.sets.selection, format)

    def choose(self, opened: OpenModel, attack: Attack, formats: Sequence[Format]) -> AttackRun:
        """Attack the unlearned model, choose a variant per format on the selection facts, and score it.

        With several seeds the first one chooses; the others repeat the chosen variants.

        Raises:
            ModelError: The attack left the model changed.
        """
        started = time.perf_counter()
        first, *others = self.settings.seeds
        best: dict[Format, _Best] = {format: _Best() for format in formats}
        infos: dict[str, VariantInfo] = {}
        with closing(self._variants(opened, attack, first, infos, list(formats))) as variants:
            for attacked, key in variants:
                if attacked.control:
                    self._control(opened, attack, key, first, attacked, formats)
                    continue
                for format in formats:
                    if format in attacked.formats:
                        self._challenge(opened, attack, key, first, attacked, format, best[format])
        chosen = {format: state.variant for format, state in best.items() if state.variant is not None}
        destroys = {format: state.destroys for format, state in best.items() if state.variant is not None}
        run = AttackRun(attack, chosen, destroys, infos, (first, *others), 0.0)
        for seed in others:
            self._repeat(opened, run, seed, selection=True)
        seconds = self._seconds(opened, attack, time.perf_counter() - started)
        return AttackRun(attack, chosen, destroys, infos, run.seeds, seconds)

    def repeat(self, opened: OpenModel, run: AttackRun) -> None:
        """Attack another model in the same way and score the chosen variants."""
        for seed in run.seeds:
            self._repeat(opened, run, seed, selection=opened.role == "null")

    def _repeat(self, opened: OpenModel, run: AttackRun, seed: int, *, selection: bool) -> None:
        parts = [self.sets.forget, self.sets.retain, *([self.sets.selection] if selection else [])]
        plan = [dict(run.chosen), selection]
        with closing(self._variants(opened, run.attack, seed, {}, plan)) as variants:
            for attacked, key in variants:
                for format, variant in run.chosen.items():
                    for questions in parts if variant == attacked.variant else []:
                        self._scored(opened, run.attack.name, key, seed, attacked, questions, format)

    def _challenge(
        self,
        opened: OpenModel,
        attack: Attack,
        key: str,
        seed: int,
        attacked: Attacked,
        format: Format,
        best: _Best,
    ) -> None:
        """Score a variant on the selection facts, and on the others if nothing before was as good."""
        selected = self._scored(opened, attack.name, key, seed, attacked, self.sets.selection, format)
        value = sum(entry.value for entry in selected) / len(selected)
        if value <= best.value and not best.destroys:
            return
        retained = self._scored(opened, attack.name, key, seed, attacked, self.sets.retain, format)
        destroys = self._destroys(opened, retained, format)
        # A variant that keeps the model alive always beats one that does not.
        if (not destroys, value) <= (not best.destroys, best.value):
            return
        self._scored(opened, attack.name, key, seed, attacked, self.sets.forget, format)
        best.variant, best.value, best.destroys = attacked.variant, value, destroys

    def _destroys(self, opened: OpenModel, retained: Sequence[Score], format: Format) -> bool:
        """Tell whether the fall of retain accuracy is shown and exceeds the limit."""
        plain = self._scored(opened, NO_ATTACK, "", 0, PLAIN, self.sets.retain, format)
        before, after = [entry.value for entry in plain], [entry.value for entry in retained]
        fell = sum(before) - sum(after) > self.settings.utility_loss * sum(before)
        return fell and exact_mcnemar(before, after).p_value < self.settings.alpha

    def _control(
        self,
        opened: OpenModel,
        attack: Attack,
        key: str,
        seed: int,
        attacked: Attacked,
        formats: Sequence[Format],
    ) -> None:
        """Score a control in one format: option text if it can, since letters say nothing on many models."""
        usable = [format for format in formats if format in attacked.formats]
        for format in sorted(usable, key=lambda format: format != "text")[:1]:
            self._scored(opened, attack.name, key, seed, attacked, self.sets.forget, format)

    def _scored(
        self,
        opened: OpenModel,
        attack: str,
        attack_key: str,
        seed: int,
        attacked: Attacked,
        questions: Questions,
        format: Format,
    ) -> list[Score]:
        key = fingerprint(
            version=__version__,
            weights=opened.record.weights_sha256,
            tokenizer=opened.record.tokenizer_sha256,
            attack=attack_key,
            data=self._attack_data_key() if attack_key else "",
            seed=seed,
            variant=attacked.variant,
            facts=facts_key(questions.facts),
            scoring=scoring_key(self.scoring, [format]),
        )
        if self.memory.get(key) is None:
            if self._replaying:
                raise DataError(
                    f"the journal of the audit lacks scores of {attack} {attacked.variant}",
                    hint="remove it to compute everything again",
                )
            done, total = self.progress
            message = f"{opened.role}: {attack} {attacked.variant}, {questions.set} in {format} format"
            self.sink(Progress(stage="audit", done=done, total=total, message=message))
        scores = self.memory.scores(
            key, lambda: score(opened.subject, questions.facts, attacked, [format], self.scoring)
        )
        if (place := f"{opened.role}:{key}") not in self._kept:
            self._kept.add(place)
            self._keep(opened, attack, seed, attacked.variant, questions, scores)
        return scores

    def _keep(
        self,
        opened: OpenModel,
        attack: str,
        seed: int,
        variant: str,
        questions: Questions,
        scores: Sequence[Score],
    ) -> None:
        self.rows += [
            ItemRow(
                model=opened.role,
                attack=attack,
                variant=variant,
                seed=seed,
                format=entry.format,
                set=questions.set,
                split=questions.split,
                item=entry.item,
                cluster=entry.cluster,
                value=entry.value,
                probability=entry.probability,
                letter_mass=entry.letter_mass,
                letter_entropy=entry.letter_entropy,
                chosen=entry.chosen,
                answer=entry.answer,
                distinct_2=entry.distinct_2,
                repetition=entry.repetition,
            )
            for entry in scores
        ]

    def _variants(
        self,
        opened: OpenModel,
        attack: Attack,
        seed: int,
        infos: dict[str, VariantInfo],
        plan: list[Any],
    ) -> Generator[tuple[Attacked, str], None, None]:
        """Yield the variants of an attack, from the journal if all of them were finished there."""
        own = attack_key(attack)
        done = self._done_key(opened, own, seed, plan)
        record = self.memory.get(done)
        if record is not None:
            self._replaying = True
            try:
                for entry in record["variants"]:
                    infos[entry["variant"]] = VariantInfo(
                        entry["variant"], entry["control"], entry["equivalents"], entry["details"]
                    )
                    formats = tuple(entry["formats"])
                    yield Attacked(entry["variant"], formats=formats, control=entry["control"]), own
            finally:
                self._replaying = False
            return
        found = []
        for attacked in self._in_force(opened, attack, seed, infos):
            yield attacked, own
            info = infos[attacked.variant]
            found.append(dataclasses.asdict(info) | {"formats": list(attacked.formats)})
        self.memory.put(done, {"variants": found})

    def _done_key(self, opened: OpenModel, attack: str, seed: int, plan: list[Any]) -> str:
        return fingerprint(
            finished=attack,
            plan=plan,
            version=__version__,
            role=opened.role,
            weights=opened.record.weights_sha256,
            tokenizer=opened.record.tokenizer_sha256,
            data=self._attack_data_key(),
            sets=[facts_key(questions.facts) for questions in self.sets.reported],
            scoring=scoring_key(self.scoring, ()),
            limits=[self.settings.utility_loss, self.settings.alpha],
            seed=seed,
            tier=self.settings.run_tier,
        )

    def _in_force(
        self, opened: OpenModel, attack: Attack, seed: int, infos: dict[str, VariantInfo]
    ) -> Iterator[Attacked]:
        """Run an attack; prove afterwards that the model is what it was."""
        model = opened.subject.model
        state = ModelState.of(model)
        probes = [fact.question for fact in self.data.forget[:_NUM_PROBES]]
        plain = probe_logits(opened.subject, probes) if probes else None
        context = AttackContext(
            subject=opened.subject,
            structure=opened.structure,
            data=self.data,
            seed=seed,
            tier=self.settings.run_tier,
            original=self._original_for(opened, attack),
            sink=self.sink,
            chat_template=self.scoring.chat_template,
        )
        with closing(_as_generator(attack.attack(context))) as variants:
            for attacked in variants:
                details = dict(attacked.details)
                if attacked.disclosure:
                    details[DISCLOSURE] = 1.0
                edits = attacked.transform is None and attacked.decoder is None
                if edits and plain is not None and torch.equal(probe_logits(opened.subject, probes), plain):
                    details[INACTIVE] = "the model computes exactly what it computed before"
                infos[attacked.variant] = VariantInfo(
                    attacked.variant, attacked.control, attacked.cost.equivalents, details
                )
                yield attacked
        state.prove_unchanged(model, attack.name)

    def _original_for(self, opened: OpenModel, attack: Attack) -> Mapping[str, Tensor] | None:
        if opened.role == "original":
            return {}
        give = self.originals.get(opened.role)
        # Of the null nearly every tensor differs, so it gets the original only where an attack needs it.
        return give() if give is not None and (opened.role == "unlearned" or attack.needs_original) else None

    def _seconds(self, opened: OpenModel, attack: Attack, measured: float) -> float:
        """Return the time of the first, unresumed run of an attack."""
        key = fingerprint(
            seconds=attack_key(attack), weights=opened.record.weights_sha256, tier=self.settings.run_tier
        )
        record = self.memory.get(key)
        if record is None:
            record = {"seconds": measured}
            self.memory.put(key, record)
        return float(record["seconds"])

    def _attack_data_key(self) -> str:
        if not self._data_key:
            self._data_key = fingerprint(
                forget=facts_key(self.data.forget),
                retain=facts_key(self.data.retain),
                texts=[*self.data.forget_texts, "", *self.data.retain_texts, "", *self.data.benign_texts],
            )
        return self._data_key


def _as_generator(variants: Iterator[Attacked]) -> Generator[Attacked, None, None]:
    yield from variants
