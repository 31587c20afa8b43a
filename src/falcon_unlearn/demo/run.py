"""Run the demonstration: write its content, build its recipe, run the whole pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.demo import write_demo_files
from falcon_unlearn.demo.weights import MODEL_NAME, smollm2_folder
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.pipeline import run_pipeline
from falcon_unlearn.results import RunSummary
from falcon_unlearn.runs import RECORDS, check_output

CONTENT = "demo"
"""Folder of the demo's texts and questions, beside the recipe in the output."""
HEADING = f"""\
# The recipe of `falcon-unlearn demo`, as a starting point for your own. Paths are taken from this folder.
# Run it again: falcon-unlearn run MODEL --recipe THIS_FILE --output NEW_FOLDER
# MODEL is the folder of {MODEL_NAME} in the cache, or any other model. Every setting: falcon-unlearn init
"""


def demo_recipe(model: str, folder: Path, seed: int = 0) -> Recipe:
    """Build the recipe of the demo for a model and the content that `write_demo_files` left in `folder`.

    The numbers make the run fit into 6 minutes on two cores: letters cost most, so sets asked by letter are
    limited, and a limit draws wordings of all facts.
    """
    return Recipe.model_validate(
        {
            "seed": seed,
            "model": {"name": model},
            "data": {
                "forget": [
                    {"name": "symbols", "path": f"{folder}/forget/symbols.jsonl"},
                    {"name": "state_codes", "path": f"{folder}/forget/state_codes.jsonl"},
                ],
                "retain": [
                    {"name": "prose", "path": f"{folder}/retain/prose.jsonl", "weight": 2.0},
                    {"name": "capitals", "path": f"{folder}/retain/capitals.jsonl"},
                    {"name": "neighbour", "path": f"{folder}/retain/neighbour.jsonl"},
                ],
                # Every forget sentence is used: the questions have wordings of their own.
                "holdout_share": 0.0,
            },
            "train": {"steps": 80},
            "evaluation": {
                "sets": [
                    _set("symbols", "forget", "choice", f"{folder}/evaluation/symbols.choice.jsonl", 72),
                    _set("state_codes", "forget", "choice", f"{folder}/evaluation/state_codes.choice.jsonl", 40),
                    _set(
                        "neighbour", "neighbour", "choice", f"{folder}/evaluation/neighbour.choice.jsonl", 60
                    ),
                    _set("capitals", "retain", "choice", f"{folder}/evaluation/capitals.choice.jsonl", 60),
                    _set(
                        "symbols_free",
                        "forget",
                        "generation",
                        f"{folder}/evaluation/symbols.generation.jsonl",
                    ),
                    _set(
                        "state_codes_free",
                        "forget",
                        "generation",
                        f"{folder}/evaluation/state_codes.generation.jsonl",
                    ),
                    _set(
                        "capitals_free",
                        "retain",
                        "generation",
                        f"{folder}/evaluation/capitals.generation.jsonl",
                    ),
                    _set("prose", "general", "perplexity", f"{folder}/evaluation/prose.jsonl"),
                    _set("prose_unseen", "general", "divergence", f"{folder}/evaluation/prose.jsonl"),
                    _set("prose_retained", "retain", "divergence", f"{folder}/retain/prose.jsonl"),
                    _set("capitals_retained", "retain", "divergence", f"{folder}/retain/capitals.jsonl"),
                    _set("neighbour_retained", "neighbour", "divergence", f"{folder}/retain/neighbour.jsonl"),
                ],
                "held_out": False,
                "maximum_new_tokens": 8,
                "maximum_divergence_tokens": 1000,
            },
        }
    )


def run_demo(
    output: Path, *, seed: int = 0, sink: EventSink = ignore_events, command: str = "falcon-unlearn demo"
) -> RunSummary:
    """Make SmolLM2-135M-Instruct forget chemical symbols and postal codes, and write model, records and report.

    Args:
        output: New folder for the result; the demo's texts and questions come into `falcon/demo`.
        seed: Seed of everything random.
        sink: Receives progress.
        command: A command that repeats the run.

    Raises:
        FalconError: The weights cannot be had, or as `run_pipeline`; `output` does not exist then.
    """
    check_output(output)
    model = smollm2_folder(sink)
    with TemporaryDirectory(prefix="falcon-demo-") as folder:
        write_demo_files(Path(folder))
        recipe = demo_recipe(str(model), Path(folder), seed)
        typed = recipe_text(recipe, Path(folder))
        summary = run_pipeline(recipe, output, typed_recipe=typed, command=command, sink=sink)
    # With the content beside it, the recipe in the output can be run and changed.
    write_demo_files(output / RECORDS / CONTENT)
    return summary


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """Write what the demo sets as a recipe file whose paths lead from `falcon/` to the content."""
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    tree["model"]["name"] = MODEL_NAME
    for corpus in _with_path(tree):
        corpus["path"] = f"{CONTENT}/{Path(os.path.relpath(corpus['path'], folder)).as_posix()}"
    return HEADING + dump_yaml(tree)


def _with_path(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from tree["data"]["forget"]
    yield from tree["data"]["retain"]
    yield from tree["evaluation"]["sets"]


def _set(name: str, role: str, kind: str, path: str, limit: int | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "role": role, "kind": kind, "path": path}
    return entry if limit is None else {**entry, "limit": limit}
