"""The application and its entry point. Commands are import strings, so that help needs none of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from falcon_unlearn._version import __version__
from falcon_unlearn.cli.failures import report_usage, run_guarded
from falcon_unlearn.cli.invocation import remember
from falcon_unlearn.cli.ranks import prepare_rank

COMMANDS = {
    "run": """Select the layer, unlearn, evaluate before and after, and write a report.

MODEL, --forget and --retain may come from --recipe instead.""",
    "demo": """Make a small real model forget the chemical symbols, with a report.

The weights come from a package of the Python package index and are cached; later runs need no network.""",
    "methods": """List the unlearning methods.

What each acts on, what it needs of the original model, and the paper it comes from.""",
    "init": """Write a commented recipe.

It lists every setting with its meaning, limits and default. An existing file is never overwritten.""",
    "validate": """Check a recipe and its data files.

Every setting is checked, and the data files are read and counted.""",
    "plan": """Show what a run would do and cost, without loading weights.

Layers, trained tensors, memory, disk, time and the resolved recipe.""",
    "select": """Score the layers and choose one; `run` does this by itself.

Use the result with --set selection.layer=N.""",
    "unlearn": """Run without the evaluation.

The layer is selected unless --set selection.layer=N fixes it.""",
    "evaluate": """Measure one model on the data of a recipe.

Held-out texts and evaluation sets; --original adds the divergence to the model before the change.""",
    "export": """Make a whole model from a delta folder and its base.

Every weight file of both is verified by its hash; the base is not changed.""",
    "report": "Render the report of a finished run again, from its result files.",
    "audit": """Attack an unlearned model and say how much of the knowledge comes back.

Facts as in `run`, or evaluation sets; --null names a model that never saw the forget data.""",
    "verify": """Check a finished run: files, changed tensors, numbers, environment.

Hashes are computed again; --base proves which tensors changed, --data measures again. Exit code 4 on a
mismatch.""",
    "bench": """Score a model on TOFU, MUSE or WMDP, or fill a table of methods.

Give the model, --data-dir or the hub, and the retain model's log where there is one.""",
    "compare": """Put results side by side: one table and one picture of forgetting against utility.

RUN is a result file, a folder of *.bench.json files, or the output folder of a run.""",
    "sweep": """Run every combination of methods, layers, seeds and settings, and compare them.

Each run keeps its folder; the same command goes on after an interruption.""",
    "env": """Print versions and hardware for a bug report.

No host name, user name or token.""",
}
"""Commands and their help, in the order shown; the list shows the first line only."""
DEFAULT_PARAMETER = Parameter(negative="", show_default=False)
"""No --no-json and no --empty-forget: a flag that is not given is off."""
_EPILOGUE = """\
Example: falcon-unlearn run MODEL --forget a.jsonl --retain b.txt --output new

Exit codes: 0 done, 1 unexpected failure, 2 command line, recipe, data or model, 3 something missing on this \
machine, 4 a limit was missed, 5 a process of a distributed job was lost, 130 interrupted, 143 terminated."""


def build_app() -> App:
    """Build the application; no command module is imported."""
    app = App(
        name="falcon-unlearn",
        help="Remove knowledge from open-weight language models (FALCON), with the evidence.",
        help_format="plaintext",
        help_epilogue=_EPILOGUE,
        version=__version__,
        default_parameter=DEFAULT_PARAMETER,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for position, (name, description) in enumerate(COMMANDS.items()):
        target = f"falcon_unlearn.cli.{name}:{name}"
        app.command(target, name=name, help=description, sort_key=position)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def act() -> None:
        remember(given)
        prepare_rank(given, list(COMMANDS))
        try:
            build_app()(given, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            report_usage(error, given, list(COMMANDS))
            raise SystemExit(2) from error

    return run_guarded(act)


if __name__ == "__main__":
    sys.exit(main())
