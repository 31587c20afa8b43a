"""CSV keeps every digit and runs nothing; Markdown keeps its shape whatever the labels hold."""

from __future__ import annotations

import csv
import io
import re

import pytest

from falcon_unlearn.report.comparison import compare_results, to_csv, to_markdown

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r\n=1", " =1", "\uff1d1", "\x1b[0m=1"]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_row_and_digit(make, save, references) -> None:
    value = 0.123456789012345
    folder = save(*references, make("NPO", value, 0.6, seed=4), make("RMU", 0.4, 0.2, seconds={"train": 1.5}))
    rows = {row["label"]: row for row in read(to_csv(compare_results([folder])))}
    assert list(rows) == ["base", "target", "retain A", "retain B", "NPO", "RMU"]
    assert float(rows["NPO"]["extraction"]) == value
    assert float(rows["NPO"]["extraction minus retain"]) == value - 0.10
    assert rows["NPO"]["extraction interval"] == "items"
    assert rows["NPO"]["extraction state"] == "like retain"
    assert (rows["NPO"]["seeds"], rows["NPO"]["pareto front"], rows["NPO"]["equal utility"]) == (
        "4",
        "yes",
        "yes",
    )
    assert (rows["RMU"]["pareto front"], rows["RMU"]["equal utility"]) == ("no", "no")
    assert float(rows["RMU"]["seconds"]) == 1.5
    assert rows["target"]["pareto front"] == ""


def test_csv_of_several_groups_leaves_foreign_metrics_empty(make, make_metric, save) -> None:
    folder = save(
        make("A", 0.2, 0.5, more=(make_metric("quality", 0.5, "higher"),)),
        make("B", None, 0.5, benchmark="muse", more=(make_metric("leak", 0.1, "none"),)),
    )
    first, second = read(to_csv(compare_results([folder])))
    assert (first["quality"], first["leak"], second["quality"], second["leak"]) == ("0.5", "", "", "0.1")
    assert second["extraction"] == ""


@pytest.mark.parametrize("formula", FORMULAS)
def test_csv_runs_no_formula(make, make_metric, save, formula) -> None:
    hostile = make(
        formula,
        -0.5,
        0.5,
        method=formula,
        setting={formula: formula},
        more=(make_metric(formula, 0.5, "none"),),
    )
    text = to_csv(compare_results([save(hostile)]))
    rows = list(csv.reader(io.StringIO(text)))
    cells = [cell for row in rows for cell in row]
    assert len({len(row) for row in rows}) == 1
    for cell in cells:
        if not re.fullmatch(r"-?[0-9.e+-]+", cell):
            assert not re.match(r"\s*[=+\-@\uff1d]", cell), cell
    assert "-0.5" in cells  # a negative number stays a number
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_every_text_is_quoted_so_that_no_separator_splits_it(make, save) -> None:
    text = to_csv(compare_results([save(make('a;b,c"d', 0.2, 0.5), make("x;=1", 0.2, 0.5))]))
    assert '"a;b,c""d"' in text
    assert '"x;=1"' in text


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip().strip("|"))


def test_markdown_has_one_table_for_each_group(make, save, references) -> None:
    folder = save(*references, make("NPO", 0.01, 0.6), make("A", 0.2, 0.5, benchmark="muse"))
    text = to_markdown(compare_results([folder]))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## TOFU, split forget05",
        "## MUSE, split forget05",
    ]
    table = [line for line in text.split("## MUSE")[0].splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({len(cells_of(line)) for line in table}) == 1
    assert "over-forgetting" in table[-1]


def test_markdown_keeps_hostile_text_in_its_cell(make, make_metric, save) -> None:
    hostile = "a|b\n| c <script>alert(1)</script> [x](javascript:y) `z`"
    folder = save(
        make(hostile, 0.2, 0.5, notes=[hostile], more=(make_metric(hostile, 0.5, "none", note=hostile),))
    )
    text = to_markdown(compare_results([folder]))
    assert not re.search(r"(?<!\\)[<\[`]", text.replace("<br>", ""))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert len({len(cells_of(line)) for line in table}) == 1
