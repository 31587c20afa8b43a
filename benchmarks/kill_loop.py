"""Kill pico runs with SIGKILL at random points, repeat the command, and compare with a run left alone.

    python benchmarks/kill_loop.py [--kills 50] [--seed 0] [--scenario NAME ...] [--output kills.json]

torch is imported once; every run is a forked child. Half of the kills come at the n-th of the moments that
can hurt (progress events; every write, fsync, rename and unlink of the writers, before and after), the other
half after a random time, wherever the child is then. A scenario ends bit-equal (weights as bytes, records
with all numbers but measured times), or the script ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
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
class Ended:
    """Report a child: exit code (-9 for a kill), moments passed and seconds taken."""

    code: int
    moments: int
    seconds: float


def forked(
    action: Callable[[Countdown], object], moments: int | None = None, seconds: float | None = None
) -> Ended:
    """Run `action` in a fork that dies at a moment, or after some seconds, or never."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _act(action, moments, writer)
    os.close(writer)
    # The pipe closes when the child ends: its parent kills it if that takes too long.
    if seconds is not None and not select.select([reader], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as answer:
        passed = int(answer.read() or b"0")
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), passed, time.perf_counter() - started)


def _act(action: Callable[[Countdown], object], moments: int | None, writer: int) -> None:
    code = 1
    try:
        real_write = os.write
        countdown = Countdown(moments)
        countdown.watch_system_calls()
        action(countdown)
        real_write(writer, str(countdown.passed).encode())
        code = 0
    except BaseException:  # noqa: BLE001  # a fork must never return into the code of its parent
        traceback.print_exc()
    finally:
        os._exit(code)


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


def survive(scenario: Scenario, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill a scenario `kills` times, let it finish and compare; finished too early, it starts anew."""
    quiet, target = folder / "quiet", folder / "killed"
    quiet.mkdir()
    alone = forked(lambda countdown: scenario.act(quiet, countdown))
    if alone.code != 0:
        raise SystemExit(f"{scenario.name}: the run that is left alone fails")
    expected = scenario.outcome(quiet)
    happened = runs = 0
    equal = True
    while happened < kills or not runs:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        # Several kills in a row on one folder, so that a resumed run is killed too.
        for _ in range(min(kills - happened, draw.randint(1, 6))):
            moments = draw.randint(1, alone.moments) if draw.random() < 0.5 else None
            limit = None if moments is not None else draw.uniform(0.0, alone.seconds)
            ended = forked(lambda countdown: scenario.act(target, countdown), moments, limit)
            if ended.code not in {0, -signal.SIGKILL}:
                raise SystemExit(f"{scenario.name}: a resumed run ended with {ended.code}")
            happened += ended.code == -signal.SIGKILL
        last = forked(lambda countdown: scenario.act(target, countdown))
        if last.code != 0:
            raise SystemExit(f"{scenario.name}: the last run ended with {last.code}")
        equal = equal and scenario.outcome(target) == expected
        runs += 1
    left = sorted(
        p.name for p in target.iterdir() if p.name.startswith(".") and not p.name.endswith(".preparing")
    )
    return {
        "scenario": scenario.name,
        "kills": happened,
        "finished_runs": runs,
        "moments_of_one_run": alone.moments,
        "bit_equal": equal,
        "left_over": left,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills per scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", action="append", help="name of a scenario; all by default")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    import torch

    from falcon_unlearn import pipeline  # noqa: F401  # imported before the forks

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    rows = []
    with tempfile.TemporaryDirectory(prefix="falcon-kills-") as place:
        bench = Path(place) / "bench"
        bench.mkdir()
        write_bench(bench)
        for number, scenario in enumerate(scenarios(bench)):
            if options.scenario and scenario.name not in options.scenario:
                continue
            folder = Path(place) / str(number)
            folder.mkdir()
            started = time.perf_counter()
            row = survive(scenario, folder, options.kills, random.Random(f"{options.seed}:{scenario.name}"))
            rows.append({**row, "seconds": round(time.perf_counter() - started, 1)})
            print(json.dumps(rows[-1]), flush=True)
    if options.output:
        result = {
            "seed": options.seed,
            "kills_per_scenario": options.kills,
            "torch": torch.__version__,
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if rows and all(row["bit_equal"] and not row["left_over"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
