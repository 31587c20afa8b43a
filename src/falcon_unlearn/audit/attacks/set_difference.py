"""Attack by cutting out the weights that matter for the unlearned behaviour and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from falcon_unlearn.audit.attacks.matrices import block_matrices
from falcon_unlearn.audit.attacks.pruning import percent, pruned
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.linalg.pruning import random_mask, set_difference

CELLS = (
    (0.01, 0.01), (0.05, 0.01), (0.05, 0.05), (0.1, 0.01), (0.1, 0.05), (0.1, 0.1), (0.2, 0.05), (0.2, 0.1),
    (0.2, 0.2),
)  # fmt: skip
"""Protected share p and cut share q of every matrix, p at least q."""

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class SetDifferencePruning:
    """Zero weights among the top q for the unlearned behaviour and not among the top p for retain answers.

    Importance is SNIP's |w dL/dw|, averaged over examples. The unlearned behaviour is what the model itself
    generates to forget questions. The control of a cell is a random mask of the same size in every matrix.
    """

    cells: tuple[tuple[float, float], ...] = CELLS
    maximum_examples: int = 64
    new_tokens: int = 50
    name: str = "set-difference-pruning"
    tier: Tier = "full"
    access: Access = "weights"
    knowledge: Knowledge = "forget questions"
    needs_original: bool = False
    source: str = "Wei et al. 2024, arXiv 2402.05162; Lucki et al. 2024, arXiv 2409.18025"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield the cells, each followed by its control."""
        model = context.subject.model
        matrices = block_matrices(model, context.structure)
        retain = _answered(context, context.data.retain[: self.maximum_examples])
        forget = self._behaviour(context)
        protected, wanted = snip_scores(model, matrices, retain), snip_scores(model, matrices, forget)
        passes = len(retain) + len(forget)
        for p, q in self.cells:
            masks = {n: set_difference(wanted[n], protected[n], q, p) for n in matrices}
            variant = f"protect-{percent(p)}-cut-{percent(q)}"
            with pruned(model, matrices, masks) as details:
                yield Attacked(variant=variant, cost=Cost(passes, passes), details=details)
            generator = torch.Generator().manual_seed(context.seed)
            drawn = {n: random_mask(mask, int(mask.sum()), generator) for n, mask in masks.items()}
            with pruned(model, matrices, drawn) as details:
                yield Attacked(variant=f"{variant}-random", control=variant, details=details)

    def _behaviour(self, context: AttackContext) -> list[Pair]:
        """Return forget questions with the model's own greedy answers, as token ids."""
        subject = context.subject
        prompting = Prompting(subject.tokenizer, context.chat_template)
        facts = context.data.forget[: self.maximum_examples]
        prompts = [prompting.generation_prompt(fact) for fact in facts]
        encoded = [subject.encode(prompt) for prompt in prompts]
        answers = greedy_completions(subject, encoded, maximum_new_tokens=self.new_tokens)
        pairs = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer:
                ids, (completion,) = subject.encode_completions(prompt, [answer])
                pairs.append((ids, completion))
        return pairs


def _answered(context: AttackContext, facts: Sequence[Fact]) -> list[Pair]:
    subject = context.subject
    prompting = Prompting(subject.tokenizer, context.chat_template)
    pairs = []
    for fact in facts:
        question = prompting.text_question(fact)
        ids, (completion,) = subject.encode_completions(
            question.prompt, [question.completions[fact.answer_index]]
        )
        pairs.append((ids, completion))
    return pairs


def snip_scores(
    model: nn.Module, matrices: dict[str, nn.Parameter], pairs: Sequence[Pair]
) -> dict[str, Tensor]:
    """Return mean |w dL/dw| over examples, L the negative log-likelihood per token of a completion.

    Parameters require gradients only inside; none is left behind. Without examples all scores are zero.
    """
    scores = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in matrices.items()}
    chosen = list(matrices.values())
    required = [weight.requires_grad for weight in chosen]
    try:
        for weight in chosen:
            weight.requires_grad_(True)
        for prompt, completion in pairs:
            loss = _completion_loss(model, prompt, completion)
            for name, gradient in zip(matrices, torch.autograd.grad(loss, chosen), strict=True):
                scores[name] += (matrices[name].detach() * gradient).abs().float() / len(pairs)
    finally:
        for weight, before in zip(chosen, required, strict=True):
            weight.requires_grad_(before)
    return scores


def _completion_loss(model: nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    logits_LV = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    return cross_entropy(logits_LV.float(), ids[0, len(prompt) :])
