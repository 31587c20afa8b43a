"""The command `methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from falcon_unlearn.config.catalogue import Method

_FROZEN = {
    "log_probabilities": "the original model's log-probabilities",
    "distribution": "the original model's distributions",
}
"""What a method may need of the frozen model, in words."""


def methods(*, json: Annotated[bool, Parameter(help="Print one JSON document.")] = False) -> None:
    """Print the catalogue of methods."""
    from falcon_unlearn.config.catalogue import METHODS

    if json:
        from json import dumps

        print(dumps([_entry(method) for method in METHODS.values()], indent=2))
    else:
        _show(list(METHODS.values()))


def reference_needed(method: Method) -> str:
    """Say what of the frozen model the method compares with; empty when it needs none."""
    if method.acts_on == "states":
        return "the original model's hidden states"
    return ", ".join(words for need, words in _FROZEN.items() if need in method.needs)


def _entry(method: Method) -> dict[str, object]:
    return {
        "name": method.name,
        "title": method.title,
        "acts_on": method.acts_on,
        "needs_reference": bool(reference_needed(method)),
        "needs": sorted(method.needs),
        "source": method.source,
        "defaults": method.defaults,
    }


def _show(entries: list[Method]) -> None:
    import sys

    from rich import box
    from rich.table import Table

    from falcon_unlearn.cli.console import make_console

    console = make_console(sys.stdout)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in ("title", "acts on", "needs", "source"):
        table.add_column(column, overflow="fold")
    for method in entries:
        others = "alternative answers" if "alternatives" in method.needs else ""
        needed = "; ".join(filter(None, (reference_needed(method), others))) or "nothing"
        table.add_row(method.name, method.title, method.acts_on, needed, method.source)
    console.print(table)
    console.print(
        "What is needed of the original model is computed once and kept on disk; with "
        "objective.retain_loss=kl, methods on outputs need its distributions on retain text too.\n"
        "Example: falcon-unlearn run MODEL --forget a.jsonl --retain b.txt --method npo --output new"
    )
