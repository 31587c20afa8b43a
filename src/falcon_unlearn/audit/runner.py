"""Run attacks on the models of an audit and collect one row per item.

The unlearned model comes first: each attack's variants are scored on the selection facts, and only the best
one that spares the model is scored on the report facts (`choosing.py`). Original and null are then scored
under the chosen variants only. All scores go through a journal, so that a killed audit goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn._version import __version__
from falcon_unlearn.audit.base import Attack, AttackContext, AttackData, Attacked, Format
from falcon_unlearn.audit.choosing import Contest
from falcon_unlearn.audit.keeping import Memory, attack_key, facts_key, scoring_key
from falcon_unlearn.audit.models import ModelState, OpenModel, probe_logits
from falcon_unlearn.audit.replaying import collected, replayed, variants_record
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
_LAYOUT = 2
"""Of the records of finished attacks; raised when they change."""


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


@dataclass(frozen=True)
class _Asked:
    """Say under which variant of which attack is asked."""

    attack: str
    key: str
    """Hash of the attack, empty without one."""
    seed: int
    attacked: Attacked


Contests = dict[Format, Contest[_Asked]]
_AS_IT_IS = _Asked(NO_ATTACK, "", 0, PLAIN)


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
            self._scored(opened, _AS_IT_IS, questions, formats)

    def selected(self, opened: OpenModel, format: Format) -> list[Score]:
        """Score a model without attack on the selection facts."""
        return self._scored(opened, _AS_IT_IS, self.sets.selection, [format])[format]

    def choose(self, opened: OpenModel, attack: Attack, formats: Sequence[Format]) -> AttackRun:
        """Attack the unlearned model, choose a variant per format on the selection facts, and score it.

        Variants that can be put in force again wait until all are known, so that retain and report facts are
        asked under few of them. With several seeds the first one chooses; the others repeat its choice.

        Raises:
            ModelError: The attack left the model changed.
        """
        started = time.perf_counter()
        first, *others = self.settings.seeds
        contests: Contests = {format: Contest() for format in formats}
        infos: dict[str, VariantInfo] = {}
        with self._attacking(opened, attack, first, infos, list(formats)) as variants:
            for asked in variants:
                if asked.attacked.control:
                    self._control(opened, asked, formats)
                else:
                    self._enter(opened, asked, contests)
            self._settle(opened, contests)
        chosen = {f: c.best.attacked.variant for f, c in contests.items() if c.best is not None}
        destroys = {f: c.destroys for f, c in contests.items() if c.best is not None}
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
        with self._attacking(opened, run.attack, seed, {}, plan) as variants:
            for asked in variants:
                formats = [f for f, variant in run.chosen.items() if variant == asked.attacked.variant]
                for questions in parts if formats else []:
                    self._scored(opened, asked, questions, formats)

    def _enter(self, opened: OpenModel, asked: _Asked, contests: Contests) -> None:
        """Score a variant on the selection facts; what cannot be asked later is asked all it may need now."""
        formats = [format for format in contests if format in asked.attacked.formats]
        values = self._values(opened, asked, formats)
        if asked.attacked.lasts:
            for format in formats:
                contests[format].wait(asked, values[format])
            return
        ahead = [format for format in formats if contests[format].admits(values[format])]
        best = self._challenge(opened, asked, {format: values[format] for format in ahead}, contests)
        self._scored(opened, asked, self.sets.forget, best)

    def _settle(self, opened: OpenModel, contests: Contests) -> None:
        """Ask the retain facts under the waiting variants, best first, until one spares the model."""
        while True:
            heads = {format: head for format, contest in contests.items() if (head := contest.next())}
            if not heads:
                break
            for asked, formats in _by_variant({format: asked for format, (asked, _) in heads.items()}):
                with asked.attacked.in_force():
                    self._challenge(opened, asked, {f: heads[f][1] for f in formats}, contests)
        for asked, formats in _by_variant({f: c.best for f, c in contests.items() if c.best is not None}):
            if asked.attacked.lasts:
                with asked.attacked.in_force():
                    self._scored(opened, asked, self.sets.forget, formats)

    def _challenge(
        self, opened: OpenModel, asked: _Asked, values: Mapping[Format, float], contests: Contests
    ) -> list[Format]:
        """Find out whether a variant spares the model, and return the formats in which it is best now."""
        retained = self._scored(opened, asked, self.sets.retain, list(values))
        return [
            format
            for format, value in values.items()
            if contests[format].enter(asked, value, destroys=self._destroys(opened, retained[format], format))
        ]

    def _values(self, opened: OpenModel, asked: _Asked, formats: Sequence[Format]) -> dict[Format, float]:
        """Return the accuracies on the selection facts."""
        selected = self._scored(opened, asked, self.sets.selection, formats)
        return {f: sum(entry.value for entry in scores) / len(scores) for f, scores in selected.items()}

    def _destroys(self, opened: OpenModel, retained: Sequence[Score], format: Format) -> bool:
        """Tell whether the fall of retain accuracy is shown and exceeds the limit."""
        plain = self._scored(opened, _AS_IT_IS, self.sets.retain, [format])[format]
        before, after = [entry.value for entry in plain], [entry.value for entry in retained]
        fell = sum(before) - sum(after) > self.settings.utility_loss * sum(before)
        return fell and exact_mcnemar(before, after).p_value < self.settings.alpha

    def _control(self, opened: OpenModel, asked: _Asked, formats: Sequence[Format]) -> None:
        """Score a control in one format: option text if it can, since letters say nothing on many models."""
        usable = [format for format in formats if format in asked.attacked.formats]
        usable.sort(key=lambda format: format != "text")
        self._scored(opened, asked, self.sets.forget, usable[:1])

    def _scored(
        self, opened: OpenModel, asked: _Asked, questions: Questions, formats: Sequence[Format]
    ) -> dict[Format, list[Score]]:
        """Score what the journal does not hold; formats that are asked together share the work."""
        keys = {format: self._score_key(opened, asked, questions, format) for format in formats}
        missing = [format for format, key in keys.items() if self.memory.get(key) is None]
        if missing:
            self._announce(opened, asked, questions, missing)
            scores = score(opened.subject, questions.facts, asked.attacked, missing, self.scoring)
            self.memory.put_scores(
                {keys[format]: [entry for entry in scores if entry.format == format] for format in missing}
            )
        found = {format: self.memory.scores(key) for format, key in keys.items()}
        for format, key in keys.items():
            if (place := f"{opened.role}:{key}") not in self._kept:
                self._kept.add(place)
                self._keep(opened, asked, questions, found[format])
        return found

    def _score_key(self, opened: OpenModel, asked: _Asked, questions: Questions, format: Format) -> str:
        return fingerprint(
            version=__version__,
            weights=opened.record.weights_sha256,
            tokenizer=opened.record.tokenizer_sha256,
            attack=asked.key,
            data=self._attack_data_key() if asked.key else "",
            seed=asked.seed,
            variant=asked.attacked.variant,
            facts=facts_key(questions.facts),
            scoring=scoring_key(self.scoring, [format]),
        )

    def _announce(
        self, opened: OpenModel, asked: _Asked, questions: Questions, formats: Sequence[Format]
    ) -> None:
        variant = asked.attacked.variant
        if self._replaying:
            raise DataError(
                f"the journal of the audit lacks scores of {asked.attack} {variant}",
                hint="remove it to compute everything again",
            )
        done, total = self.progress
        what = f"{questions.set} in {' and '.join(formats)} format"
        message = f"{opened.role}: {asked.attack} {variant}, {what}"
        self.sink(Progress(stage="audit", done=done, total=total, message=message))

    def _keep(self, opened: OpenModel, asked: _Asked, questions: Questions, scores: Sequence[Score]) -> None:
        self.rows += [
            ItemRow(
                model=opened.role,
                attack=asked.attack,
                variant=asked.attacked.variant,
                seed=asked.seed,
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

    @contextmanager
    def _attacking(
        self,
        opened: OpenModel,
        attack: Attack,
        seed: int,
        infos: dict[str, VariantInfo],
        plan: list[Any],
    ) -> Iterator[Iterator[_Asked]]:
        """Give the variants of an attack, from the journal if all was finished there.

        When the context ends without an error the model is proved to be what it was, and the attack is
        finished.
        """
        own = attack_key(attack)
        done = self._done_key(opened, own, seed, plan)
        record = self.memory.get(done)
        if record is not None:
            self._replaying = True
            try:
                yield (_Asked(attack.name, own, seed, a) for a in replayed(record, infos))
            finally:
                self._replaying = False
            return
        state = ModelState.of(opened.subject.model)
        found: list[Attacked] = []
        with closing(self._in_force(opened, attack, seed, infos)) as variants:
            yield (_Asked(attack.name, own, seed, a) for a in collected(variants, found))
        state.prove_unchanged(opened.subject.model, attack.name)
        self.memory.put(done, variants_record(found, infos))

    def _done_key(self, opened: OpenModel, attack: str, seed: int, plan: list[Any]) -> str:
        return fingerprint(
            finished=attack,
            layout=_LAYOUT,
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
    ) -> Generator[Attacked, None, None]:
        """Run an attack, and describe each variant."""
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
                if (
                    attacked.edits
                    and plain is not None
                    and torch.equal(probe_logits(opened.subject, probes), plain)
                ):
                    details[INACTIVE] = "the model computes exactly what it computed before"
                infos[attacked.variant] = VariantInfo(
                    attacked.variant, attacked.control, attacked.cost.equivalents, details
                )
                yield attacked

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


def _by_variant(asked: Mapping[Format, _Asked]) -> list[tuple[_Asked, list[Format]]]:
    """Return each variant once, with its formats."""
    groups: dict[str, tuple[_Asked, list[Format]]] = {}
    for format, one in asked.items():
        groups.setdefault(one.attacked.variant, (one, []))[1].append(format)
    return list(groups.values())
