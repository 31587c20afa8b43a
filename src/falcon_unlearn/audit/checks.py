"""Look at one open model for technical faults that would spoil its scores."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.audit.scoring import ScoringSettings, score
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.results_audit import AuditWarning

_NUM_BATCHED = 16


def check_model(subject: Subject, facts: Sequence[Fact], settings: ScoringSettings) -> list[AuditWarning]:
    """Return warnings about start tokens, letters and batches of the model as it will be asked.

    Args:
        subject: The model.
        facts: Some of the facts it will be asked.
        settings: How it will be asked.
    """
    prompting = Prompting(subject.tokenizer, settings.chat_template)
    found = [_start_tokens(subject, prompting, facts), _letters(subject, prompting, facts)]
    found.append(_batches(subject, facts[:_NUM_BATCHED], settings))
    return [warning for warning in found if warning is not None]


def _start_tokens(subject: Subject, prompting: Prompting, facts: Sequence[Fact]) -> AuditWarning | None:
    start = subject.tokenizer.bos_token_id
    if start is None or not facts:
        return None
    prompts = [prompting.generation_prompt(fact) for fact in facts]
    counts = [subject.encode(prompt).count(start) for prompt in prompts]
    most, adds = max(counts), start in subject.encode("a")
    if most <= 1 and not (adds and min(counts) == 0):
        return None
    return AuditWarning(
        number=7,
        name="start token",
        message=f"prompts hold {min(counts)} to {most} start tokens; one is expected",
    )


def _letters(subject: Subject, prompting: Prompting, facts: Sequence[Fact]) -> AuditWarning | None:
    if not facts:
        return None
    question = prompting.letter_questions(facts[0], 1)[0]
    _, letters = subject.encode_completions(question.prompt, question.completions)
    if all(len(ids) == 1 for ids in letters) and len({tuple(ids) for ids in letters}) == len(letters):
        return None
    return AuditWarning(
        number=8,
        name="letter tokens",
        message="some letters are several tokens, or share one; they count with all their tokens",
    )


def _batches(subject: Subject, facts: Sequence[Fact], settings: ScoringSettings) -> AuditWarning | None:
    """Compare what is chosen in one batch and one question at a time."""
    together = [entry.value for entry in score(subject, facts, formats=["text"], settings=settings)]
    single = [
        entry.value for fact in facts for entry in score(subject, [fact], formats=["text"], settings=settings)
    ]
    differing = sum(first != second for first, second in zip(together, single, strict=True))
    if not differing:
        return None
    return AuditWarning(
        number=10,
        name="batching",
        message=f"{differing} of {len(facts)} questions are answered differently in a batch and alone; "
        "differences of that size are noise",
    )
