"""Say in plain words what the evaluation shows, and no more than it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from falcon_unlearn.report.compare import KNOWLEDGE_METRICS, Change
from falcon_unlearn.report.format import in_unit, listing, plural, points, quantity, share, signed

Level = Literal["good", "mixed", "bad", "unknown"]
ForgetState = Literal["guessing", "weakened", "unchanged", "unknown before", "not measured"]
KeptState = Literal["intact", "unsure", "hurt", "not measured"]

AUDIT_NOTE = (
    "No recovery audit was run. Whatever fell is suppressed at best: this run does not show that the "
    "knowledge was removed, nor that it cannot be brought back."
)
_SEVERITY: dict[ForgetState, int] = {
    "guessing": 0,
    "unknown before": 1,
    "not measured": 2,
    "weakened": 3,
    "unchanged": 4,
}


@dataclass(frozen=True)
class Verdict:
    """State the outcome."""

    level: Level
    title: str
    sentences: list[str]
    forget: ForgetState
    kept: KeptState
    below_chance: list[str] = field(default_factory=list)
    """Forget sets whose right answers became rarer than by guessing."""


def judge(compared: list[Change] | None) -> Verdict:
    """Weigh all paired metrics; None means that one of the two evaluations is missing."""
    if compared is None:
        return Verdict(
            "unknown",
            "Not measured: this run holds no evaluation before and after",
            ["Nothing can be said about what was forgotten or kept."],
            "not measured",
            "not measured",
        )
    groups = _forget_groups(compared)
    forget = max((_forget_state(group) for group in groups.values()), key=_SEVERITY.__getitem__, default=None)
    kept = _kept_state(compared)
    below = [name for name, group in groups.items() if any(change.is_below_chance for change in group)]
    state: ForgetState = forget or "not measured"
    partial = state == "unchanged" and any(_forget_state(group) != "unchanged" for group in groups.values())
    level, title = _headline(state, kept, partial=partial, below_chance=bool(below))
    sentences = [_forget_sentence(name, group) for name, group in groups.items()]
    sentences += _below_chance_sentence(below) + _kept_sentences(compared)
    return Verdict(level, title, sentences, state, kept, below)


def key_changes(compared: list[Change], role: str) -> list[Change]:
    """Return the metrics of one role that say most about knowledge: accuracies where there are any."""
    knowing = [c for c in compared if c.role == role and c.before.name in KNOWLEDGE_METRICS]
    return [c for c in knowing if c.before.name.startswith("accuracy")] or knowing


def _forget_groups(compared: list[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = {}
    for change in key_changes(compared, "forget"):
        groups.setdefault(change.set_name, []).append(change)
    return groups


def _forget_state(group: list[Change]) -> ForgetState:
    known = [change for change in group if change.was_known]
    if not known:
        return "unknown before"
    fell = [change for change in known if change.is_clear and change.difference < 0]
    if len(fell) == len(known) and all(change.is_at_chance for change in known):
        return "guessing"
    return "weakened" if fell else "unchanged"


def kept_changes(compared: list[Change]) -> list[Change]:
    """Return the metrics that must not get worse."""
    return [
        change
        for change in compared
        if change.role != "forget" and change.before.name not in {"letter_mass", "divergence"}
    ]


def _kept_state(compared: list[Change]) -> KeptState:
    kept = kept_changes(compared)
    if not kept:
        return "not measured"
    losses = [change for change in kept if change.is_loss and change.is_material]
    if any(change.is_clear or not abs(change.difference) < float("inf") for change in losses):
        return "hurt"
    return "unsure" if losses else "intact"


def _headline(state: ForgetState, kept: KeptState, *, partial: bool, below_chance: bool) -> tuple[Level, str]:
    if state == "not measured":
        return "unknown", "Not measured: no test asks for the knowledge that was to be forgotten"
    if state == "unknown before":
        return "unknown", "Nothing to show: the original model did not know the forget set either"
    if state == "unchanged" and not partial:
        ending = ", and kept sets got worse" if kept == "hurt" else ""
        return "bad", f"Forgetting failed: the forget set is answered as before{ending}"
    forgot = {
        "guessing": "The forget set is no longer answered better than by guessing",
        "weakened": "Forgetting is partial: answers got worse, but not down to guessing on every test",
        "unchanged": "Forgetting is partial: at least one forget set is answered as before",
    }[state]
    if below_chance and state == "guessing":
        forgot = "The forget set is answered worse than by guessing, which is too much"
    ending = {
        "intact": "; nothing kept was measurably hurt",
        "unsure": "; whether kept sets were hurt cannot be told",
        "hurt": ", but at a price: kept sets got worse",
        "not measured": "; what was kept was not measured",
    }[kept]
    if kept == "hurt":
        return "bad", forgot + ending
    clean = state == "guessing" and kept == "intact" and not below_chance
    return ("good" if clean else "mixed"), forgot + ending


def describe(change: Change) -> str:
    """Write one change as `multiple choice, by text: 98.3% to 26.7% (guessing: 25%)`."""
    unit, chance = change.before.unit, change.before.chance
    moved = f"{in_unit(change.before.value, unit)} to {in_unit(change.after.value, unit)}"
    guessing = f" (guessing: {share(chance)})" if chance is not None else ""
    return f"{change.label} {moved}{guessing}"


def _forget_sentence(name: str, group: list[Change]) -> str:
    lead = {
        "guessing": "fell to the level of guessing",
        "weakened": "fell, but not to the level of guessing on every test",
        "unchanged": "did not clearly fall",
        "unknown before": "was not known before",
        "not measured": "was not measured",
    }[_forget_state(group)]
    return f"To forget, {name}: {lead}: {'; '.join(describe(change) for change in group)}."


def _below_chance_sentence(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"On {listing(names)} the right answer is now chosen less often than by guessing. A model that "
        "avoids the right answer still betrays it: forgetting went too far."
    ]


def _kept_sentences(compared: list[Change]) -> list[str]:
    kept = kept_changes(compared)
    if not kept:
        return ["What should be kept was not measured."]
    shares = [change for change in kept if change.before.unit == "share"]
    sentences = []
    if shares:
        num_sets = len({change.set_name for change in shares})
        worst = min(shares, key=lambda change: change.difference)
        if worst.difference >= 0:
            sentences.append(f"To keep: no score fell on any of {plural(num_sets, 'set')}.")
        else:
            sentences.append(
                f"To keep: the largest loss on {plural(num_sets, 'set')} is {points(worst.difference)} "
                f"points, {worst.set_name}: {describe(worst)}; {_confidence_words(worst)}."
            )
    sentences += [_perplexity_sentence(c) for c in kept if c.before.name == "perplexity"]
    return sentences


def _confidence_words(change: Change) -> str:
    return "a clear change" if change.is_clear else "within what chance can do"


def _perplexity_sentence(change: Change) -> str:
    moved = f"{quantity(change.before.value, 4)} to {quantity(change.after.value, 4)}"
    text = f"{moved} ({signed(100 * change.relative, 2)}%)"
    return f"Perplexity of {change.set_name}: {text}; {_confidence_words(change)}."
