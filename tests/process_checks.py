"""Check what needs processes of its own, with torch imported once; prints one JSON document.

    python tests/process_checks.py FOLDER

Global state before and after importing every module; signals to a running command; two processes, one cache.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

_SETTINGS = (
    "train.steps=60",
    "train.batch_size=4",
    "train.layers=2",
    "train.compute_dtype=float32",
    "selection.layer=3",
    "objective.offset.directions=4",
    "evaluation.held_out=false",
    "data.chat_template=false",
    "runtime.device=cpu",
)


def global_state() -> dict[str, Any]:
    import numpy as np
    import rich.style  # noqa: F401  # draws an identifier from `random` when it is imported, and seeds nothing
    import torch

    return {
        "random": hash(random.getstate()),
        "numpy": hash(np.random.get_state()[1].tobytes()),
        "torch": hash(torch.get_rng_state().numpy().tobytes()),
        "dtype": str(torch.get_default_dtype()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": os.getcwd(),
        "path": list(sys.path),
    }


def import_everything() -> list[str]:
    import falcon_unlearn

    names = [m.name for m in pkgutil.walk_packages(falcon_unlearn.__path__, "falcon_unlearn.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return names


def forked_command(arguments: list[str], errors: Path) -> int:
    """Start the command line in a fork whose standard error goes to a file."""
    from falcon_unlearn.cli.main import main

    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # What a shell does for a command in the foreground; a parent in the background ignores SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = main(arguments)
    finally:
        os._exit(code)


def wait_for(errors: Path, words: str) -> None:
    deadline = time.monotonic() + 120
    while words not in (errors.read_text() if errors.exists() else ""):
        if time.monotonic() > deadline:
            raise SystemExit(f"no {words!r} in {errors.read_text()}")
        time.sleep(0.01)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signalled(folder: Path, bench: Path, number: signal.Signals) -> dict[str, Any]:
    """Stop a run in its training, let it go on, and compare with one that was left alone."""
    from kill_loop import outcome

    out = folder / f"{number.name}"
    arguments = ["run", str(bench / "model"), "--forget", str(bench / "trees.jsonl")]
    arguments += ["--retain", str(bench / "rest.jsonl"), "--verbose"]
    for setting in _SETTINGS:
        arguments += ["--set", setting]
    alone = folder / f"{number.name}-alone"
    whole = ended(forked_command([*arguments, "--output", str(alone)], folder / "alone.txt"))
    errors = folder / f"{number.name}.txt"
    child = forked_command([*arguments, "--output", str(out)], errors)
    wait_for(errors, "[train] step 5/60")
    os.kill(child, number)
    code, text = ended(child), errors.read_text()
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith(f".{number.name}"))
    states = sorted(path.name[:8] for path in (folder / f".{number.name}.work" / "training").iterdir())
    again = ended(forked_command([*arguments, "--output", str(out)], errors))
    resumed = errors.read_text()
    first = next(line for line in resumed.splitlines() if line.startswith("[train] step"))
    return {
        "whole": whole,
        "code": code,
        "text": text,
        "last_step": text.count("[train] step"),
        "states": [int(name) for name in states],
        "left": left,
        "again": again,
        "first_step": int(first.split()[2].split("/")[0]),
        "equal": outcome(out) == outcome(alone),
        "left_after": sorted(path.name for path in folder.iterdir() if path.name.startswith(".")),
    }


def concurrent_preparation(folder: Path, bench: Path) -> dict[str, Any]:
    """Let two processes prepare the same model in one cache at once."""
    import kill_loop

    scenario = next(s for s in kill_loop.scenarios(bench) if s.name == "benchmark preparation")
    folder.mkdir()
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                events: list[object] = []
                countdown = kill_loop.Countdown(None)
                countdown.tick = events.append
                scenario.act(folder, countdown)
                (folder / f"{number}.events").write_text(" ".join(type(event).__name__ for event in events))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [ended(child) for child in children]
    trained = [path.read_text().count("TrainingStepped") for path in sorted(folder.glob("*.events"))]
    return {"codes": codes, "trained": sorted(trained), "models": len(scenario.outcome(folder))}


def main() -> None:
    place = Path(sys.argv[1])
    before = global_state()
    modules = import_everything()
    after = global_state()
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import kill_loop

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    bench = place / "bench"
    bench.mkdir()
    kill_loop.write_bench(bench)
    result = {
        "modules": len(modules),
        "changed": [key for key in before if before[key] != after[key]],
        "concurrent": concurrent_preparation(place / "cache", bench),
    }
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = place / f"signal-{number.name}"
        folder.mkdir()
        result[number.name] = signalled(folder, bench, number)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
