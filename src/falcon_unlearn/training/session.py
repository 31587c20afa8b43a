"""One unlearning session: cache, fit targets, run the loop, commit the result to the model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from falcon_unlearn.activations.caching import cache_states
from falcon_unlearn.activations.collect import CachedStates, reopen_states, state_files
from falcon_unlearn.activations.kept import files_are_whole, kept_files
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.conflict import Gramian
from falcon_unlearn.data.batches import BatchPlan, plan_batches
from falcon_unlearn.data.corpora import Corpus, PreparedData
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.distributed.stores import machine_folder
from falcon_unlearn.distributed.team import Team
from falcon_unlearn.errors import UsageError
from falcon_unlearn.events import EventSink, Progress, StageFinished, StageStarted
from falcon_unlearn.models.architectures import resolve_trained_parameters
from falcon_unlearn.models.engine import BlockEngine, tensors_replaced
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.results import TrainingResult
from falcon_unlearn.runs import WorkFolder
from falcon_unlearn.runs.memory import peak_memory_bytes
from falcon_unlearn.training.batches import CachedCorpus
from falcon_unlearn.training.caching import announce_stores, cache_by_block
from falcon_unlearn.training.compiling import compiled_window
from falcon_unlearn.training.cost import cache_flops, train_flops
from falcon_unlearn.training.fitting import Caches, fit_objective
from falcon_unlearn.training.loop import TrainingOutcome, UnlearningLoop
from falcon_unlearn.training.masters import Masters
from falcon_unlearn.training.sharded import ShardedMasters, window_masters
from falcon_unlearn.training.states import TrainingStates
from falcon_unlearn.training.team_states import TeamStates
from falcon_unlearn.training.utility import UtilityMeter, UtilityTrail, last_inside, utility_meter


@dataclass(frozen=True)
class Session:
    """Hold a finished session: the record, the new and the original tensors, both in the source dtype."""

    result: TrainingResult
    changed: dict[str, Tensor]
    original: dict[str, Tensor]


def unlearn_window(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    layer: int,
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None = None,
) -> Session:
    """Unlearn at `layer`: the model's trained tensors hold the result, in the source dtype, on return.

    Args:
        engine: Engine over the loaded model; only blocks 0 .. layer ever run.
        data: Tokenised corpora.
        recipe: The resolved recipe.
        layer: Loss layer, 0-based.
        folder: Existing scratch folder for the stores.
        sink: Receives progress.
        work: Keeps stores and states, and gives them back after a kill; nothing is kept if None.

    Raises:
        NumericalError: The run diverged; the model holds its original tensors again.
    """
    with machine_folder(current_team(), folder) as own_folder:
        run = _train(engine, data, recipe, layer, own_folder, sink, work)
    changed = run.masters.commit()
    engine.keep(changed)
    return Session(_record(engine, recipe, run, data), changed, run.masters.original)


def probe_window(
    engine: BlockEngine, data: PreparedData, recipe: Recipe, layer: int, folder: Path, sink: EventSink
) -> list[Gramian]:
    """Train like `unlearn_window`, put the model back, and return the gradients' inner products by step."""
    with machine_folder(current_team(), folder) as own_folder:
        run = _train(engine, data, recipe, layer, own_folder, sink)
    run.masters.revert()
    return run.gramians


def trial_window(
    engine: BlockEngine, data: PreparedData, recipe: Recipe, layer: int, folder: Path, sink: EventSink
) -> dict[str, Tensor]:
    """Train like `unlearn_window`, put the model back, and return the trained tensors in the source dtype."""
    with machine_folder(current_team(), folder) as own_folder:
        run = _train(engine, data, recipe, layer, own_folder, sink)
    changed = run.masters.commit()
    run.masters.revert()
    return changed


@dataclass(frozen=True)
class _TrainedRun:
    window: tuple[int, int]
    layers: dict[str, int]
    masters: Masters
    caches: Caches
    outcome: TrainingOutcome
    gramians: list[Gramian]
    learning_rate: float
    seconds: float


def _train(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    layer: int,
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None = None,
) -> _TrainedRun:
    settings = recipe.train
    window = (layer - settings.layers + 1, layer)
    blocks = range(window[0], window[1] + 1)
    layers = resolve_trained_parameters(engine.model, engine.structure, settings.modules, blocks)
    team = current_team()
    _check_parts(recipe, team)
    caches = _cache_all(engine, data, recipe, window, folder, sink, work, team)
    with engine.resident(*window):
        return _train_cached(engine, data, recipe, layers, window, caches, folder, sink, work, team)


def _train_cached(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    layers: dict[str, int],
    window: tuple[int, int],
    caches: Caches,
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None,
    team: Team,
) -> _TrainedRun:
    settings = recipe.train
    masters = Masters(engine.model, list(layers))
    sink(StageStarted(stage="train", message=f"{settings.steps} steps on blocks {window[0]}-{window[1]}"))
    started = time.perf_counter()
    budget = _open_budget(engine, data, recipe, folder)
    rate = resolve_learning_rate(settings.learning_rate, settings.relative_step, masters)
    objective = fit_objective(caches, recipe)
    finished = False
    try:
        with (
            engine.computing(*window, caches.compute_dtype, trained=layers),
            window_masters(engine, masters, window, team, recipe.runtime.shard) as masters,
            compiled_window(
                engine, window, recipe.runtime.compile, sink, is_sharded=isinstance(masters, ShardedMasters)
            ),
            engine.window(*window),
            masters.trainable(),
        ):
            masters.push()
            loop = UnlearningLoop(
                engine,
                masters,
                layers,
                caches.forget,
                caches.retain,
                objective,
                recipe.objective,
                settings,
                rate,
                team,
            )
            states = training_states(work, recipe)
            if team.size > 1:
                states = TeamStates(states, masters, team, settings.steps)
            trail = None if budget is None else budget.trail
            outcome = loop.run(step_plan(data, recipe), sink, states, trail)
        if budget is not None:
            outcome = _hold_budget(engine, masters, outcome, budget)
        finished = True
    finally:
        if not finished:
            masters.revert()
    sink(StageFinished(stage="train", seconds=time.perf_counter() - started))
    seconds = loop.state.seconds
    return _TrainedRun(window, layers, masters, caches, outcome, loop.gramians, rate, seconds)


@dataclass(frozen=True)
class _Budget:
    limit: float
    meter: UtilityMeter
    trail: UtilityTrail


def _open_budget(engine: BlockEngine, data: PreparedData, recipe: Recipe, folder: Path) -> _Budget | None:
    """Measure the original model where the recipe sets a utility budget."""
    limit = recipe.train.maximum_utility_loss
    if limit is None:
        return None
    if current_team().size > 1:
        raise UsageError(
            "train.maximum_utility_loss: is measured by one process, but several work on this run",
            hint="Start one process, or use train.maximum_retain_drift.",
        )
    meter = utility_meter(engine, data, recipe.runtime.cache_batch_tokens)
    return _Budget(limit, meter, UtilityTrail(folder, recipe.train.utility_steps))


def _hold_budget(
    engine: BlockEngine, masters: Masters, outcome: TrainingOutcome, budget: _Budget
) -> TrainingOutcome:
    """Go back to the last kept step inside the budget; the upper blocks run here for the first time."""

    def loss_at(step: int) -> float:
        values = masters.values if step == outcome.kept_step else budget.trail.read(step)
        with tensors_replaced(engine.model, values):
            return budget.meter.loss()

    loss = loss_at(outcome.kept_step)
    if loss <= budget.limit:
        return replace(outcome, utility_loss=loss)
    kept, loss = last_inside(budget.trail.steps(outcome.kept_step), loss_at, budget.limit)
    masters.restore(budget.trail.read(kept) if kept else masters.original)
    return replace(outcome, status="stopped_on_budget", kept_step=kept, utility_loss=loss)


def training_states(work: WorkFolder | None, recipe: Recipe) -> TrainingStates:
    """Return where the loop's states are kept."""
    snapshots = None if work is None else work.snapshots("training")
    return TrainingStates(snapshots, recipe.runtime.save_seconds)


def settled_dtype(work: WorkFolder | None, key: str, requested: str, device: torch.device) -> torch.dtype:
    """Decide a dtype, once for all processes of a run: `auto` measures, and could measure otherwise later."""
    if work is None:
        return resolve_compute_dtype(requested, device)
    name = work.value(key, lambda: str(resolve_compute_dtype(requested, device)).removeprefix("torch."))
    return resolve_compute_dtype(name, device)


def resolve_learning_rate(requested: float | str, relative_step: float, masters: Masters) -> float:
    """Return the learning rate; `auto` is relative_step times the root mean square of the trained weights.

    One Adam step changes an element by about the learning rate, so this fixes the relative size of a step
    whatever the width and scale of the model.
    """
    return relative_step * masters.mean_root_square() if requested == "auto" else float(requested)


def _check_parts(recipe: Recipe, team: Team) -> None:
    if recipe.train.micro_batch_tokens is not None and team.size > 1:
        raise UsageError(
            f"train.micro_batch_tokens: got {recipe.train.micro_batch_tokens} with {team.size} processes, "
            "which would wait for each other's parts",
            hint="Leave it out: each process holds only its share of a batch.",
        )


def step_plan(data: PreparedData, recipe: Recipe) -> BatchPlan:
    """Return the seeded order of batches of a run."""
    return plan_batches(
        [len(corpus.training) for corpus in data.forget],
        [corpus.weight for corpus in data.forget],
        [len(corpus.training) for corpus in data.retain],
        [corpus.weight for corpus in data.retain],
        batch_size=recipe.train.batch_size,
        steps=recipe.train.steps,
        seed=recipe.seed,
    )


def _cache_all(
    engine: BlockEngine,
    data: PreparedData,
    recipe: Recipe,
    window: tuple[int, int],
    folder: Path,
    sink: EventSink,
    work: WorkFolder | None = None,
    team: Team | None = None,
) -> Caches:
    started = time.perf_counter()
    team = team or Team()
    train = recipe.train
    compute_dtype = team.from_leader(
        lambda: settled_dtype(work, "compute_dtype", train.compute_dtype, engine.device)
    )
    store_dtype = compute_dtype
    if train.store_dtype != "auto":
        store_dtype = team.from_leader(
            lambda: settled_dtype(work, "store_dtype", train.store_dtype, engine.device)
        )
    sink(StageStarted(stage="cache", message=f"states around blocks {window[0]}-{window[1]}"))
    total = sum(len(corpus.training) for corpus in (*data.forget, *data.retain))
    done = 0
    announce_stores(engine, data, folder, store_dtype, sink)
    by_block: dict[str, CachedStates] = {}
    if engine.is_streamed:
        by_block = cache_by_block(
            engine, data, recipe, window, folder, compute_dtype, store_dtype, sink, work, team
        )

    def cache(corpus: Corpus, kind: str) -> CachedCorpus:
        nonlocal done
        samples = [example.input_ids for example in corpus.training]
        name = f"{kind}-{corpus.name}"
        files = state_files(folder, name)
        states = by_block.get(name) or kept_files(
            work,
            f"cache:{name}",
            files,
            compute=lambda: cache_states(
                engine,
                samples,
                window,
                folder,
                name,
                compute_dtype=compute_dtype,
                store_dtype=store_dtype,
                batch_tokens=recipe.runtime.cache_batch_tokens,
                progress=lambda count, _: sink(Progress(stage="cache", done=done + count, total=total)),
                team=team,
            ),
            reopen=lambda: reopen_states(
                folder, name, list(map(len, samples)), engine.structure.hidden_size, store_dtype, team
            ),
            is_whole=team.from_leader(lambda: files_are_whole(work, f"cache:{name}", files)),
        )
        done += len(corpus.training)
        masks = tuple(
            torch.tensor(example.answer_mask) | (recipe.data.loss_on == "all") for example in corpus.training
        )
        return CachedCorpus(corpus.name, states, masks)

    forget = [cache(corpus, "forget") for corpus in data.forget]
    retain = [cache(corpus, "retain") for corpus in data.retain]
    seconds = time.perf_counter() - started
    sink(StageFinished(stage="cache", seconds=seconds))
    return Caches(forget, retain, compute_dtype, seconds)


def _record(engine: BlockEngine, recipe: Recipe, run: _TrainedRun, data: PreparedData) -> TrainingResult:
    masters, caches, outcome, window = run.masters, run.caches, run.outcome, run.window
    block_parameters = sum(p.numel() for p in engine.block(window[1]).parameters())
    trained = sum(value.numel() for value in masters.values.values())
    num_blocks = window[1] - window[0] + 1
    return TrainingResult.model_validate(
        {
            "method": recipe.method,
            "status": outcome.status,
            "steps_planned": recipe.train.steps,
            "steps_done": outcome.steps_done,
            "kept_step": outcome.kept_step,
            "window": window,
            "trained": list(run.layers),
            "trained_parameters": trained,
            "total_parameters": count_parameters(engine.model),
            "learning_rate": run.learning_rate,
            "compute_dtype": str(caches.compute_dtype).removeprefix("torch."),
            "utility_loss": outcome.utility_loss,
            "history": outcome.history,
            "domains": [corpus.name for corpus in data.forget],
            "changes": masters.changes(),
            "seconds_cache": caches.seconds,
            "seconds_train": run.seconds,
            "cached_tokens": caches.num_tokens,
            "cache_bytes": caches.num_bytes,
            "peak_memory_bytes": peak_memory_bytes(),
            "bytes_read": engine.reading[0],
            "seconds_read": engine.reading[1],
            "flops": {
                "cache": cache_flops(caches.num_tokens, block_parameters, window[1]),
                "train": train_flops(outcome.num_tokens, block_parameters, num_blocks, trained),
            },
        }
    )


def count_parameters(model: torch.nn.Module) -> int:
    """Count parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
