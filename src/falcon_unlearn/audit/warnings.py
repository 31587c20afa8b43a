"""Recognise the known pitfalls of audits in the numbers. The table of them stands in docs/audit.md. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from falcon_unlearn.audit.frame import Frame
from falcon_unlearn.audit.summarise import AttackRun
from falcon_unlearn.audit.tables import Questions
from falcon_unlearn.results_audit import (
    AttackSummary,
    AuditedModelRecord,
    AuditWarning,
    Baseline,
    ItemRow,
    MemorisationResult,
)

LOW_LETTER_MASS = 0.2
HIGH_LETTER_ENTROPY = 0.98
"""Share of the largest possible entropy."""
LETTER_SHARE = 0.5
WORDING_DIFFERENCE = 0.10
BLIND_AUC = 0.55
FEW_SELECTION_FACTS = 10
FEW_RETAIN_FACTS = 30
_RARE = 0.001


@dataclass(frozen=True)
class Findings:
    """Hold everything the checks look at."""

    frame: Frame
    baselines: tuple[Baseline, ...]
    summaries: tuple[AttackSummary, ...]
    runs: tuple[AttackRun, ...]
    models: tuple[AuditedModelRecord, ...]
    selection: Questions
    memorisation: MemorisationResult | None = None


def find_warnings(findings: Findings) -> list[AuditWarning]:
    """Return all pitfalls that were met, in the order of the table."""
    checks = (
        _collapsed_letters,
        _letter_bias,
        _choice_only,
        _degeneration,
        _repair,
        _wording,
        _selection,
        _same_weights,
        _inactive,
        _precision,
        _teaching,
        _tokenizers,
        _blind,
        _coarse_utility,
    )
    return [warning for check in checks for warning in check(findings)]


def _letter_rows(findings: Findings) -> Iterator[tuple[str, list[ItemRow]]]:
    for role in findings.frame.roles:
        rows = findings.frame.table.rows(role, "letter", findings.frame.forget)
        if rows:
            yield role, rows


def _collapsed_letters(findings: Findings) -> Iterator[AuditWarning]:
    size = max(len(fact.options) for fact in findings.frame.forget.facts)
    limit = HIGH_LETTER_ENTROPY * math.log(size)
    for role, rows in _letter_rows(findings):
        masses = [row.letter_mass for row in rows if row.letter_mass is not None]
        entropies = [row.letter_entropy for row in rows if row.letter_entropy is not None]
        if masses and float(np.median(masses)) < LOW_LETTER_MASS:
            text = (
                f"the {role} model gives the letters a median probability of {np.median(masses):.2f} together"
            )
            yield AuditWarning(number=1, name="collapsed letters", message=text)
        elif entropies and float(np.median(entropies)) > limit:
            text = f"the {role} model hardly distinguishes letters: median entropy {np.median(entropies):.2f}"
            yield AuditWarning(number=1, name="collapsed letters", message=text)


def _letter_bias(findings: Findings) -> Iterator[AuditWarning]:
    from scipy.stats import chisquare

    size = max(len(fact.options) for fact in findings.frame.forget.facts)
    for role, rows in _letter_rows(findings):
        counts = Counter("".join(row.chosen for row in rows))
        total = sum(counts.values())
        if total == 0:
            continue
        letter, most = counts.most_common(1)[0]
        observed = [*counts.values(), *[0] * (size - len(counts))]
        if most > LETTER_SHARE * total and chisquare(observed).pvalue < _RARE:
            text = f"the {role} model chooses {letter} in {most / total:.0%} of all orders"
            yield AuditWarning(number=2, name="letter bias", message=text)


def _choice_only(findings: Findings) -> Iterator[AuditWarning]:
    entry = next((entry for entry in findings.baselines if entry.format == "generation"), None)
    if entry is None or not entry.informative:
        text = "free answers do not show what the original knows; choices alone overstate both sides"
        yield AuditWarning(number=3, name="choice only", message=text)


def _degeneration(findings: Findings) -> Iterator[AuditWarning]:
    for entry in findings.baselines:
        before, after = entry.degenerate.get("original"), entry.degenerate.get("unlearned")
        if (
            before is not None
            and after is not None
            and after > before + findings.frame.settings.degenerate_rise
        ):
            text = f"{after:.0%} of the free answers to what should stay are degenerate, before {before:.0%}"
            yield AuditWarning(number=4, name="degenerate answers", message=text)


def _repair(findings: Findings) -> Iterator[AuditWarning]:
    limit = findings.frame.settings.utility_loss
    for entry in findings.summaries:
        change = entry.retain_change
        if change.value is not None and change.value > limit and (change.low or 0.0) > 0.0:
            text = (
                f"{entry.attack} ({entry.variant}) raises retain accuracy in {entry.format} format by "
                f"{change.value:.0%}: part of what it recovers is repair of damage"
            )
            yield AuditWarning(number=5, name="repair", message=text)


def _wording(findings: Findings) -> Iterator[AuditWarning]:
    for entry in findings.summaries:
        if entry.attack != "wording":
            continue
        plain = next(b for b in findings.baselines if b.format == entry.format)
        for role, estimate in entry.accuracy.items():
            before = plain.accuracy[role].value
            if before is None or estimate.value is None:
                continue
            if abs(estimate.value - before) > WORDING_DIFFERENCE:
                text = (
                    f"the {role} model scores {before:.2f} as asked and {estimate.value:.2f} in wording "
                    f"{entry.variant!r} ({entry.format})"
                )
                yield AuditWarning(number=6, name="chat template", message=text)


def _selection(findings: Findings) -> Iterator[AuditWarning]:
    count = len(findings.selection.facts)
    if count < FEW_SELECTION_FACTS:
        text = f"attack settings were chosen on {count} facts only, so the best one may have been missed"
        yield AuditWarning(number=12, name="choice of settings", message=text)


def _same_weights(findings: Findings) -> Iterator[AuditWarning]:
    hashes = {record.role: record.weights_sha256 for record in findings.models}
    if hashes.get("original") == hashes.get("unlearned"):
        text = "original and unlearned model have the same weights"
        yield AuditWarning(number=14, name="nothing happened", message=text)


def _inactive(findings: Findings) -> Iterator[AuditWarning]:
    for run in findings.runs:
        chosen = set(run.chosen.values())
        names = [v.variant for v in run.variants.values() if "inactive" in v.details and v.variant in chosen]
        if names:
            text = f"{run.attack.name} ({', '.join(names)}) did not change what the model computes"
            yield AuditWarning(number=14, name="nothing happened", message=text)


def _precision(findings: Findings) -> Iterator[AuditWarning]:
    dtypes = {record.role: record.compute_dtype for record in findings.models}
    if len(set(dtypes.values())) > 1:
        text = ", ".join(f"{role} computes in {dtype}" for role, dtype in dtypes.items())
        yield AuditWarning(number=15, name="precision", message=text)


def _teaching(findings: Findings) -> Iterator[AuditWarning]:
    plain = {entry.format: entry for entry in findings.baselines}
    for entry in findings.summaries:
        base = plain[entry.format].accuracy
        before, after = base.get("null"), entry.accuracy.get("null")
        known = base["original"].value
        if before is None or after is None or before.value is None or after.value is None or known is None:
            continue
        gain, limit = after.value - before.value, findings.frame.settings.delta * (known - before.value)
        if entry.counts and gain > limit > 0.0:
            text = (
                f"{entry.attack} ({entry.variant}) raises the null by {gain:.2f} in {entry.format} format: "
                "it teaches or gives away answers; only net recovery counts"
            )
            yield AuditWarning(number=16, name="taught", message=text)


def _tokenizers(findings: Findings) -> Iterator[AuditWarning]:
    hashes = {record.role: record.tokenizer_sha256 for record in findings.models}
    different = [role for role, value in hashes.items() if value != hashes["original"]]
    if different:
        text = f"tokenizer or chat template differ from the original's: {', '.join(different)}"
        yield AuditWarning(number=17, name="tokenizer", message=text)


def _blind(findings: Findings) -> Iterator[AuditWarning]:
    blind = findings.memorisation.blind if findings.memorisation is not None else None
    if blind is not None and blind.value is not None and blind.value > BLIND_AUC and (blind.low or 0.0) > 0.5:
        text = f"words alone tell right from wrong options, AUC {blind.value:.2f}: read no membership numbers"
        yield AuditWarning(number=18, name="confounded split", message=text)
    for run in findings.runs:
        for info in run.variants.values():
            values = [v for k, v in info.details.items() if "blind" in k and isinstance(v, float)]
            if values and max(values) > BLIND_AUC:
                text = (
                    f"{run.attack.name}: words alone tell members from others, AUC {max(values):.2f}, "
                    "so its own AUC says nothing"
                )
                yield AuditWarning(number=18, name="confounded split", message=text)
                break


def _coarse_utility(findings: Findings) -> Iterator[AuditWarning]:
    generation = next((entry for entry in findings.baselines if entry.format == "generation"), None)
    known = generation.retain_accuracy["original"].value if generation is not None else None
    count = len(findings.frame.retain.facts)
    if count < FEW_RETAIN_FACTS:
        text = f"utility rests on {count} retain facts"
        yield AuditWarning(number=19, name="coarse utility", message=text)
    if not known:
        text = "utility is measured by choices only: the original answers no retain question freely"
        yield AuditWarning(number=19, name="coarse utility", message=text)
