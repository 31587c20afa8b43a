"""Step 1 over a loaded model: pool states of all layers, score, choose."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from falcon_unlearn.activations.collect import pool_all_layers
from falcon_unlearn.activations.kept import kept_tensors
from falcon_unlearn.activations.sweep import pool_by_block
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import Corpus
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.events import EventSink, Progress, ignore_events
from falcon_unlearn.models.arithmetic import fast_arithmetic
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.precision import resolve_compute_dtype
from falcon_unlearn.pipeline.candidates import candidate_range
from falcon_unlearn.pipeline.resuming import standalone_work, work_identity
from falcon_unlearn.pipeline.trial import confirm_by_trial
from falcon_unlearn.pipeline.workspace import Workspace, open_workspace, seeded, timed_stage
from falcon_unlearn.results import LayerValue, SelectionResult
from falcon_unlearn.runs import Resume, WorkFolder
from falcon_unlearn.selection.estimators import score_layers
from falcon_unlearn.selection.rank import LayerChoice, LayerRanking, choose_layer, rank_layers
from falcon_unlearn.selection.score import LayerScores
from falcon_unlearn.selection.settings import InformationSettings
from falcon_unlearn.training.conflict_probe import probe_gradient_conflict

LayerStates = dict[int, Tensor]
"""Pooled states, N x D, by block."""


def select_layer(
    recipe: Recipe,
    *,
    sink: EventSink = ignore_events,
    output: Path | None = None,
    resume: Resume = "auto",
) -> SelectionResult:
    """Load model and data and run step 1 alone.

    Args:
        recipe: Model, data and selection settings.
        sink: Receives progress.
        output: Result file. What is finished is kept in `.NAME.work` beside it until it is written: after a
            kill, the same call goes on from there.
        resume: Go on with unfinished work if there is any, insist on it (`must`), or start again (`never`).

    Raises:
        FalconError: The model, the data or the settings cannot be used.
    """
    with seeded(recipe.seed, recipe.runtime.threads):
        workspace = open_workspace(recipe, sink, {})
        identity = work_identity("select", workspace, recipe, [])
        with standalone_work(output, identity, resume, sink) as work:
            result = select_in(workspace, recipe, sink, {}, work=work)
            if work is not None and output is not None:
                work.deliver(result, output)
        return result


def select_in(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path | None = None,
    work: WorkFolder | None = None,
) -> SelectionResult:
    """Choose the loss layer of a loaded model, or record the one the user fixed; `work` keeps the choice."""
    if recipe.selection.layer is not None:
        return fixed_selection(recipe.selection.layer)
    team = current_team()
    if team.size > 1 and team.from_leader(lambda: work is not None and work.get("selection") is not None):
        # The leader remembers the choice; the others must not score alone.
        return team.from_leader(lambda: _kept_choice(workspace, recipe, sink, seconds, scratch, work))
    return _kept_choice(workspace, recipe, sink, seconds, scratch, work)


def _kept_choice(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path | None,
    work: WorkFolder | None,
) -> SelectionResult:
    if work is None:
        return _score_and_choose(workspace, recipe, sink, seconds, scratch, None)
    return work.record(
        "selection",
        SelectionResult,
        lambda: _score_and_choose(workspace, recipe, sink, seconds, scratch, work),
    )


def _score_and_choose(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    seconds: dict[str, float],
    scratch: Path | None,
    work: WorkFolder | None,
) -> SelectionResult:
    with timed_stage("select", f"scoring {workspace.engine.structure.num_blocks} layers", sink, seconds):
        team = current_team()
        if recipe.selection.estimator == "gradient_conflict":
            # All ranks take part in training, so none may leave out what only the leader remembers.
            kept = work if team.size == 1 else None
            scored = team.share(_select_by_gradients(workspace, recipe, sink, scratch, kept))
        else:
            with fast_arithmetic(workspace.loaded.model):
                scored = team.from_leader(
                    lambda: _select_by_information(workspace, recipe, sink, scratch, work)
                )
    return confirm_by_trial(scored, workspace, recipe, sink, seconds, scratch, work)


def fixed_selection(layer: int) -> SelectionResult:
    """Record a layer that the user fixed."""
    return SelectionResult(
        estimator="fixed",
        unit="none",
        layer=layer,
        best_layer=layer,
        fixed=True,
        rule="fixed",
        explanation=f"Layer {layer} was fixed by the user; no selection ran.",
    )


def no_selection(last_block: int) -> SelectionResult:
    """Record that the method trains the whole model through its outputs."""
    return SelectionResult(
        estimator="none",
        unit="none",
        layer=last_block,
        best_layer=last_block,
        fixed=True,
        rule="none",
        explanation="The method acts on the outputs of the whole model; no layer was selected.",
    )


def _select_by_information(
    workspace: Workspace, recipe: Recipe, sink: EventSink, scratch: Path | None, work: WorkFolder | None
) -> SelectionResult:
    started = time.perf_counter()
    chosen = {f"forget {c.name}": draw_samples(c, recipe, c.name) for c in workspace.data.forget}
    retain_rows = draw_mixture(workspace.data.retain, recipe)
    if workspace.engine.is_streamed:
        forget, retain = _pool_by_block(workspace, recipe, chosen, retain_rows, sink, scratch, work)
    else:
        forget, retain = _pool_by_corpus(workspace, recipe, chosen, retain_rows, sink, work)
    seconds_forward = time.perf_counter() - started
    started = time.perf_counter()
    settings = recipe.selection
    scores = score_layers(
        forget,
        retain,
        InformationSettings(
            estimator="paired" if settings.estimator == "paired" else "pooled",
            eta=settings.eta,
            minimum_explained_variance=settings.explained_variance,
            maximum_components=settings.maximum_components,
            num_permutations=settings.resamples,
            num_resamples=settings.resamples,
            seed=recipe.seed,
            on_failure="record",
        ),
    )
    return _record(scores, workspace.engine, recipe, seconds_forward, started)


def _pool_by_corpus(
    workspace: Workspace,
    recipe: Recipe,
    chosen: dict[str, list[tuple[int, ...]]],
    retain_rows: list[tuple[int, ...]],
    sink: EventSink,
    work: WorkFolder | None,
) -> tuple[dict[str, LayerStates], LayerStates]:
    total = sum(map(len, chosen.values())) + len(retain_rows)
    done = 0

    def pool(key: str, samples: Sequence[tuple[int, ...]]) -> LayerStates:
        nonlocal done

        def compute() -> dict[str, Tensor]:
            pooled = pool_all_layers(
                workspace.engine,
                samples,
                pooling=recipe.selection.pooling,
                sink_factor=recipe.objective.offset.sink_factor,
                batch_tokens=recipe.runtime.cache_batch_tokens,
                progress=lambda count, _: sink(Progress(stage="select", done=done + count, total=total)),
            )
            return {"pooled": pooled}

        pooled = kept_tensors(work, f"pooled-{key}", compute)["pooled"]
        done += len(samples)
        return dict(enumerate(pooled))

    forget = {name: pool(f"forget-{n}", chosen[name]) for n, name in enumerate(chosen)}
    return forget, pool("retain", retain_rows)


def _pool_by_block(
    workspace: Workspace,
    recipe: Recipe,
    chosen: dict[str, list[tuple[int, ...]]],
    retain_rows: list[tuple[int, ...]],
    sink: EventSink,
    scratch: Path | None,
    work: WorkFolder | None,
) -> tuple[dict[str, LayerStates], LayerStates]:
    """Pool all layers with one block in memory: every block is read once and sees all samples."""
    engine = workspace.engine
    corpora = {f"forget-{number}": rows for number, rows in enumerate(chosen.values())}
    compute_dtype = resolve_compute_dtype(recipe.train.compute_dtype, engine.device)
    store_dtype = compute_dtype
    if recipe.train.store_dtype != "auto":
        store_dtype = resolve_compute_dtype(recipe.train.store_dtype, engine.device)

    def compute() -> dict[str, Tensor]:
        with TemporaryDirectory(dir=scratch) as folder:
            return pool_by_block(
                engine,
                {**corpora, "retain": retain_rows},
                Path(folder),
                compute_dtype=compute_dtype,
                store_dtype=store_dtype,
                pooling=recipe.selection.pooling,
                sink_factor=recipe.objective.offset.sink_factor,
                batch_tokens=recipe.runtime.cache_batch_tokens,
                progress=lambda done, total: sink(
                    Progress(stage="select", done=done, total=total, message="blocks")
                ),
            )

    pooled = kept_tensors(work, "pooled-by-block", compute)
    forget = {name: dict(enumerate(pooled[key])) for name, key in zip(chosen, corpora, strict=True)}
    return forget, dict(enumerate(pooled["retain"]))


def _select_by_gradients(
    workspace: Workspace,
    recipe: Recipe,
    sink: EventSink,
    scratch: Path | None,
    work: WorkFolder | None,
) -> SelectionResult:
    started = time.perf_counter()
    candidates = candidate_range(recipe, workspace.engine.structure.num_blocks)
    with TemporaryDirectory(dir=scratch) as folder:
        scores = probe_gradient_conflict(
            workspace.engine,
            workspace.data,
            recipe,
            range(candidates[0], candidates[1] + 1),
            Path(folder),
            sink,
            work,
        )
    return _record(scores, workspace.engine, recipe, time.perf_counter() - started, time.perf_counter())


def draw_samples(corpus: Corpus, recipe: Recipe, key: str) -> list[tuple[int, ...]]:
    """Draw up to `selection.samples` training samples of a corpus, seeded."""
    rows = [example.input_ids for example in corpus.training]
    order = random.Random(f"{recipe.seed}:selection:{key}").sample(range(len(rows)), len(rows))
    return [rows[i] for i in order[: recipe.selection.samples]]


def draw_mixture(corpora: Sequence[Corpus], recipe: Recipe) -> list[tuple[int, ...]]:
    """Draw up to `selection.samples` retain samples, shared among the sets by weight."""
    total = sum(corpus.weight for corpus in corpora)
    rows: list[tuple[int, ...]] = []
    for corpus in corpora:
        share = max(1, round(recipe.selection.samples * corpus.weight / total))
        rows.extend(draw_samples(corpus, recipe, f"retain:{corpus.name}")[:share])
    return rows


def _record(
    scores: LayerScores, engine: BlockEngine, recipe: Recipe, seconds_forward: float, started: float
) -> SelectionResult:
    candidates = candidate_range(recipe, engine.structure.num_blocks)
    ranking: LayerRanking = rank_layers(scores, candidates=candidates)
    choice: LayerChoice = choose_layer(
        scores, candidates=candidates, rule=recipe.selection.rule, margin=recipe.selection.margin
    )
    layers = [
        LayerValue(
            layer=score.layer,
            value=score.value,
            low=score.low,
            high=score.high,
            null_mean=score.null_mean,
            null_low=score.null_low,
            null_high=score.null_high,
            components=score.num_components,
            probability_best=ranking.probability_best.get(score.layer, 0.0),
            candidate=candidates[0] <= score.layer <= candidates[1],
            flags=list(score.flags),
        )
        for score in scores.scores
    ]
    missing = "".join(f" Layer {layer} has no score: {why}" for layer, why in scores.missing.items())
    return SelectionResult(
        estimator=scores.estimator,
        unit="cosine" if scores.estimator == "gradient_conflict" else "nats",
        layer=choice.layer,
        best_layer=choice.best_layer,
        fixed=False,
        rule=choice.rule,
        tied_layers=list(choice.tied_layers),
        rank_stability=ranking.spearman,
        layers=layers,
        samples=dict(scores.num_samples),
        pooling=recipe.selection.pooling,
        eta=recipe.selection.eta,
        explanation=choice.reason + missing,
        seconds_forward=seconds_forward,
        seconds_estimator=time.perf_counter() - started,
    )
