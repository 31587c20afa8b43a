"""Read YAML strictly: one document of plain values, no tags, no aliases, no repeated keys."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from falcon_unlearn.errors import UsageError

MAXIMUM_BYTES = 1 << 20
"""Largest recipe read, in bytes."""
_HINT = "A recipe is plain YAML: keys, numbers, text and lists. `falcon-unlearn init` writes an example."
MAXIMUM_DEPTH = 24
"""Deepest nesting; PyYAML is recursive, so a few kilobytes of brackets would end in RecursionError."""


class _StrictLoader(yaml.SafeLoader):
    """Accept the core values of YAML 1.2 and nothing else."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, refusing aliases, tags and deep nesting before anything is built."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"the alias *{event.anchor} is not allowed in a recipe")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._refuse(event, f"the tag {tag} is not allowed in a recipe")
        if self.depth >= MAXIMUM_DEPTH:
            self._refuse(event, f"nested deeper than {MAXIMUM_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    @staticmethod
    def _refuse(event: Any, problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        mark = key_node.start_mark
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a name", problem_mark=mark)
        if key in result:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _construct_integer(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 400:
        raise yaml.MarkedYAMLError(problem="a number of more than 400 digits", problem_mark=node.start_mark)
    return int(node.value, 0) if node.value[:2] in {"0x", "0o"} else int(node.value)


def _construct_float(loader: _StrictLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_StrictLoader.yaml_implicit_resolvers = {}
# YAML 1.1, PyYAML's default, reads 1e-5 as text, 010 as eight, 1:30 as ninety, `no` as false and 2024-01-01
# as a date. These are the core rules of YAML 1.2 instead.
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("tag:yaml.org,2002:int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(rf"^{_pattern}$"), list(_first))
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse one YAML value; `origin` names its source in the error.

    Raises:
        UsageError: the text is not one plain YAML document.
    """
    loader = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise UsageError(
            f"{origin}{where}: {error.problem or error.context or 'not valid YAML'}",
            hint=_HINT,
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not readable as YAML text ({_one_line(error)})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_recipe_text(path: Path) -> str:
    """Read a recipe file as UTF-8, with or without a byte order mark.

    Raises:
        UsageError: the file is missing, not a file, unreadable, too large or not UTF-8.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, a recipe file is needed")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(MAXIMUM_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such recipe file", hint=f"`falcon-unlearn init {path}` writes a commented one."
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{str(path)!r}: cannot read the recipe file ({reason})") from error
    if len(data) > MAXIMUM_BYTES:
        raise UsageError(
            f"{path}: {max(size, len(data))} bytes, a recipe has at most {MAXIMUM_BYTES}",
            hint="A recipe names data files; it does not contain the texts.",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text (byte {error.start})", hint="Save the file with the encoding UTF-8."
        ) from error


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(
        value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )


class _StrictDumper(yaml.SafeDumper):
    """Quote by both YAML versions, and write no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat equal values instead of writing an alias, which the reader refuses."""
        return True


# PyYAML's own patterns do not cover 1e-5, so such text would be written bare and read back as a number.
for _first, _resolvers in _StrictLoader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _StrictDumper.add_implicit_resolver(_tag, _regexp, [_first])
