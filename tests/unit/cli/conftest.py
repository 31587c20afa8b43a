"""A pipeline that records how it was called and returns small, real records."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from falcon_unlearn.cli.main import main
from falcon_unlearn.events import Notice, Progress, StageFinished, StageStarted, TrainingStepped
from falcon_unlearn.results import (
    CorpusCount,
    CoverageRow,
    DataResult,
    EvaluationResult,
    LayerValue,
    Metric,
    PlanResult,
    RunSummary,
    SelectionResult,
    SetResult,
    TrainingResult,
)


def data_result() -> DataResult:
    counts = dict.fromkeys(
        ["read", "too_short", "cut", "duplicates", "overlapping", "training", "held_out"], 3
    )
    corpus = CorpusCount(name="symbols", role="forget", source="f.jsonl", sha256="0", tokens=1234, **counts)
    return DataResult(corpora=[corpus], warnings=["few examples"])


def selection_result(*, fixed: bool = False) -> SelectionResult:
    layers = [
        LayerValue(
            layer=i,
            value=0.1 * (i + 1),
            low=0.1 * i,
            high=0.1 * (i + 2),
            null_mean=0.05,
            null_low=0.0,
            null_high=0.1,
            probability_best=0.25,
            candidate=i > 0,
            flags=["noisy"] if i == 3 else [],
        )
        for i in range(4)
    ]
    return SelectionResult(
        estimator="pooled",
        unit="nats",
        layer=2,
        best_layer=1,
        fixed=fixed,
        rule="earliest_tied",
        layers=[] if fixed else layers,
        explanation="Layer 2 is as good as any.",
    )


def evaluation_result(label: str, value: float) -> EvaluationResult:
    def metric(name: str, shift: float, desired: str, chance: float | None) -> Metric:
        return Metric(
            name=name,
            value=value + shift,
            low=value + shift - 0.05,
            high=value + shift + 0.05,
            interval="wilson",
            unit="share",
            chance=chance,
            desired=desired,
            num_items=24,
        )

    sets = [
        SetResult(
            name="symbols",
            role="forget",
            kind="choice",
            num_items=24,
            metrics=[
                metric("accuracy_text", 0.0, "lower", 0.25),
                metric("accuracy_letter", 0.01, "lower", 0.25),
            ],
        ),
        SetResult(
            name="capitals",
            role="retain",
            kind="choice",
            num_items=24,
            metrics=[metric("accuracy_text", 0.02, "unchanged", None)],
        ),
    ]
    return EvaluationResult(
        label=label, model="org/\x1b[31mbase", sets=sets, skipped=["letters: none"], seconds=1.0
    )


def training_result() -> TrainingResult:
    return TrainingResult(
        method="falcon",
        status="completed",
        steps_planned=60,
        steps_done=60,
        kept_step=60,
        window=(5, 7),
        trained=["model.layers.5.mlp.down_proj.weight"],
        trained_parameters=1000,
        total_parameters=135000,
        learning_rate=1e-3,
        compute_dtype="float32",
        history=[],
        domains=["symbols"],
        changes=[],
        seconds_cache=1.0,
        seconds_train=2.0,
        cached_tokens=100,
        cache_bytes=1000,
        peak_memory_bytes=2000,
    )


def summary(output: Path, *, evaluated: bool = True, collapse: list[str] | None = None) -> RunSummary:
    return RunSummary(
        collapse=collapse or [],
        output=str(output),
        report="falcon/report.html",
        data=data_result(),
        selection=selection_result(),
        training=training_result(),
        before=evaluation_result("before", 0.9) if evaluated else None,
        after=evaluation_result("after", 0.3) if evaluated else None,
        seconds={"train": 61.0},
    )


def plan_result() -> PlanResult:
    return PlanResult(
        model="org/base",
        architecture="LlamaForCausalLM",
        blocks=30,
        hidden_size=576,
        total_parameters=135_000_000,
        coverage=[CoverageRow(role="mlp.down", pattern="layers.{layer}.down", blocks=30, shape=[576, 1536])],
        layer=None,
        window=(5, 7),
        trained=["model.layers.5.mlp.down_proj.weight"],
        trained_parameters=884_736,
        steps=60,
        batch_size=8,
        memory_bytes={"weights": 2**29, "total": 2**30},
        disk_bytes={"output": 2**28, "total": 2**28},
        flops={"train": 1e12},
        seconds={"train": 75.0, "total": 80.0},
        metrics=["perplexity"],
        not_computed=["rouge_l: no answers"],
        warnings=["slow"],
    )


def emit_everything(sink) -> None:
    sink(StageStarted(stage="train", message="Training \x1b[31m3 blocks"))
    sink(Progress(stage="train", done=1, total=2, message="cached"))
    metrics = {"forget_loss": 1.25, "retain_loss": 0.5, "conflict_share": 0.4, "retain_drift": 0.01}
    for step in range(1, 5):
        sink(TrainingStepped(step=step, total=4, metrics=metrics))
    sink(Notice(message="careful \x1b]0;title\x07now", level="warning"))
    sink(Notice(message="by the way"))
    sink(StageFinished(stage="train", seconds=61.2, message="4 steps"))


@pytest.fixture
def calls(monkeypatch):
    """Replace the heavy modules and return what they were called with."""
    seen = SimpleNamespace(name=None, arguments=(), keywords={}, error=None, collapse=[])

    def record(name, result):
        def function(*arguments, **keywords):
            seen.name, seen.arguments, seen.keywords = name, arguments, keywords
            if seen.error is not None:
                raise seen.error
            if "sink" in keywords:
                emit_everything(keywords["sink"])
            return result(*arguments, **keywords)

        return function

    pipeline = ModuleType("falcon_unlearn.pipeline")
    pipeline.run_pipeline = record(
        "run_pipeline", lambda recipe, output, **_: summary(output, collapse=seen.collapse)
    )
    pipeline.unlearn = record("unlearn", lambda recipe, output, **_: summary(output, evaluated=False))
    pipeline.select_layer = record("select_layer", lambda recipe, **_: selection_result())
    pipeline.evaluate_model = record("evaluate_model", lambda recipe, **_: evaluation_result("single", 0.5))
    pipeline.plan_run = record("plan_run", lambda recipe: plan_result())
    pipeline.validate_data = record("validate_data", lambda recipe, **_: data_result())
    report = ModuleType("falcon_unlearn.report")
    report.render_report = record(
        "render_report", lambda folder, output: output or folder / "falcon/report.html"
    )
    demo = ModuleType("falcon_unlearn.demo")
    demo_run = ModuleType("falcon_unlearn.demo.run")
    demo_run.run_demo = record("run_demo", lambda output, **_: summary(output))
    for module in (pipeline, report, demo, demo_run):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Work in a folder with the two data files of the examples."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("FALCON_")]:
        monkeypatch.delenv(name)
    Path("forget.jsonl").write_text('{"text": "a"}\n')
    Path("retain.txt").write_text("b\n")
    return tmp_path


@pytest.fixture
def cli(capsys, workplace):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def records():
    """Give the makers of small records."""
    return SimpleNamespace(
        evaluation_result=evaluation_result,
        selection_result=selection_result,
        plan_result=plan_result,
        summary=summary,
    )


@pytest.fixture(name="emit_everything")
def emit_everything_fixture():
    """Give a function that sends one event of every kind."""
    return emit_everything
