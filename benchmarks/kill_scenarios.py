"""What the kill loop kills: commands on pico models, and what of their output must be equal."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

_CALLS = ("fsync", "rename", "replace", "write", "unlink", "rmdir", "mkdir")
_WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


class Countdown:
    """Kill this process at the n-th moment."""

    def __init__(self, moments: int | None) -> None:
        self.moments = moments
        self.passed = 0

    def tick(self, event: object = None) -> None:
        """Count one moment."""
        del event
        self.passed += 1
        if self.moments is not None and self.passed >= self.moments:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_system_calls(self) -> None:
        """Let every system call of the writers count, before and after it."""
        for name in _CALLS:
            setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.tick()
            result = call(*arguments, **named)
            self.tick()
            return result

        return counted


@dataclass(frozen=True)
class Scenario:
    """Name a command: what it does with a folder, and what of its output must be equal."""

    name: str
    act: Callable[[Path, Countdown], object]
    outcome: Callable[[Path], Any]


def _recipe(bench: Path, **changes: Any) -> Any:
    from falcon_unlearn.config.recipe import Recipe
    from tiny_runs import merge

    sets = [
        {"name": "c", "role": "forget", "kind": "choice", "path": "choice.jsonl"},
        {"name": "g", "role": "retain", "kind": "generation", "path": "generation.jsonl"},
        {"name": "d", "role": "retain", "kind": "divergence", "path": "prose.jsonl"},
    ]
    corpora = {
        "forget": [{"name": n, "path": str(bench / f"{n}.jsonl")} for n in ("trees", "quiz")],
        "retain": [{"name": "rest", "path": str(bench / "rest.jsonl")}],
        "chat_template": False,
    }
    base = {
        "model": {"name": str(bench / "model")},
        "data": corpora,
        "selection": {"samples": 12, "resamples": 20},
        "objective": {"offset": {"directions": 4}},
        "train": {"steps": 8, "batch_size": 4, "layers": 2, "compute_dtype": "float32"},
        "evaluation": {
            "sets": [{**entry, "path": str(bench / entry["path"])} for entry in sets],
            "resamples": 100,
            "maximum_new_tokens": 2,
        },
        # Every step is saved, so that every step can be killed while it is.
        "runtime": {"device": "cpu", "save_seconds": 0},
    }
    return Recipe.model_validate(merge(base, changes))


def write_bench(folder: Path) -> None:
    """Write a pico model, corpora and evaluation files."""
    from pico import pico_model
    from pico_files import save_pico

    draw = random.Random(0)

    def sentences(count: int, start: int) -> list[str]:
        return [f"{start + n} {' '.join(draw.choices(_WORDS, k=draw.randint(3, 6)))}." for n in range(count)]

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    save_pico(folder / "model")
    save_pico(folder / "changed", model=pico_model("llama", seed=1))
    write("kept.jsonl", [{"question": f"{t}?", "answer": t.split()[1]} for t in sentences(12, 500)])
    write("trees.jsonl", [{"text": text} for text in sentences(16, 100)])
    write("quiz.jsonl", [{"question": f"{t}?", "answer": t.split()[1]} for t in sentences(16, 200)])
    write("rest.jsonl", [{"text": text} for text in sentences(24, 300)])
    write("prose.jsonl", [{"text": text} for text in sentences(5, 400)])
    choice = [
        {"question": f"{w} is", "options": _WORDS[:4], "answer": n % 4} for n, w in enumerate(_WORDS[:6])
    ]
    write("choice.jsonl", choice)
    write("generation.jsonl", [{"prompt": word, "answer": "a"} for word in _WORDS[:3]])


def scenarios(bench: Path) -> list[Scenario]:
    """Return the commands that must survive: one per kind of state that they keep."""
    quiz = {"data": {"forget": [{"name": "quiz", "path": str(bench / "quiz.jsonl")}], "loss_on": "answer"}}
    outputs = {**quiz, "train": {"parameters": "all", "learning_rate": 1e-3}}

    def run(name: str, **changes: Any) -> Scenario:
        recipe = _recipe(bench, **changes)

        def act(folder: Path, countdown: Countdown) -> None:
            from falcon_unlearn.pipeline import run_pipeline

            if not _is_there(folder / "out"):
                run_pipeline(recipe, folder / "out", typed_recipe="", command="", sink=countdown.tick)

        return Scenario(name, act, lambda folder: outcome(folder / "out"))

    return [
        run("falcon"),
        run("falcon, gradient conflict", selection={"estimator": "gradient_conflict"}),
        run("falcon, drift budget", selection={"layer": 3}, train={"maximum_retain_drift": 0.05}),
        run("npo", method="npo", **outputs),
        run("scrub", method="scrub", **outputs),
        run("altpo", method="altpo", **outputs),
        _selecting(bench),
        _evaluating(bench),
        _finetuning(bench),
        _auditing(bench),
    ]


def _is_there(output: Path) -> bool:
    """Tell whether the output is in place; a command that finds it so removes what a kill left beside it."""
    from falcon_unlearn.runs import remove_finished

    if output.exists():
        remove_finished(output)
    return output.exists()


def _selecting(bench: Path) -> Scenario:
    def act(folder: Path, countdown: Countdown) -> None:
        from falcon_unlearn.pipeline import select_layer

        path = folder / "selection.json"
        if not _is_there(path):
            select_layer(_recipe(bench), sink=countdown.tick, output=path)

    return Scenario(
        "select", act, lambda folder: _without_times(json.loads((folder / "selection.json").read_text()))
    )


def _evaluating(bench: Path) -> Scenario:
    def act(folder: Path, countdown: Countdown) -> None:
        from falcon_unlearn.pipeline import evaluate_model

        path = folder / "evaluation.json"
        if not _is_there(path):
            evaluate_model(_recipe(bench), sink=countdown.tick, output=path)

    return Scenario(
        "evaluate", act, lambda folder: _without_times(json.loads((folder / "evaluation.json").read_text()))
    )


def _finetuning(bench: Path) -> Scenario:
    def act(folder: Path, countdown: Countdown) -> None:
        from falcon_unlearn.bench.prepare import prepare_model
        from falcon_unlearn.config.model import ModelSettings
        from falcon_unlearn.examples import EncodedExample
        from falcon_unlearn.training.finetune import FinetuneSettings

        draw = random.Random(1)
        rows = [tuple(draw.randrange(4, 128) for _ in range(draw.randint(6, 12))) for _ in range(16)]
        examples = [EncodedExample(row, (False, *[True] * (len(row) - 1)), "", False) for row in rows]
        prepare_model(
            ModelSettings(name=str(bench / "model")),
            examples,
            FinetuneSettings(epochs=5, batch_size=4, compute_dtype="float32"),
            "pico",
            device="cpu",
            cache=folder,
            sink=countdown.tick,
            save_seconds=0,
        )

    def outcome_of(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}

    return Scenario("benchmark preparation", act, outcome_of)


def _auditing(bench: Path) -> Scenario:
    def act(folder: Path, countdown: Countdown) -> None:
        from falcon_unlearn.audit.gathering import AuditSources
        from falcon_unlearn.config.audit import AuditSettings
        from falcon_unlearn.config.data import CorpusSettings
        from falcon_unlearn.config.model import ModelSettings
        from falcon_unlearn.config.runtime import RuntimeSettings
        from falcon_unlearn.errors import UsageError
        from falcon_unlearn.pipeline import auditing

        def corpus(name: str) -> CorpusSettings:
            return CorpusSettings(name=name, path=str(bench / f"{name}.jsonl"))

        request = auditing.AuditRequest(
            original=str(bench / "model"),
            unlearned=str(bench / "changed"),
            sources=AuditSources(forget=(corpus("quiz"),), retain=(corpus("kept"),)),
            settings=AuditSettings(
                attacks=("quantisation", "few-shot-retain", "relearning-rtt"),
                resamples=200,
                formats=("text", "generation"),
                maximum_new_tokens=2,
            ),
            model=ModelSettings(name=str(bench / "model")),
            runtime=RuntimeSettings(device="cpu"),
        )
        try:
            place = auditing.audit_folder(request.unlearned, folder / "audit")
        except UsageError:
            return  # finished: the command says so
        auditing.audit_models(request, place, sink=countdown.tick)

    def outcome_of(folder: Path) -> dict[str, Any]:
        record = json.loads((folder / "audit" / "audit.json").read_text())
        record.pop("environment")
        items = (folder / "audit" / "audit.items.jsonl").read_bytes()
        assert (folder / "audit" / "audit.html").is_file()
        return {"record": _without_times(record), "items": items}

    return Scenario("audit", act, outcome_of)


def outcome(folder: Path) -> dict[str, Any]:
    """Return weights (as bytes) and records of a finished output, measured times and machine left out."""
    from falcon_unlearn.runs import verify_manifest

    verify_manifest(folder)
    result: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    for path in sorted((folder / "falcon").glob("*.json")):
        if path.name not in {"environment.json", "manifest.json"}:
            result[path.name] = _without_times(json.loads(path.read_text(encoding="utf-8")))
    return result


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(entry)
            for key, entry in value.items()
            if "seconds" not in key and key != "peak_memory_bytes"
        }
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value
