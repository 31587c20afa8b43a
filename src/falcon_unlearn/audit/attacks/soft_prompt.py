"""Attack by a universal soft prompt: a few free embedding vectors in front of every question."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from falcon_unlearn.audit.attacks.forcing import Pair, forced_pairs, forcing_loss
from falcon_unlearn.audit.base import (
    Access,
    AttackContext,
    Attacked,
    Cost,
    ExtraDecoder,
    Knowledge,
    Tier,
    TokenIds,
)
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.generation import greedy_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.engine import BlockEngine

Target = Literal["generic", "facts"]


@dataclass(frozen=True)
class SoftPrefix:
    """Answer with vectors in place of the embeddings of tokens put in front of every prompt.

    The model is changed only while it answers.
    """

    vectors_KD: Tensor

    def decoder(self) -> ExtraDecoder:
        """Return this as a way to read answers."""
        return ExtraDecoder(option_scores=self.option_scores, samples=self.samples)

    def option_scores(
        self, subject: Subject, prompts: Sequence[TokenIds], completions: Sequence[Sequence[TokenIds]]
    ) -> list[list[float]]:
        """Return the mean log-probability per token of every completion."""
        marker = free_token(subject, [*prompts, *(one for several in completions for one in several)])
        pairs = [
            (self.marked(subject, prompt, marker), one)
            for prompt, several in zip(prompts, completions, strict=True)
            for one in several
        ]
        with self.installed(subject.model, marker):
            scores = iter(subject.score(pairs))
        return [[next(scores).mean_log_probability for _ in several] for several in completions]

    def samples(self, subject: Subject, prompts: Sequence[TokenIds], longest: int) -> list[list[str]]:
        """Return the greedy answer to every prompt."""
        marker = free_token(subject, prompts)
        marked = [self.marked(subject, prompt, marker) for prompt in prompts]
        with self.installed(subject.model, marker):
            answers = greedy_completions(subject, marked, maximum_new_tokens=longest)
        return [[answer] for answer in answers]

    def marked(self, subject: Subject, prompt: TokenIds, marker: int) -> tuple[int, ...]:
        """Put one marker per vector in front of the prompt, behind a start token."""
        start = 1 if prompt and prompt[0] == subject.tokenizer.bos_token_id else 0
        return (*prompt[:start], *[marker] * len(self.vectors_KD), *prompt[start:])

    @contextmanager
    def installed(self, model: Any, marker: int) -> Iterator[None]:
        """Embed markers as the vectors while the context is open."""

        def replace(_module: Any, inputs: Any, output: Tensor) -> Tensor | None:
            ids_BL = inputs[0]
            # A marker that is generated arrives alone.
            if ids_BL.shape[1] == 1:
                return None
            mask_BL = ids_BL == marker
            times = int(mask_BL.sum()) // len(self.vectors_KD)
            changed = output.clone()
            changed[mask_BL] = self.vectors_KD.repeat(times, 1).to(output)
            return changed

        handle = model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class SoftPrompt:
    """Optimise the vectors on the attack split; they are scored on facts that they never saw.

    Soft prompts can carry what the model never knew. So they are universal, `generic` ones force an opening
    and no answer, the details state how many bits they can hold, and the null model under the same attack is
    what counts. Control: vectors drawn from the embeddings.
    """

    targets: tuple[Target, ...] = ("generic", "facts")
    generic_target: str = "Sure, the answer is"
    num_tokens: int = 5
    steps: int = 100
    batch_size: int = 8
    relative_step: float = 0.1
    """Adam's rate, relative to the root mean square of the embeddings."""
    name: str = "soft-prompt"
    tier: Tier = "full"
    access: Access = "weights"
    knowledge: Knowledge = "forget answers"
    needs_original: bool = False
    source: str = "Schwinn et al. 2024, arXiv 2402.09063; Lester et al. 2021, arXiv 2104.08691"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per kind of target, then the control.

        Raises:
            DataError: Every token of the vocabulary occurs in the prompts.
        """
        vectors = self._drawn(context)
        scale = float(vectors.square().mean().sqrt())
        for target in self.targets:
            words = self.generic_target if target == "generic" else ""
            trained, loss, passes = self._trained(context, vectors, scale * self.relative_step, words)
            yield Attacked(
                target,
                decoder=SoftPrefix(trained).decoder(),
                cost=Cost(passes, passes),
                details={
                    "loss": loss,
                    "vectors": self.num_tokens,
                    "capacity_bits": self.num_tokens * vectors.shape[1] * math.log2(2 * self.steps),
                },
            )
        yield Attacked("random", decoder=SoftPrefix(vectors).decoder(), control="random embeddings")

    def _drawn(self, context: AttackContext) -> Tensor:
        """Return embeddings of drawn tokens, K x D."""
        table_VD = context.subject.model.get_input_embeddings().weight.detach()
        chance = random.Random(f"{context.seed}:{self.name}")
        rows = [chance.randrange(len(table_VD)) for _ in range(self.num_tokens)]
        # Through the module, which scales in some families.
        ids = torch.tensor([rows], device=table_VD.device)
        with torch.no_grad():
            vectors: Tensor = context.subject.model.get_input_embeddings()(ids)[0]
        return vectors.detach().float().clone()

    def _trained(
        self, context: AttackContext, start_KD: Tensor, rate: float, words: str
    ) -> tuple[Tensor, float, int]:
        subject, engine = context.subject, BlockEngine(context.subject.model, context.structure)
        pairs = forced_pairs(subject, context.data.forget, words, chat_template=context.chat_template)
        marker = free_token(subject, [ids for pair in pairs for ids in pair])
        vectors_KD = start_KD.clone().requires_grad_(True)
        prefix = SoftPrefix(vectors_KD)
        marked: list[Pair] = [(prefix.marked(subject, prompt, marker), answer) for prompt, answer in pairs]
        optimizer = torch.optim.Adam([vectors_KD], lr=rate)
        chance = random.Random(f"{context.seed}:{self.name}:batches")
        passes, value = 0, math.nan
        with torch.enable_grad(), prefix.installed(subject.model, marker):
            for _ in range(self.steps):
                batch = chance.sample(marked, min(self.batch_size, len(marked)))
                loss = forcing_loss(engine, batch)
                (vectors_KD.grad,) = torch.autograd.grad(loss, [vectors_KD])
                optimizer.step()
                passes, value = passes + len(batch), float(loss.detach())
        return vectors_KD.detach(), value, passes


def free_token(subject: Subject, sequences: Sequence[TokenIds]) -> int:
    """Return a token id that occurs in none of the sequences and is not used for padding.

    Raises:
        DataError: There is none.
    """
    used = {token for sequence in sequences for token in sequence} | {subject.pad_id, 0}
    size = len(subject.model.get_input_embeddings().weight)
    for token in range(size - 1, -1, -1):
        if token not in used:
            return token
    raise DataError("soft-prompt: every token of the vocabulary occurs in the prompts")
