"""Attack by a few steps of fine-tuning: what was only hidden comes back faster than it could be learnt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Literal

from falcon_unlearn.audit.attacks.learners import Learner, LearnerSettings, Method
from falcon_unlearn.audit.base import Access, AttackContext, AttackData, Attacked, Cost, Knowledge, Tier
from falcon_unlearn.audit.facts import Fact
from falcon_unlearn.audit.prompting import Prompting
from falcon_unlearn.events import Notice
from falcon_unlearn.examples import EncodedExample, Example
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.text import TextEncoder

Threat = Literal["in-domain", "benign", "rtt"]
LADDER = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
QUICK_LADDER = (4, 16, 64, 256)
_KNOWLEDGE: dict[Threat, Knowledge] = {
    "in-domain": "forget answers",
    "benign": "none",
    "rtt": "forget answers",
}
_SOURCE: dict[Threat, str] = {
    "in-domain": "Lynch et al. 2024, arXiv 2402.16835; Łucki et al. 2024, arXiv 2409.18025",
    "benign": "Hu et al. 2024, arXiv 2406.13356",
    "rtt": "Deeb and Roger 2024, arXiv 2410.08827",
}


@dataclass(frozen=True)
class Relearning:
    """Fine-tune on one kind of text and stop at every rung of a ladder of steps.

    Threat models, which are never mixed: `in-domain` learns texts about the topic (forget texts of the attack
    split, else statements of its facts) together with its questions and answers; `benign` learns unrelated
    texts; `rtt` (retrain on some, test on others) learns questions and answers of the attack split alone. The
    facts of the report are of other clusters, so what a null model gains here was taught by the attack.
    """

    threat: Threat = "in-domain"
    methods: tuple[Method, ...] = ("full", "lora")
    rungs: tuple[int, ...] | None = None
    """Steps at which the model is handed out; None: few of them in the quick tier."""
    batch_size: int = 4
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    """Its method is replaced by each of `methods`."""
    relative_steps: tuple[float, ...] = ()
    """Run the ladder once per relative step; empty: the learner's own."""
    maximum_tokens: int = 128
    """Longest text; longer ones are cut."""
    quick_budget: float = 2e12
    """In the quick tier a ladder ends before this many floating point operations; the first rung always runs.
    Counted, not timed: the same model gets the same rungs everywhere."""
    tier: Tier = "quick"
    access: Access = "weights"
    needs_original: bool = False

    @property
    def name(self) -> str:
        """Return the name with its threat model."""
        return f"relearning-{self.threat}"

    @property
    def trains(self) -> bool:
        """Say that facts may be taught, so that without a null model nothing is compared."""
        return True

    @property
    def knowledge(self) -> Knowledge:
        """Return what of the data the threat model uses."""
        return _KNOWLEDGE[self.threat]

    @property
    def source(self) -> str:
        """Return where the threat model comes from."""
        return _SOURCE[self.threat]

    def attack(self, context: AttackContext) -> Iterator[Attacked]:
        """Yield one variant per method, learning rate and rung.

        Raises:
            PrerequisiteError: Adapters are asked for and `peft` is absent.
            NumericalError: The loss is not finite.
        """
        encoder = TextEncoder(
            context.subject.tokenizer, chat_template=context.chat_template, maximum_tokens=self.maximum_tokens
        )
        examples = relearning_examples(encoder, context.data, self.threat, context.chat_template)
        if not examples:
            context.sink(
                Notice(message=f"{self.name}: no texts to learn, so it is left out", level="warning")
            )
            return
        steps: tuple[float | None, ...] = self.relative_steps or (None,)
        for method in self.methods:
            for step in steps:
                settings = replace(self.learner, method=method)
                label = str(method)
                if step is not None:
                    settings = replace(settings, relative_step=step)
                    label = f"{method}-{step:g}"
                yield from self._climb(context, examples, settings, label)

    def _climb(
        self,
        context: AttackContext,
        examples: Sequence[EncodedExample],
        settings: LearnerSettings,
        label: str,
    ) -> Iterator[Attacked]:
        engine = BlockEngine(context.subject.model, context.structure)
        learner = Learner(engine, settings, context.seed)
        batches = endless_batches(examples, self.batch_size, context.seed)
        rungs = self._rungs(context, examples)
        passes, loss = 0, None
        for before, rung in pairwise((0, *rungs)):
            drawn = list(islice(batches, rung - before))
            passes += sum(len(batch) for batch in drawn)
            loss = learner.learn(drawn) if drawn else loss
            details: dict[str, float | str] = {
                "steps": rung,
                "learning_rate": learner.learning_rate,
                "trained_parameters": learner.num_trained,
                "texts": len(examples),
                "texts_seen": passes,
            }
            if loss is not None:
                details["loss"] = loss
            with learner.in_force():
                yield Attacked(f"{label}-step-{rung}", cost=Cost(passes, passes), details=details)

    def _rungs(self, context: AttackContext, examples: Sequence[EncodedExample]) -> tuple[int, ...]:
        if context.tier == "full":
            return self.rungs or LADDER
        tokens = self.batch_size * sum(len(example.input_ids) for example in examples) / len(examples)
        parameters = sum(parameter.numel() for parameter in context.subject.model.parameters())
        affordable = self.quick_budget / (6.0 * parameters * tokens)
        rungs = self.rungs or QUICK_LADDER
        return (rungs[0], *(rung for rung in rungs[1:] if rung <= affordable))


def relearning_examples(
    encoder: TextEncoder, data: AttackData, threat: Threat, chat_template: bool = False
) -> list[EncodedExample]:
    """Return what the threat model learns, as tokens."""
    if threat == "benign":
        return [encoder.encode(Example.of_text(text)) for text in data.benign_texts]
    prompting = Prompting(encoder.tokenizer, chat_template)
    questions = [encoder.encode(question_example(prompting, fact)) for fact in data.forget]
    if threat == "rtt":
        return questions
    texts = data.forget_texts or tuple(f"{fact.question} {fact.answer}" for fact in data.forget)
    return [*(encoder.encode(Example.of_text(text)) for text in texts), *questions]


def question_example(prompting: Prompting, fact: Fact) -> Example:
    """Return question and answer as they are scored."""
    question = prompting.text_question(fact)
    return Example.of_completion(question.prompt, question.completions[fact.answer_index])


def endless_batches(
    examples: Sequence[EncodedExample], batch_size: int, seed: int
) -> Iterator[list[EncodedExample]]:
    """Yield batches forever, each example once per round, in a seeded order."""
    chance = random.Random(f"{seed}:relearning")
    while True:
        order = list(examples)
        chance.shuffle(order)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
