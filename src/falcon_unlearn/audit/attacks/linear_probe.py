"""Attack by reading truth from inside: a linear probe per block tells right options from wrong ones.

Shapes: N pairs of question and option, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from falcon_unlearn.activations.collect import pool_all_layers
from falcon_unlearn.audit.attacks.inner_scores import InnerScores, Sequences
from falcon_unlearn.audit.attacks.probe_fitting import Examples, Probe, fit_control, fit_probe
from falcon_unlearn.audit.base import (
    Access,
    AttackContext,
    Attacked,
    Cost,
    ExtraDecoder,
    Knowledge,
    OptionScorer,
    Tier,
    TokenIds,
)
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.errors import DataError
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.models.engine import BlockEngine


@dataclass(frozen=True)
class LinearProbe:
    """Train a truth probe on the attacker's facts, h(question + option) at the last token, and ask it others.

    The control of a block is a probe trained on shuffled labels; selectivity is the difference of both on
    clusters left out of the training.
    """

    name: str = "linear-probe"
    tier: Tier = "quick"
    access: Access = "activations"
    knowledge: Knowledge = "forget answers"
    needs_original: bool = False
    source: str = "Alain and Bengio 2016, arXiv 1610.01644; Hewitt and Liang 2019, arXiv 1909.03368"

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield the probe of every block, then the controls.

        Raises:
            DataError: The attacker holds no facts.
            PrerequisiteError: scikit-learn is not installed.
        """
        layers = range(context.structure.num_blocks)
        examples = _examples(context)
        probes = [fit_probe(examples[layer]) for layer in layers]
        controls = [
            fit_control(examples[n], probes[n].strength, seed=1000 * context.seed + n) for n in layers
        ]
        engine = BlockEngine(context.subject.model, context.structure)
        inner = InnerScores(context.subject, partial(_read, engine, [*probes, *controls]))
        cost = Cost(forwards=len(examples[0].labels_N))
        for layer in layers:
            yield Attacked(
                variant=f"layer-{layer}",
                decoder=ExtraDecoder(option_scores=_last_token_scorer(context.subject, inner.scorer(layer))),
                formats=("text",),
                cost=cost,
                details=_details(probes[layer], controls[layer]),
            )
        for layer in layers:
            scorer = inner.scorer(len(probes) + layer)
            yield Attacked(
                variant=f"layer-{layer}-shuffled",
                decoder=ExtraDecoder(option_scores=_last_token_scorer(context.subject, scorer)),
                formats=("text",),
                control=f"layer-{layer}",
            )


def _details(probe: Probe, control: Probe) -> dict[str, float | str]:
    details: dict[str, float | str] = {"inverse_penalty": probe.strength}
    if probe.accuracy is not None and control.accuracy is not None:
        details |= {
            "left_out_accuracy": probe.accuracy,
            "shuffled_accuracy": control.accuracy,
            "selectivity": probe.accuracy - control.accuracy,
        }
    return details


def _examples(context: AttackContext) -> list[Examples]:
    """Return per block what its probe learns from: every option of the attacker's facts."""
    facts = (*context.data.forget, *context.data.retain)
    if not facts:
        raise DataError("linear probes learn from facts, and the attacker holds none", hint="give more facts")
    encoded = [_encoded(context, fact) for fact in facts]
    features_LND = pool_all_layers(
        BlockEngine(context.subject.model, context.structure),
        [[*prompt, *option] for prompt, options in encoded for option in options],
        pooling="last",
        sink_factor=1.0,
        batch_tokens=context.subject.batch_tokens,
        progress=lambda _done, _total: None,
    )
    owners = [number for number, fact in enumerate(facts) for _ in fact.options]
    labels = [int(place == fact.answer_index) for fact in facts for place in range(len(fact.options))]
    clusters = tuple(facts[owner].cluster for owner in owners)
    return [
        Examples(features.double().numpy(), np.array(labels), np.array(owners), clusters)
        for features in features_LND
    ]


def _encoded(context: AttackContext, fact: Fact) -> tuple[list[int], list[list[int]]]:
    question = Prompting(context.subject.tokenizer, context.chat_template).text_question(fact)
    return context.subject.encode_completions(question.prompt, question.completions)


def _last_token_scorer(subject: Subject, inner: OptionScorer) -> OptionScorer:
    """Return a scorer that reads at the last token of each completion."""

    def score(
        _subject: Subject, prompts: Sequence[TokenIds], completions: Sequence[Sequence[TokenIds]]
    ) -> list[list[float]]:
        fed = [
            [*prompt, *option]
            for prompt, options in zip(prompts, completions, strict=True)
            for option in options
        ]
        # The state at the last fed token is read; which token would follow does not matter.
        found = iter(inner(subject, fed, [[[subject.pad_id]]] * len(fed)))
        return [[next(found)[0] for _ in options] for options in completions]

    return score


def _read(engine: BlockEngine, probes: Sequence[Probe], batch: Sequences) -> list[Tensor]:
    """Return the log-odds of every probe at the batch's positions; half of the probes are controls."""
    count = engine.structure.num_blocks
    scores: dict[int, Tensor] = {}

    def observe(layer: int, states_BLD: Tensor) -> None:
        features = batch.rows(states_BLD)[batch.positions_T].double().cpu().numpy()
        for number in (layer, count + layer):
            scores[number] = torch.from_numpy(probes[number].scores(features))

    with engine.observe(observe):
        engine.base(input_ids=batch.ids_BL, use_cache=False)
    return [scores[number] for number in range(len(probes))]
