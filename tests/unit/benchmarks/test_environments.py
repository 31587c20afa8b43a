"""The committed lists of versions name every direct dependency, inside its bounds."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("tested_environment", "lowest_bounds"):
        sys.modules.pop(name, None)


@pytest.fixture
def direct(script) -> list[Requirement]:
    return script("tested_environment").direct_requirements(ROOT / "pyproject.toml")


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements-tested.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lock_names_every_direct_dependency_inside_its_bounds(direct):
    versions = locked()
    assert {"torch", "transformers", "pytest-socket"} <= {one.name for one in direct}
    outside = [str(one) for one in direct if versions.get(one.name.lower(), "0") not in one.specifier]
    assert outside == []


def test_the_bill_of_materials_is_the_lock_with_its_edges_and_no_address():
    text = (ROOT / "sbom.cdx.json").read_text()
    bill = json.loads(text)
    assert {one["name"]: one["version"] for one in bill["components"]} == locked()
    known = {one["bom-ref"] for one in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {one["ref"] for one in bill["dependencies"]} == known
    assert {need for one in bill["dependencies"] for need in one.get("dependsOn", ())} <= known
    assert text.count("://") == 1 == bill["$schema"].count("://")


def test_every_bound_was_tested_or_is_named(direct, script):
    bound = script("lowest_bounds").lower_bound
    result = json.loads((ROOT / "benchmarks/results/lowest_bounds.json").read_text())
    assert result["tests"]["failed"] == 0 < result["tests"]["passed"]
    versions = result["versions"]
    untested = [one.name for one in direct if Version(versions[one.name]) != Version(bound(one))]
    assert untested == result["above_their_bound"]


def test_an_environment_lists_what_is_needed_and_nothing_else(script):
    module = script("tested_environment")
    packages = module.needed_packages([Requirement("jinja2>=3"), Requirement("requests")])
    assert {"jinja2", "markupsafe", "requests", "urllib3", "idna"} <= set(packages)
    assert "torch" not in packages and packages["jinja2"].needs == ("markupsafe",)


def test_a_dependency_without_a_lower_bound_is_refused(script):
    with pytest.raises(ValueError, match="one lower bound"):
        script("lowest_bounds").lower_bound(Requirement("x<3"))
    assert script("lowest_bounds").lower_bound(Requirement("x>=2.1,<3")) == "2.1"


def test_reports_of_pytest_are_counted_and_the_last_outcome_of_a_test_holds(script, tmp_path):
    def report(name: str, **outcomes: str) -> Path:
        cases = (f'<testcase classname="c" name="{test}">{end}</testcase>' for test, end in outcomes.items())
        path = tmp_path / name
        path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")
        return path

    first = report("first.xml", a="", b="<failure/>", c="<error/>", d="<skipped/>")
    count = script("lowest_bounds").counts
    assert count([first]) == {"passed": 1, "failed": 2, "skipped": 1}
    assert count([first, report("again.xml", b="")]) == {"passed": 2, "failed": 1, "skipped": 1}
