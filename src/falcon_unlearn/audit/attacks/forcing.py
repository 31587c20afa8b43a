"""What optimised attacks share: facts as prompts with answers to be forced, and the loss of forcing them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.packing import head_logits, pack_examples, supervised_states

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt and answer as token ids."""


def forced_pairs(
    subject: Subject, facts: Sequence[Fact], target: str = "", *, chat_template: bool = False
) -> list[Pair]:
    """Return each fact's prompt, as it is scored, with its right option or with `target` as answer."""
    prompting = Prompting(subject.tokenizer, chat_template)
    pairs = []
    for fact in facts:
        question = prompting.text_question(fact)
        right = question.completions[fact.answer_index]
        answer = right[: len(right) - len(fact.answer)] + target if target else right
        prompt, (completion,) = subject.encode_completions(question.prompt, [answer])
        pairs.append((tuple(prompt), tuple(completion)))
    return pairs


def forcing_loss(engine: BlockEngine, pairs: Sequence[Pair]) -> Tensor:
    """Return the mean negative log-probability per answer token, in nats, with its graph."""
    examples = [
        EncodedExample((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)), "", False)
        for prompt, answer in pairs
    ]
    batch = pack_examples(examples, engine.device)
    logits_MV = head_logits(engine.model, supervised_states(engine, batch))
    return cross_entropy(logits_MV, batch.labels_M)


def drawn_facts(facts: Sequence[Fact], most: int, seed: int, name: str) -> list[Fact]:
    """Return at most so many facts, by a seeded draw."""
    return random.Random(f"{seed}:{name}").sample(list(facts), min(most, len(facts)))
