"""One session of a method on outputs: freeze what is needed of the model, run the loop, commit the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from falcon_unlearn.activations.kept import kept_files
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Notice, Progress, StageFinished, StageStarted
from falcon_unlearn.examples import EncodedExample
from falcon_unlearn.models.adapters import LORA_WARNING, lora_adapters
from falcon_unlearn.models.checkpointing import recomputed_blocks
from falcon_unlearn.models.engine import BlockEngine, parameters_in_dtype
from falcon_unlearn.objectives.outputs.build import build_output_objective
from falcon_unlearn.results import TrainingResult
from falcon_unlearn.runs import WorkFolder
from falcon_unlearn.runs.memory import peak_memory_bytes
from falcon_unlearn.training.loop import TrainingOutcome
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.outputs.alternatives import alternative_examples
from falcon_unlearn.training.outputs.corpora import OutputCorpus
from falcon_unlearn.training.outputs.loop import OutputLoop
from falcon_unlearn.training.outputs.reference import FrozenFiles, FrozenHead, FrozenOutputs, freeze_outputs
from falcon_unlearn.training.outputs.trainables import AdapterValues, Trainables, trained_names
from falcon_unlearn.training.session import (
    Session,
    count_parameters,
    resolve_learning_rate,
    settled_dtype,
    step_plan,
    training_states,
)
from falcon_unlearn.training.utility import utility_meter


def unlearn_outputs(
    engine: BlockEngine,
    tokenizer: Any,
    data: PreparedData,
    recipe: Recipe,
    layer: int,
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None = None,
) -> Session:
    """Unlearn through the model's predictions: the trained tensors hold the result on return.

    Args:
        engine: Engine over the loaded model.
        tokenizer: Its tokenizer, for alternative answers.
        data: Tokenised corpora.
        recipe: The resolved recipe.
        layer: Last trained block where only a window is trained.
        folder: Existing scratch folder for the store.
        sink: Receives progress.
        work: Keeps what is finished, and gives it back after a kill; nothing is kept if None.

    Raises:
        UsageError: The recipe asks for what this kind of method cannot do.
        NumericalError: The run diverged; the model holds its original tensors again.
    """
    check_recipe(recipe)
    dtype = settled_dtype(work, "compute_dtype", recipe.train.compute_dtype, engine.device)
    names = trained_names(engine.model, engine.structure, recipe, layer)
    masters = Masters(engine.model, list(names))
    with parameters_in_dtype(list(engine.model.parameters()), dtype):
        frozen = _freeze(engine, tokenizer, data, recipe, folder, sink, work)
        started = time.perf_counter()
        meter = None
        if recipe.train.maximum_utility_loss is not None:
            meter = utility_meter(engine, data, recipe.runtime.cache_batch_tokens)
        sink(StageStarted(stage="train", message=_stage_message(recipe, len(names))))
        finished = False
        try:
            with (
                _trainables(engine, masters, names, recipe, sink) as (trainables, layers, rate),
                recomputed_blocks(engine.blocks, active=recipe.train.gradient_checkpointing),
            ):
                head = FrozenHead(engine.model) if frozen.needs_head else None
                objective = build_output_objective(recipe.method, recipe.objective)
                loop = OutputLoop(
                    engine, trainables, layers, frozen.forget, frozen.retain, objective, recipe, rate, head
                )
                outcome = loop.run(step_plan(data, recipe), sink, training_states(work, recipe), meter)
            finished = True
        finally:
            if not finished:
                masters.revert()
    if recipe.method == "task_vector":
        negate_task_vector(masters, recipe.objective.task_vector.scale)
    sink(StageFinished(stage="train", seconds=time.perf_counter() - started))
    changed = masters.commit()
    run = _Finished(outcome, names, rate, dtype, frozen, loop.state.seconds)
    return Session(_record(engine, recipe, data, masters, run), changed, masters.original)


def check_recipe(recipe: Recipe) -> None:
    """Raise UsageError for settings that have no meaning for methods on outputs."""
    if recipe.train.maximum_retain_drift is not None:
        raise UsageError(
            "train.maximum_retain_drift: it bounds hidden states, and "
            f"{recipe.method} acts on outputs, which has none",
            hint="Leave it out, or set train.maximum_utility_loss.",
        )
    if recipe.method == "task_vector" and recipe.train.maximum_utility_loss is not None:
        raise UsageError(
            "train.maximum_utility_loss: task_vector learns the forget text and takes the opposite at the "
            "end, so no step on the way says what the result will be",
            hint="Leave it out, and lower objective.task_vector.scale.",
        )


def negate_task_vector(masters: Masters, scale: float) -> None:
    """Replace what was learnt by its opposite: original - scale * (learnt - original)."""
    with torch.no_grad():
        for name, value in masters.values.items():
            original = masters.original[name].float()
            value.copy_(original - scale * (value - original))


@dataclass(frozen=True)
class _Frozen:
    forget: list[OutputCorpus]
    retain: list[OutputCorpus]
    needs_head: bool
    seconds: float

    @property
    def num_bytes(self) -> int:
        corpora = (*self.forget, *self.retain)
        others = sum(c.frozen_alternatives.num_bytes for c in corpora if c.frozen_alternatives is not None)
        return sum(corpus.frozen.num_bytes for corpus in corpora) + others

    @property
    def num_tokens(self) -> int:
        corpora = [c for c in (*self.forget, *self.retain) if c.frozen.num_bytes]
        return sum(len(e.input_ids) for c in corpora for e in (*c.examples, *c.alternatives))


def _stage_message(recipe: Recipe, count: int) -> str:
    what = "adapters on all blocks" if recipe.train.parameters == "lora" else f"{count} tensors"
    return f"{recipe.train.steps} steps of {recipe.method} on {what}"


def _freeze(
    engine: BlockEngine,
    tokenizer: Any,
    data: PreparedData,
    recipe: Recipe,
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None,
) -> _Frozen:
    started = time.perf_counter()
    needs = recipe.method_entry.needs
    retain_needs = needs & {"distribution"}
    if recipe.objective.retain_loss == "kl" and recipe.objective.retain_multiplier > 0:
        retain_needs |= {"distribution"}
    sink(StageStarted(stage="cache", message="what the frozen model says about the training data"))
    everything = recipe.data.loss_on == "all"

    def freeze(corpus: Corpus, kind: str, wanted: frozenset[str]) -> OutputCorpus:
        def outputs(examples: tuple[EncodedExample, ...], suffix: str) -> FrozenOutputs:
            name = f"{kind}-{corpus.name}{suffix}"
            files = FrozenFiles(folder / f"{name}.frozen", folder / f"{name}.log-probabilities")

            def compute() -> FrozenOutputs:
                outputs = freeze_outputs(
                    engine,
                    examples,
                    wanted,
                    files.states,
                    everything=everything,
                    batch_tokens=recipe.runtime.cache_batch_tokens,
                    progress=lambda done: sink(Progress(stage="cache", done=done, total=len(examples))),
                )
                if work is not None:
                    files.save(outputs)
                return outputs

            return kept_files(
                work,
                f"cache:{name}",
                [files.states, files.log_probabilities],
                compute=compute,
                reopen=lambda: files.open(engine, examples, everything=everything),
            )

        examples = corpus.training
        if kind == "retain" or "alternatives" not in needs:
            return OutputCorpus(corpus.name, examples, outputs(examples, ""))
        others = _kept_examples(
            work,
            f"alternatives:{corpus.name}",
            lambda: alternative_examples(
                engine.model, tokenizer, examples, recipe.objective.alternatives, recipe.seed
            ),
        )
        return OutputCorpus(corpus.name, examples, outputs(examples, ""), others, outputs(others, "-other"))

    forget = [freeze(corpus, "forget", needs) for corpus in data.forget]
    retain = [freeze(corpus, "retain", frozenset(retain_needs)) for corpus in data.retain]
    seconds = time.perf_counter() - started
    sink(StageFinished(stage="cache", seconds=seconds))
    return _Frozen(forget, retain, "distribution" in (needs | retain_needs), seconds)


def _kept_examples(
    work: WorkFolder | None, key: str, compute: Callable[[], tuple[EncodedExample, ...]]
) -> tuple[EncodedExample, ...]:
    """Return examples that an earlier process made, or make and keep them."""
    if work is None:
        return compute()
    if work.get(key) is None:
        work.put(key, {"examples": [astuple(example) for example in compute()]})
    rows = (work.get(key) or {})["examples"]
    return tuple(EncodedExample(tuple(ids), tuple(mask), text, cut) for ids, mask, text, cut in rows)


@contextmanager
def _trainables(
    engine: BlockEngine, masters: Masters, names: dict[str, int], recipe: Recipe, sink: EventSink
) -> Iterator[tuple[Trainables, dict[str, int], float]]:
    """Yield what is trained, its layers and the learning rate; merge adapters into the masters at the end."""
    settings = recipe.train
    rate = resolve_learning_rate(settings.learning_rate, settings.relative_step, masters)
    if settings.parameters != "lora":
        with masters.trainable():
            masters.push()
            yield masters, names, rate
        return
    sink(Notice(message=LORA_WARNING, level="warning"))
    with lora_adapters(engine.model, settings.lora, recipe.seed) as adapters:
        yield AdapterValues(adapters.parameters), dict.fromkeys(adapters.parameters, 0), rate
        merged: dict[str, Tensor] = adapters.merged(masters.values)
    masters.restore({name: value for name, value in merged.items() if name in masters.values})


@dataclass(frozen=True)
class _Finished:
    outcome: TrainingOutcome
    names: dict[str, int]
    rate: float
    dtype: torch.dtype
    frozen: _Frozen
    seconds: float


def _record(
    engine: BlockEngine, recipe: Recipe, data: PreparedData, masters: Masters, run: _Finished
) -> TrainingResult:
    total = count_parameters(engine.model)
    changes = [change for change in masters.changes() if change.norm_change > 0]
    return TrainingResult.model_validate(
        {
            "method": recipe.method,
            "status": run.outcome.status,
            "steps_planned": recipe.train.steps,
            "steps_done": run.outcome.steps_done,
            "kept_step": run.outcome.kept_step,
            "utility_loss": run.outcome.utility_loss,
            "window": (0, engine.structure.num_blocks - 1),
            "trained": list(run.names),
            "trained_parameters": sum(value.numel() for value in masters.values.values()),
            "total_parameters": total,
            "learning_rate": run.rate,
            "compute_dtype": str(run.dtype).removeprefix("torch."),
            "history": run.outcome.history,
            "domains": [corpus.name for corpus in data.forget],
            "changes": changes,
            "seconds_cache": run.frozen.seconds,
            "seconds_train": run.seconds,
            "cached_tokens": run.frozen.num_tokens,
            "cache_bytes": run.frozen.num_bytes,
            "peak_memory_bytes": peak_memory_bytes(),
            "flops": {
                "cache": 2.0 * total * run.frozen.num_tokens,
                # Forward, activation gradients and weight gradients of every parameter.
                "train": 6.0 * total * run.outcome.num_tokens,
            },
        }
    )
