"""Attack by reading answers from inside: every block, attention and MLP, through final norm and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from falcon_unlearn.audit.attacks.inner_scores import InnerScores, Sequences
from falcon_unlearn.audit.base import Access, AttackContext, Attacked, ExtraDecoder, Knowledge, Tier
from falcon_unlearn.events import Notice
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.parts import BlockStates, has_additive_parts, observe_parts
from falcon_unlearn.models.readout import HiddenReadout

COMPONENTS = ("block", "attention", "attention-residual", "mlp")
QUICK_VOCABULARY = 4096


@dataclass(frozen=True)
class LogitLens:
    """Score letters and option texts, teacher-forced, at every layer and component.

    The score of a completion is its mean log-probability per token. One forward pass serves all variants.
    """

    components: tuple[str, ...] = COMPONENTS
    vocabulary: int | None = None
    """Words in the softmax; None: 4096 drawn ones in the quick tier, all in the full one."""
    name: str = "logit-lens"
    tier: Tier = "quick"
    access: Access = "activations"
    knowledge: Knowledge = "none"
    needs_original: bool = False
    source: str = "nostalgebraist 2020; Lucki et al. 2024, arXiv 2409.18025"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per layer and component."""
        engine = BlockEngine(context.subject.model, context.structure)
        components = self._components(engine, context)
        vocabulary = self.vocabulary or (QUICK_VOCABULARY if context.tier == "quick" else None)
        readout = HiddenReadout(engine, vocabulary=vocabulary, seed=context.seed)
        inner = InnerScores(context.subject, partial(_read, engine, readout, components), readout.num_words)
        for layer in range(context.structure.num_blocks):
            for place, component in enumerate(components):
                index = layer * len(components) + place
                yield Attacked(
                    variant=f"layer-{layer}-{component}",
                    decoder=ExtraDecoder(option_scores=inner.scorer(index)),
                    formats=("letter", "text"),
                    details={"words_in_softmax": readout.num_words},
                )

    def _components(self, engine: BlockEngine, context: AttackContext) -> tuple[str, ...]:
        if self.components == ("block",) or has_additive_parts(engine, context.subject.encode("One two")):
            return self.components
        context.sink(
            Notice(
                message=f"{self.name}: in {context.structure.model_type} blocks attention and MLP do not "
                "simply add up; only block outputs are read",
                level="warning",
            )
        )
        return ("block",)


def _read(
    engine: BlockEngine, readout: HiddenReadout, components: Sequence[str], batch: Sequences
) -> list[Tensor]:
    """Return the targets' log-probabilities, one tensor per layer and component."""
    scores: list[Tensor] = []

    def score(states_PD: Tensor) -> None:
        scores.append(readout.log_probabilities(states_PD, batch.positions_T, batch.targets_T))

    def observe(_layer: int, states: BlockStates) -> None:
        entering, attention = batch.rows(states.entering), batch.rows(states.attention)
        views = {
            "block": batch.rows(states.leaving),
            "attention": attention,
            "attention-residual": entering + attention,
            "mlp": batch.rows(states.mlp),
        }
        for component in components:
            score(views[component])

    def observe_block(_layer: int, states_BLD: Tensor) -> None:
        score(batch.rows(states_BLD))

    with engine.observe(observe_block) if tuple(components) == ("block",) else observe_parts(engine, observe):
        engine.base(input_ids=batch.ids_BL, use_cache=False)
    return scores
