"""Show what an edit removed by exaggerating the difference of both checkpoints; a disclosure, no recovery.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from falcon_unlearn.audit.base import Access, AttackContext, Attacked, ExtraDecoder, Knowledge, Tier, TokenIds
from falcon_unlearn.evaluation.choice import token_completion_scores
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.engine import tensors_replaced
from falcon_unlearn.models.text import length_buckets, pad_batch

WEIGHTS = (1.5, 2.0, 4.0)


@dataclass(frozen=True)
class CheckpointDifference:
    """Decode with log p_unlearned + w (log p_original - log p_unlearned), w above 1.

    Whoever holds both checkpoints reads the original anyway; the point is that their difference points at
    what was removed. Option scores leave out the normaliser of the mixture, which is the same for all options
    at their first token.
    """

    weights: tuple[float, ...] | None = None
    """Values of w; None: 2 in the quick tier, three in the full one."""
    name: str = "checkpoint-difference"
    tier: Tier = "full"
    access: Access = "logits"
    knowledge: Knowledge = "none"
    needs_original: bool = True
    source: str = "reverse guidance of two checkpoints"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one decoder per weight."""
        original = context.original or {}
        for weight in self.weights or (WEIGHTS if context.tier == "full" else WEIGHTS[1:2]):
            decoder = ExtraDecoder(
                option_scores=partial(_option_scores, original, weight),
                samples=partial(_greedy_answers, original, weight),
            )
            yield Attacked(
                variant=f"weight-{weight:g}", decoder=decoder, disclosure=True, details={"weight": weight}
            )


def guided(unlearned: Tensor, original: Tensor, weight: float) -> Tensor:
    """Return u + w (o - u) of log-probabilities; w = 0 gives the unlearned model, w = 1 the original."""
    return unlearned + weight * (original - unlearned)


def _option_scores(
    original: Mapping[str, Tensor],
    weight: float,
    subject: Subject,
    prompts: Sequence[TokenIds],
    completions: Sequence[Sequence[TokenIds]],
) -> list[list[float]]:
    choices = list(zip(prompts, completions, strict=True))
    after = token_completion_scores(subject, choices)
    with tensors_replaced(subject.model, dict(original)):
        before = token_completion_scores(subject, choices)
    return [
        [
            float(guided(torch.tensor(a.mean_log_probability), torch.tensor(b.mean_log_probability), weight))
            for a, b in zip(several_after, several_before, strict=True)
        ]
        for several_after, several_before in zip(after, before, strict=True)
    ]


def _greedy_answers(
    original: Mapping[str, Tensor],
    weight: float,
    subject: Subject,
    prompts: Sequence[TokenIds],
    maximum_new_tokens: int,
) -> list[list[str]]:
    answers: list[list[str]] = [[""]] * len(prompts)
    with torch.inference_mode():
        lengths = [len(prompt) + maximum_new_tokens for prompt in prompts]
        for batch in length_buckets(lengths, subject.batch_tokens):
            chosen = [prompts[index] for index in batch]
            found = _generate(original, weight, subject, chosen, maximum_new_tokens)
            for index, ids in zip(batch, found, strict=True):
                answers[index] = [subject.tokenizer.decode(ids, skip_special_tokens=True)]
    return answers


def _generate(
    original: Mapping[str, Tensor],
    weight: float,
    subject: Subject,
    prompts: Sequence[TokenIds],
    maximum_new_tokens: int,
) -> list[list[int]]:
    """Continue prompts greedily; both models keep keys and values of their own."""
    device = subject.model.device
    ids_BL, mask_BL = (tensor.to(device) for tensor in pad_batch(prompts, subject.pad_id, "left"))
    fed_BL, mask_BL = ids_BL, mask_BL.long()
    unlearned, before = _Reader(subject), _Reader(subject)
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(maximum_new_tokens):
        after_BV = unlearned.next_logits(fed_BL, mask_BL)
        with tensors_replaced(subject.model, dict(original)):
            before_BV = before.next_logits(fed_BL, mask_BL)
        tokens = guided(after_BV.log_softmax(-1), before_BV.log_softmax(-1), weight).argmax(-1).tolist()
        open_rows -= {row for row in open_rows if tokens[row] in subject.end_ids}
        for row in open_rows:
            answers[row].append(tokens[row])
        if not open_rows:
            break
        fed_BL = torch.tensor(tokens, device=device)[:, None]
        mask_BL = torch.cat([mask_BL, torch.ones_like(fed_BL)], dim=1)
    return answers


class _Reader:
    """Feed one model step by step."""

    def __init__(self, subject: Subject) -> None:
        self._model = subject.model
        self._cache: object = None

    def next_logits(self, fed_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return float32 logits of the next token, B x V."""
        positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -fed_BL.shape[1] :]
        output = self._model(
            input_ids=fed_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV
