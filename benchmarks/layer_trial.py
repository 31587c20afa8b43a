"""Measure the trial of the layer selection on the demo's texts at given layers.

    python benchmarks/layer_trial.py path/to/model 4 6 9 11

Prints the fall of the log-probability of differently worded forget text by layer, in nats per token.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from falcon_unlearn.cli.console import progress_sink
from falcon_unlearn.demo import write_demo_files
from falcon_unlearn.demo.run import demo_recipe
from falcon_unlearn.pipeline.trial import confirm_by_trial
from falcon_unlearn.pipeline.workspace import open_workspace, seeded
from falcon_unlearn.results import LayerValue, SelectionResult


def tied(layers: list[int]) -> SelectionResult:
    """Return a selection that cannot tell the layers apart."""
    values = [
        LayerValue(layer=layer, value=0.0, low=0.0, high=0.0, probability_best=0.0, candidate=True)
        for layer in layers
    ]
    return SelectionResult(
        estimator="pooled",
        unit="nats",
        layer=layers[0],
        best_layer=layers[0],
        fixed=False,
        rule="earliest_tied",
        tied_layers=layers,
        layers=values,
    )


def main() -> None:
    """Try every layer and print what fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("layers", type=int, nargs="+")
    arguments = parser.parse_args()
    layers = sorted(arguments.layers)
    with tempfile.TemporaryDirectory() as name, progress_sink(quiet=False, verbose=False) as sink:
        write_demo_files(Path(name))
        recipe = demo_recipe(arguments.model, Path(name))
        trial = recipe.selection.trial.model_copy(update={"when": "in_memory", "tried": max(2, len(layers))})
        recipe = recipe.model_copy(update={"selection": recipe.selection.model_copy(update={"trial": trial})})
        with seeded(recipe.seed, recipe.runtime.threads):
            workspace = open_workspace(recipe, sink, {})
            found = confirm_by_trial(tied(layers), workspace, recipe, sink, {}, Path(name), None)
    for value in found.layers:
        print(f"layer {value.layer:3}  fall {value.fall}  standard error {value.fall_error}")
    print(found.explanation)


if __name__ == "__main__":
    main()
