"""The command `compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from falcon_unlearn.cli.terminal import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from falcon_unlearn.report.comparison import Column, Comparison, Group

_LABEL_WIDTH = 26
_COLUMN_WIDTH = 21
"""Widths at which a table is split into several, in characters."""


def compare(
    *runs: Annotated[
        Path, Parameter(name="RUN", help="Result files, folders of *.bench.json files, or run folders.")
    ],
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"], metavar="DIR", help="New folder for the page, pictures and tables."
        ),
    ] = None,
    utility_tolerance: Annotated[
        float,
        Parameter(metavar="X", help="Utility this near to the target's counts as equal; 0.02 by default."),
    ] = 0.02,
    json: Annotated[bool, Parameter(help="Print the result as one JSON document.")] = False,
    csv: Annotated[bool, Parameter(help="Print one CSV table.")] = False,
    markdown: Annotated[bool, Parameter(help="Print Markdown.")] = False,
) -> None:
    """Compare the results that `runs` lead to."""
    from falcon_unlearn.errors import UsageError
    from falcon_unlearn.report.comparison import compare_results, to_csv, to_markdown, write_comparison
    from falcon_unlearn.runs import check_output

    if json + csv + markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other", hint="Keep one of them.")
    if output is not None:
        check_output(output)
    comparison = compare_results(runs, utility_tolerance=utility_tolerance)
    page = None if output is None else write_comparison(comparison, output)
    if json:
        print(comparison.model_dump_json(indent=2))
    elif csv:
        print(to_csv(comparison), end="")
    elif markdown:
        print(to_markdown(comparison), end="")
    else:
        _show(comparison, page)


def _show(comparison: Comparison, page: Path | None) -> None:
    from falcon_unlearn.cli.console import make_console

    console = make_console(sys.stdout)
    for group in comparison.groups:
        _show_group(group, comparison.utility_tolerance, console)
    if page is not None:
        console.print(f"Page: {page}", soft_wrap=True)


def _show_group(group: Group, tolerance: float, console: Console) -> None:
    from falcon_unlearn.report.comparison.words import READING, conclusions

    _line(console, group.title, "bold")
    for table in _tables(group, console.width):
        console.print(table)
    _line(console, READING, "dim")
    for sentence in conclusions(group, tolerance):
        _line(console, sentence)
    for gate in group.failed_gates:
        _line(console, f"FAILED GATE: {gate}", "bold red")
    for note in group.notes:
        _line(console, f"note: {note}", "dim")
    console.print()


def _tables(group: Group, width: int) -> list[Table]:
    """Return one table, or several of as many metrics as fit; what belongs to whole rows comes last."""
    from falcon_unlearn.report.comparison.words import ROW_COLUMNS, cell_lines, column_lines, row_facts

    def column_cells(column: Column) -> list[list[str]]:
        cells = [row.cell(column.name) for row in group.rows]
        return [cell_lines(cell) if cell else [""] for cell in cells]

    columns = [(column_lines(column), column_cells(column)) for column in group.columns]
    facts = zip(*(row_facts(row) for row in group.rows), strict=True)
    columns += [
        ([name], [[fact] for fact in column]) for name, column in zip(ROW_COLUMNS, facts, strict=True)
    ]
    fitting = max(1, (width - _LABEL_WIDTH) // _COLUMN_WIDTH)
    return [_table(group, columns[start : start + fitting]) for start in range(0, len(columns), fitting)]


def _table(group: Group, columns: list[tuple[list[str], list[list[str]]]]) -> Table:
    from rich import box
    from rich.table import Table

    from falcon_unlearn.report.comparison.words import row_label

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
    for heading, _ in columns:
        table.add_column(_text(heading), justify="right", max_width=_COLUMN_WIDTH - 2, overflow="fold")
    for index, row in enumerate(group.rows):
        cells = [lines[index] for _, lines in columns]
        style = "bold" if row.on_front else "dim" if row.is_reference else ""
        table.add_row(_text(row_label(row), style), *(_text(cell, style) for cell in cells))
    return table


def _text(lines: list[str], style: str = "") -> Text:
    """Make plain text of the lines of a cell: labels of others are never markup."""
    from rich.text import Text

    return Text("\n".join(" ".join(clean(line).split()) for line in lines), style=style)


def _line(console: Console, words: str, style: str = "") -> None:
    console.print(_text([words], style), soft_wrap=True)
