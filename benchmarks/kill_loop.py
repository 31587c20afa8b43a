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

from kill_scenarios import Countdown, Scenario, outcome, scenarios, write_bench

__all__ = ["Countdown", "Scenario", "outcome", "scenarios", "survive", "write_bench"]


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
