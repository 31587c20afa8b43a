"""Write which tests passed with every direct dependency at its lower bound, and at which versions.

    python benchmarks/lowest_bounds.py --junit lowest.xml --output benchmarks/results/lowest_bounds.json

`make test-lowest` makes the environment, runs the unit tests there and calls this with its interpreter.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.version import Version
from tested_environment import direct_requirements

_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lower_bound(requirement: Requirement) -> str:
    """Return the lowest version that `requirement` allows.

    Raises:
        ValueError: It has no lower bound.
    """
    bounds = [one.version for one in requirement.specifier if one.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement}: every dependency needs one lower bound")
    return bounds[0]


def counts(reports: Sequence[Path]) -> dict[str, int]:
    """Count tests by their outcome in reports of pytest; a test that ran twice counts as it ended last."""
    outcomes: dict[tuple[str, str], str] = {}
    for report in reports:
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            outcomes[case.get("classname", ""), case.get("name", "")] = _outcome(case)
    found = list(outcomes.values())
    return {outcome: found.count(outcome) for outcome in ("passed", "failed", "skipped")}


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def main() -> int:
    """Write the result; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junit", type=Path, required=True, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    bounds = {one.name: lower_bound(one) for one in direct_requirements(_PROJECT)}
    tested = {name: version(name) for name in bounds}
    above = [name for name, bound in bounds.items() if Version(tested[name]) != Version(bound)]
    result = {
        "command": "make test-lowest",
        "python": platform.python_version(),
        "tests": counts(arguments.junit),
        "above_their_bound": above,
        "versions": tested,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["tests"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
