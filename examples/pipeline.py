"""Run step 1 alone, look at it, then unlearn with the layer fixed: the commands `select` and `run` in Python.

Usage: python examples/pipeline.py MODEL FORGET_FILE RETAIN_FILE NEW_FOLDER [key.path=value ...]
"""

import sys
from pathlib import Path

from falcon_unlearn import load_recipe, plan_run, run_pipeline
from falcon_unlearn.pipeline import select_layer


def main(model: str, forget: str, retain: str, output: str, *settings: str) -> None:
    """Plan, select, unlearn, measure and report."""
    inputs = {
        "model.name": model,
        "data.forget": [{"name": "forget", "path": forget}],
        "data.retain": [{"name": "retain", "path": retain}],
    }
    recipe, _ = load_recipe(None, inputs, list(settings))
    plan = plan_run(recipe)
    print(f"{plan.architecture}: {plan.blocks} blocks; {plan.memory_bytes['total'] / 2**20:.0f} MiB needed")

    selection = select_layer(recipe)
    for row in selection.layers:
        mark = "*" if row.layer == selection.layer else " "
        print(
            f"{mark} layer {row.layer:2}: {row.value:7.4f} {selection.unit} [{row.low:.4f}, {row.high:.4f}]"
        )
    print(selection.explanation)

    fixed = [*settings, f"selection.layer={selection.layer}"]
    recipe, typed = load_recipe(None, inputs, fixed)
    summary = run_pipeline(recipe, Path(output), typed_recipe=typed, command="")
    print(f"kept step {summary.training.kept_step}; report: {summary.report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
