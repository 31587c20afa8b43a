"""`compare` prints one format, writes one folder, and refuses what it cannot compare."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from falcon_unlearn.report.comparison import Comparison
from falcon_unlearn.results_bench import BenchMetric, BenchResult, Gate


def metric(name: str, value: float | None, desired: str) -> BenchMetric:
    return BenchMetric(name=name, value=value, desired=desired)


def result(
    label: str, forget: float | None, utility: float, role: str = "unlearned", **fields
) -> BenchResult:
    metrics = [metric("extraction", forget, "retain model"), metric("utility", utility, "higher")]
    metrics += [metric(f"extra_{number}", 0.5, "none") for number in range(fields.pop("extras", 0))]
    return BenchResult(
        benchmark="tofu", setting={"split": "forget05"}, role=role, label=label, model="m", metrics=metrics,
        forget_axis="extraction", utility_axis="utility", **fields,
    )  # fmt: skip


@pytest.fixture
def results(workplace) -> Path:
    gate = Gate(name="G2", passed=False, value=0.3, condition="at most 0.25")
    rows = [
        result("target", 0.7, 0.6, "target"),
        result("retain A", 0.1, 0.6, "retain"),
        result("NPO", 0.2, 0.59, notes=["stand-in data"]),
        result("\x1b[31mRMU [bold]x", 0.01, 0.5, gates=[gate]),
    ]
    folder = workplace / "results"
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"{number}.bench.json").write_text(row.model_dump_json())
    return folder


def test_table_outcome_gates_and_notes(cli, results) -> None:
    code, out, err = cli("compare", "results")
    assert (code, err) == (0, "")
    for expected in (
        "TOFU, split forget05",
        "NPO",
        "0.200",
        "+0.100 to retain",
        "over-forgetting",
        "RMU [bold]x",
        "At equal utility",
        "FAILED GATE: RMU [bold]x: G2 is 0.3, needed: at most 0.25",
        "note: NPO: stand-in data",
    ):
        assert expected in out
    assert "\x1b" not in out


def test_many_metrics_become_several_tables_of_full_width(cli, workplace) -> None:
    Path("one.json").write_text(result("NPO", 0.2, 0.5, extras=12).model_dump_json())
    code, out, _ = cli("compare", "one.json")
    assert code == 0
    assert all(f"extra_{number}" in out for number in range(12))
    assert out.count("\n NPO") + out.count("\nNPO") >= 3
    assert "\u2026" not in out


def test_json_is_the_record(cli, results) -> None:
    code, out, _ = cli("compare", "results", "--json", "--utility-tolerance", "0.005")
    comparison = Comparison.model_validate_json(out)
    assert (code, comparison.utility_tolerance) == (0, 0.005)
    flags = {row.label: row.equal_utility for row in comparison.groups[0].rows}
    assert flags["NPO"] is False


def test_csv_and_markdown(cli, results) -> None:
    code, out, _ = cli("compare", "results", "--csv")
    assert code == 0
    assert [row["label"] for row in csv.DictReader(io.StringIO(out))] == [
        "target", "retain A", "NPO", "RMU [bold]x",
    ]  # fmt: skip
    code, out, _ = cli("compare", "results", "--markdown")
    assert code == 0
    assert out.startswith("## TOFU, split forget05\n\n| row |")


def test_output_is_a_new_folder(cli, results) -> None:
    code, out, _ = cli("compare", "results", "--output", "out")
    assert code == 0
    assert out.rstrip().endswith("Page: out/comparison.html")
    assert Path("out/picture-1-tofu.svg").is_file()
    code, out, err = cli("compare", "results", "--output", "out")
    assert (code, out) == (2, "")
    assert "in use" in err
    code, out, _ = cli("compare", "results", "-o", "other", "--json")
    assert json.loads(out) == json.loads(Path("other/comparison.json").read_text())


def test_files_and_folders_may_be_mixed(cli, results) -> None:
    Path("more.json").write_text(result("SimNPO", 0.12, 0.6).model_dump_json())
    code, out, _ = cli("compare", "results", "more.json", "--json")
    assert code == 0
    assert [row["label"] for row in json.loads(out)["groups"][0]["rows"]][-1] == "SimNPO"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare"),
        (["nowhere"], "no such file or folder"),
        (["."], None),
        (["forget.jsonl"], "no field `benchmark`"),
        (["results", "--json", "--csv"], "exclude each other"),
        (["results", "--utility-tolerance", "-1"], "utility tolerance"),
        (["results", "--utility-tolerance", "much"], "much"),
    ],
)
def test_what_cannot_be_compared_is_refused(cli, results, arguments, words) -> None:
    code, out, err = cli("compare", *arguments)
    if words is None:
        assert code == 0  # a folder of folders is searched one level deep
    else:
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err


def test_nothing_is_written_when_reading_fails(cli, results) -> None:
    Path("results/bad.bench.json").write_text("{")
    assert cli("compare", "results", "--output", "out")[0] == 2
    assert not Path("out").exists()
