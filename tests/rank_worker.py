"""One rank of a job: runs every case on a pico model and, on the leader, saves what came out.

Arguments: result file and a JSON list of cases, each a mapping of recipe changes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.distributed.job import joined
from falcon_unlearn.models.engine import BlockEngine
from falcon_unlearn.models.streaming import build_engine, load_streamed
from tiny_runs import run_session, tiny_data, tiny_recipe


def run_case(case: dict) -> dict:
    """Unlearn two domains with and without padding; return tensors and the rows of the history."""
    changes = {key: value for key, value in case.items() if key != "streamed"}
    with TemporaryDirectory() as folder:
        place = {"engine": streamed_engine(case["streamed"])} if case.get("streamed") else {}
        session = run_session(Path(folder), tiny_recipe(**changes), tiny_data(2), **place)
    result = session.result
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    moved = {
        name: float((session.changed[name] - session.original[name]).abs().max()) for name in session.changed
    }
    facts = {
        "trained": result.trained_parameters,
        "flops": result.flops,
        "changes": [c.norm_change for c in result.changes],
    }
    return {
        "changed": session.changed,
        "history": rows,
        "moved": moved,
        "facts": facts,
        "status": result.status,
    }


def streamed_engine(folder: str) -> BlockEngine:
    """Return an engine over a saved pico model that stays on disk."""
    settings = ModelSettings(name=folder)
    return build_engine(load_streamed(settings, torch.device("cpu")))


def main() -> None:
    """Join, run, save."""
    torch.set_num_threads(1)
    target, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined(timeout=120, device="cpu") as team:
        results = [run_case(case) for case in cases]
        if team.leads:
            torch.save(results, target)


if __name__ == "__main__":
    main()
