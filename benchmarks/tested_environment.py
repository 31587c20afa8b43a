"""Write the versions that passed the tests: the packages that the dev extra needs, and no other.

    python benchmarks/tested_environment.py --lock requirements-tested.txt --bill sbom.cdx.json

Run it with the interpreter of that environment. The bill of materials is CycloneDX 1.6, with licences and who
needs whom; for it, `pip install cyclonedx-python-lib` (`make lock` does).
"""

from __future__ import annotations

import argparse
import json
import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

_PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_ROOT = "falcon-unlearn"
_LONGEST_LICENCE = 60
"""Characters; some packages put the whole text where the name belongs."""


@dataclass(frozen=True)
class Package:
    """One installed package."""

    version: str
    licence: str
    """As the package declares it, an expression or a name; empty if it declares none."""
    needs: tuple[str, ...]
    """Canonical names of the packages that it needs here, sorted."""


def direct_requirements(project: Path) -> list[Requirement]:
    """Return what `project` and its dev extra ask for."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return [Requirement(entry) for entry in (*table["dependencies"], *table["optional-dependencies"]["dev"])]


def needed_packages(direct: list[Requirement]) -> dict[str, Package]:
    """Return every package that `direct` needs, by canonical name.

    Raises:
        importlib.metadata.PackageNotFoundError: One of them is not installed.
    """
    needs: dict[str, set[str]] = {}
    waiting = [_wanted(requirement) for requirement in direct]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        lines = distribution(name).requires or ()
        following = [_wanted(one) for one in map(Requirement, lines) if _applies(one, extras)]
        needs.setdefault(name, set()).update(each for each, _ in following)
        waiting += set(following) - seen
        seen.update(following)
    return {name: _package(name, needs[name]) for name in sorted(needs)}


def _wanted(requirement: Requirement) -> tuple[str, frozenset[str]]:
    return canonicalize_name(requirement.name), frozenset(requirement.extras)


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _package(name: str, needs: set[str]) -> Package:
    installed = distribution(name)
    declared = [installed.metadata.get(field) or "" for field in ("License-Expression", "License")]
    licence = next((one for one in declared if 0 < len(one) <= _LONGEST_LICENCE), "")
    return Package(installed.version, licence, tuple(sorted(needs - {name})))


def lock_text(packages: dict[str, Package]) -> str:
    """Format the versions for pip, without the name of a build such as +cpu."""
    builds = [f"{name} {one.version}" for name, one in packages.items() if Version(one.version).local]
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    head = [
        "# Versions that passed the tests, written by `make lock`; pyproject.toml has the bounds.",
        "# " + ", ".join([machine, *builds]),
    ]
    pins = (f"{name}=={Version(one.version).public}" for name, one in packages.items())
    return "\n".join([*head, *pins]) + "\n"


def bill_text(packages: dict[str, Package], direct: list[Requirement], version: str) -> str:
    """Format the packages as a CycloneDX bill of materials, without time stamp, number or address."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    bill = Bom()
    root = _component(_ROOT, Package(version, "Apache-2.0", ()))
    bill.metadata.component = root
    components = {name: _component(name, one) for name, one in packages.items()}
    bill.components.update(components.values())
    bill.register_dependency(root, [components[name] for name in {_wanted(one)[0] for one in direct}])
    for name, one in packages.items():
        bill.register_dependency(components[name], [components[need] for need in one.needs])
    return _without_accidents(JsonV1Dot6(bill).output_as_string())


def _component(name: str, package: Package) -> Any:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import DisjunctiveLicense
    from packageurl import PackageURL

    version = Version(package.version).public
    licences = [DisjunctiveLicense(name=package.licence)] if package.licence else []
    purl = PackageURL("pypi", name=name, version=version)
    return Component(name=name, version=version, purl=purl, bom_ref=str(purl), licenses=licences)


def _without_accidents(text: str) -> str:
    """Drop what differs between two runs over the same packages."""
    content = json.loads(text)
    content.pop("serialNumber", None)
    content["metadata"].pop("timestamp", None)
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--bill", type=Path, required=True)
    arguments = parser.parse_args()
    from falcon_unlearn._version import __version__

    direct = direct_requirements(_PROJECT)
    packages = needed_packages(direct)
    arguments.lock.write_text(lock_text(packages), encoding="utf-8")
    arguments.bill.write_text(bill_text(packages, direct, __version__), encoding="utf-8")


if __name__ == "__main__":
    main()
