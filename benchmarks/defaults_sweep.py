"""Compare settings of the objective on the demo's two domains with SmolLM2-135M.

    python benchmarks/defaults_sweep.py --seeds 0 1 'selection.layer=7' 'selection.layer=7 train.layers=1'

Every positional argument is one configuration: settings separated by spaces, on top of the demo recipe. Rows
are appended to benchmarks/results/defaults_sweep.jsonl as they finish. The questions are those of the demo,
so settings chosen from this table make its own numbers optimistic; that is said where they are shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.demo import write_demo_files
from falcon_unlearn.demo.run import demo_recipe
from falcon_unlearn.demo.weights import smollm2_folder
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.events import ignore_events
from falcon_unlearn.pipeline.evaluating import evaluate_in
from falcon_unlearn.pipeline.selecting import select_in
from falcon_unlearn.pipeline.workspace import Workspace, fill_workspace, open_workspace, seeded
from falcon_unlearn.results import EvaluationResult
from falcon_unlearn.training.session import unlearn_window

RESULTS = Path(__file__).parent / "results" / "defaults_sweep.jsonl"


def configured(base: Recipe, settings: list[str], seed: int, folder: Path) -> Recipe:
    """Return the demo's recipe with settings on top, quick measurements only."""
    tree = base.model_dump(mode="json")
    kept = [entry for entry in tree["evaluation"]["sets"] if entry["kind"] in ("choice", "perplexity")]
    tree["evaluation"]["sets"] = [entry for entry in kept if entry["letter"] is not True]
    path = folder / "sweep.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    recipe, _ = load_recipe(path, {"seed": seed}, settings)
    return recipe


def summary(result: EvaluationResult) -> dict[str, list[float]]:
    """Return value, low and high of the main metric of every set."""
    names = ("accuracy_text", "perplexity", "perplexity_word")
    return {
        f"{entry.name}:{metric.name}": [round(v, 4) for v in (metric.value, metric.low, metric.high)]
        for entry in result.sets
        for metric in entry.metrics
        if metric.name in names
    }


def run_one(workspace: Workspace, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Unlearn, measure, and put the model back."""
    with seeded(recipe.seed, None):
        selection = select_in(workspace, recipe, ignore_events, {}, folder)
        session = unlearn_window(
            workspace.engine, workspace.data, recipe, selection.layer, folder, ignore_events
        )
        sets = load_sets(recipe.evaluation, seed=0)
        after = evaluate_in(workspace, recipe, "after", sets, None, ignore_events, {})
    restore(workspace, session.original)
    history = session.result.history
    return {
        "layer": selection.layer,
        "learning_rate": session.result.learning_rate,
        "conflict_share": sum(row["conflict_share"] for row in history) / len(history),
        "seconds_cache": round(session.result.seconds_cache, 1),
        "seconds_train": round(session.result.seconds_train, 1),
        "after": summary(after),
    }


def restore(workspace: Workspace, original: dict[str, Any]) -> None:
    """Write the original tensors back for good."""
    parameters = dict(workspace.loaded.model.named_parameters())
    for name, tensor in original.items():
        parameters[name].data = tensor


def main() -> None:
    """Run all configurations at all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configurations", nargs="*", default=[""])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", default="")
    arguments = parser.parse_args()
    model = arguments.model or str(smollm2_folder(ignore_events))
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_files(folder)
        base = demo_recipe(model, folder)
        loaded = open_workspace(configured(base, [], 0, folder), ignore_events, {}).loaded
        for configuration in arguments.configurations:
            for seed in arguments.seeds:
                recipe = configured(base, configuration.split(), seed, folder)
                workspace = fill_workspace(loaded, recipe, ignore_events, {})
                row = {"configuration": configuration, "seed": seed, **run_one(workspace, recipe, folder)}
                print(json.dumps(row), file=sys.stderr, flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
