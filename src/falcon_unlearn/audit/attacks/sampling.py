"""Attack by asking often: an answer that is never the likeliest may still come up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from falcon_unlearn.audit.base import Access, AttackContext, Attacked, ExtraDecoder, Knowledge, Tier, TokenIds
from falcon_unlearn.evaluation.generation import sampled_completions
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.linalg.intervals import clopper_pearson_upper

QUICK = ((1.0, 0.95),)
FULL = ((0.2, 1.0), (0.7, 1.0), (1.0, 0.95), (1.0, 1.0))


@dataclass(frozen=True)
class Sampling:
    """Draw several free answers per question; scoring turns them into the unbiased leak@k.

    The detail `zero_leak_bound` is the exact 95 % upper limit of the leak rate of a question whose answers
    are all clean (Clopper-Pearson).
    """

    draws: tuple[tuple[float, float], ...] | None = None
    """Temperature and top-p of each variant; None: one in the quick tier, four in the full one."""
    num_samples: int | None = None
    """Answers per question; None: 8 in the quick tier, 64 in the full one."""
    maximum_new_tokens: int = 64
    """Longest answer; that of the scoring, where it is shorter."""
    name: str = "sampling"
    tier: Tier = "quick"
    access: Access = "text"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "Scholten et al. 2025, arXiv 2410.03523"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per temperature and top-p."""
        full = context.tier == "full"
        num_samples = self.num_samples or (64 if full else 8)
        for temperature, top_p in self.draws or (FULL if full else QUICK):
            sampler = partial(
                self._sample, num_samples=num_samples, temperature=temperature, top_p=top_p, seed=context.seed
            )
            yield Attacked(
                f"temperature-{temperature:g}-top-{top_p:g}-of-{num_samples}",
                decoder=ExtraDecoder(samples=sampler),
                formats=("generation",),
                details={
                    "samples": num_samples,
                    "temperature": temperature,
                    "top_p": top_p,
                    "zero_leak_bound": clopper_pearson_upper(0, num_samples),
                },
            )

    def _sample(
        self,
        subject: Subject,
        prompts: Sequence[TokenIds],
        longest: int,
        *,
        num_samples: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[list[str]]:
        return sampled_completions(
            subject,
            prompts,
            maximum_new_tokens=min(longest, self.maximum_new_tokens),
            num_samples=num_samples,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            first_line=True,
        )
