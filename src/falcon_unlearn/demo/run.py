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
from falcon_unlearn.runs import RECORDS, Resume, check_output

CONTENT = "demo"
"""Folder of the demo's texts and questions, beside the recipe in the output."""
HEADING = f"""\
# The recipe of `falcon-unlearn demo`, as a starting point for your own. Paths are taken from this folder.
# Run it again: falcon-unlearn run MODEL --recipe THIS_FILE --output NEW_FOLDER
# MODEL is a folder with {MODEL_NAME}, or any other model. All settings: falcon-unlearn init
"""


AUDIT = {
    "attacks": ["few-shot-retain", "quantisation", "direction-original"],
    "items": 90,
    "other_items": 24,
    "formats": ["text", "generation"],
    "maximum_new_tokens": 8,
}
"""The demo's audit: few facts, and attacks that mean something without a model that never saw the data."""


def demo_recipe(model: str, folder: Path, seed: int = 0, audit: str = "off") -> Recipe:
    """Build the recipe of the demo for a model and the content that `write_demo_files` left in `folder`.

    The numbers keep the whole run within 6 minutes on two cores. Letters cost most and this small model
    hardly answers by letter, so one limited set is asked that way.
    """
    evaluation = folder / "evaluation"
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
                    {"name": "capitals", "path": f"{folder}/retain/capitals.jsonl", "weight": 1.5},
                    {"name": "neighbour", "path": f"{folder}/retain/neighbour.jsonl", "weight": 2.0},
                ],
                # Every forget sentence is used: the questions have wordings of their own.
                "holdout_share": 0.0,
            },
            # Its layer is known to work with this model; trying others would take a minute or more.
            "selection": {"trial": {"when": "never"}},
            "train": {"steps": 160},
            "audit": {"tier": audit, **AUDIT},
            "evaluation": {
                "sets": [
                    _choice("symbols", "forget", evaluation),
                    _choice("symbols", "forget", evaluation, name="symbols_letters", limit=24, letter=True),
                    _generation("symbols", "forget", evaluation),
                    _choice("state_codes", "forget", evaluation),
                    _generation("state_codes", "forget", evaluation),
                    _choice("neighbour", "neighbour", evaluation, limit=64),
                    _choice("capitals", "retain", evaluation, limit=64),
                    _generation("capitals", "retain", evaluation, limit=40),
                    _texts("capitals_kept", "retain", "divergence", folder / "retain" / "capitals.jsonl"),
                    _texts("prose_kept", "retain", "divergence", folder / "retain" / "prose.jsonl"),
                    _texts("prose", "general", "perplexity", evaluation / "prose.jsonl"),
                    _texts("prose_new", "general", "divergence", evaluation / "prose.jsonl"),
                ],
                "held_out": False,
                "maximum_new_tokens": 8,
                "maximum_divergence_tokens": 1000,
            },
        }
    )


def run_demo(
    output: Path,
    *,
    seed: int = 0,
    sink: EventSink = ignore_events,
    command: str = "falcon-unlearn demo",
    resume: Resume = "auto",
    audit: str = "off",
) -> RunSummary:
    """Make SmolLM2-135M-Instruct forget chemical symbols and postal codes, and write model and report.

    Args:
        output: New folder for the result; the demo's texts and questions come into `falcon/demo`.
        seed: Seed of everything random.
        sink: Receives progress.
        command: A command that repeats the run.
        resume: As for `run_pipeline`.
        audit: Tier of the recovery audit.

    Raises:
        FalconError: The weights cannot be had, or as `run_pipeline`; `output` does not exist then.
    """
    check_output(output)
    model = smollm2_folder(sink)
    with TemporaryDirectory(prefix="falcon-demo-") as folder:
        write_demo_files(Path(folder))
        recipe = demo_recipe(str(model), Path(folder), seed, audit)
        typed = recipe_text(recipe, Path(folder))
        summary = run_pipeline(recipe, output, typed_recipe=typed, command=command, sink=sink, resume=resume)
    # With the content beside it, the recipe in the output can be run and changed.
    write_demo_files(output / RECORDS / CONTENT)
    return summary


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """Write what the demo sets as a recipe file whose paths lead from `falcon/` to the content."""
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    tree["model"]["name"] = MODEL_NAME
    for entry in _with_path(tree):
        entry["path"] = f"{CONTENT}/{Path(os.path.relpath(entry['path'], folder)).as_posix()}"
    return HEADING + dump_yaml(tree)


def _with_path(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from tree["data"]["forget"]
    yield from tree["data"]["retain"]
    yield from tree["evaluation"]["sets"]


def _choice(
    content: str, role: str, folder: Path, *, name: str = "", limit: int | None = None, letter: bool = False
) -> dict[str, Any]:
    path = folder / f"{content}.choice.jsonl"
    return {**_texts(name or content, role, "choice", path, limit), "letter": letter}


def _generation(content: str, role: str, folder: Path, *, limit: int | None = None) -> dict[str, Any]:
    return _texts(f"{content}_free", role, "generation", folder / f"{content}.generation.jsonl", limit)


def _texts(name: str, role: str, kind: str, path: Path, limit: int | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "role": role, "kind": kind, "path": str(path)}
    return entry if limit is None else {**entry, "limit": limit}
