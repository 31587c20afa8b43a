"""Choose the columns of rows and turn rows into examples. Every failure names the file and the line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from falcon_unlearn.config.data import ExampleFormat
from falcon_unlearn.data.formats import Row
from falcon_unlearn.errors import DataError
from falcon_unlearn.examples import ROLES, Example, Message

ROLES_OF_FORMAT: dict[ExampleFormat, tuple[str, ...]] = {
    "text": ("text",),
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
}
"""The columns each format needs, in the order `auto` reports them."""


def rows_to_examples(
    rows: Iterable[Row],
    *,
    name: str,
    layout: ExampleFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> list[Example]:
    """Read the chosen columns of every row.

    Args:
        rows: Objects (or bare strings, which are texts).
        name: What to call the source in messages.
        layout: The format, or `auto` to decide by the columns of the first row.
        columns: Role to column, where the names differ.

    Raises:
        DataError: on ambiguous or missing columns, and on values that are not strings.
    """
    rows = list(rows)
    if not rows:
        raise DataError(f"{name} has no rows", hint="name a source with at least one example")
    chosen = dict(columns or {})
    first = rows[0].value
    if isinstance(first, str):
        if chosen or layout not in ("auto", "text"):
            raise DataError(
                f"{rows[0].place}: a bare string has no columns", hint="leave `columns` and `format` out"
            )
        return [Example.of_text(_string(row.value, row.place, "the row")) for row in rows]
    if not isinstance(first, Mapping):
        raise DataError(f"{rows[0].place}: expected an object or a string, found {_kind(first)}")
    resolved = choose_layout(list(first), layout=layout, columns=chosen, place=rows[0].place)
    names = [chosen.get(role, role) for role in ROLES_OF_FORMAT[resolved]]
    return [_example(resolved, _select(row, names), names, row.place) for row in rows]


def choose_layout(
    found: Sequence[str], *, layout: ExampleFormat, columns: Mapping[str, str], place: str
) -> ExampleFormat:
    """Decide the format by the columns present.

    Raises:
        DataError: if none or more than one format fits, naming the columns found and how to choose.
    """
    _check_roles(layout, columns, place)
    usable = {
        name: roles
        for name, roles in ROLES_OF_FORMAT.items()
        if layout in ("auto", name) and set(columns) <= set(roles)
    }
    if layout == "auto" and not usable:
        raise DataError(
            f"{place}: `columns` names roles of different formats: {', '.join(columns)}", hint=_column_hint()
        )
    fitting = [
        name for name, roles in usable.items() if all(columns.get(role, role) in found for role in roles)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{place}: the columns {_listed(found)} fit several formats: {', '.join(fitting)}",
            hint=f"set `format: {fitting[0]}` (or another of them) for this set",
        )
    wanted = [columns.get(role, role) for roles in usable.values() for role in roles]
    near = next((f"; `{c}` is close to `{m[0]}`" for c in found if (m := close_matches(c, wanted))), "")
    raise DataError(
        f"{place}: the columns are {_listed(found)}; needed: {_allowed(usable, columns)}{near}",
        hint=_column_hint(found),
    )


def close_matches(word: str, candidates: Iterable[str]) -> list[str]:
    """Return the candidates most similar to `word`, ignoring case, best first."""
    originals = {candidate.casefold(): candidate for candidate in candidates}
    return [
        originals[match] for match in difflib.get_close_matches(word.casefold(), originals, n=3, cutoff=0.6)
    ]


def _check_roles(layout: ExampleFormat, columns: Mapping[str, str], place: str) -> None:
    groups = [roles for name, roles in ROLES_OF_FORMAT.items() if layout in ("auto", name)]
    allowed = [role for roles in groups for role in roles]
    for role in columns:
        if role not in allowed:
            near = close_matches(role, allowed)
            suggestion = f"; did you mean `{near[0]}`?" if near else ""
            raise DataError(
                f"{place}: `columns` has no role `{role}`; allowed: {', '.join(allowed)}{suggestion}",
                hint="write `columns: {ROLE: COLUMN}`, for instance {text: body}",
            )


def _allowed(usable: Mapping[ExampleFormat, tuple[str, ...]], columns: Mapping[str, str]) -> str:
    return ", or ".join(
        " and ".join(f"`{columns.get(role, role)}`" for role in roles) for roles in usable.values()
    )


def _column_hint(found: Sequence[str] = ()) -> str:
    first = found[0] if found and re.fullmatch(r"\w+", found[0]) else "body"
    return f"set `columns` for this set, for instance {{text: {first}}} or {{question: q, answer: a}}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:60]}`" for name in names[:12])
    return (shown or "(none)") + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _select(row: Row, names: Sequence[str]) -> list[object]:
    if not isinstance(row.value, Mapping):
        raise DataError(f"{row.place}: expected an object as in the first row, found {_kind(row.value)}")
    missing = [name for name in names if name not in row.value]
    if missing:
        raise DataError(
            f"{row.place}: the column `{missing[0]}` is missing; this row has {_listed(list(row.value))}",
            hint="give every row the columns of the first one",
        )
    return [row.value[name] for name in names]


def _example(layout: ExampleFormat, values: list[object], names: list[str], place: str) -> Example:
    if layout == "messages":
        return Example.of_messages(_messages(values[0], f"{place}: `{names[0]}`"))
    strings = [_string(value, place, f"`{name}`") for value, name in zip(values, names, strict=True)]
    if layout == "text":
        return Example.of_text(strings[0])
    return Example.of_question(*strings) if layout == "question_answer" else Example.of_completion(*strings)


def _messages(value: object, place: str) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{place} must be a list of {{role, content}} objects, found {_kind(value)}")
    messages = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            keys = f" with {_listed(list(item))}" if isinstance(item, Mapping) else ""
            raise DataError(
                f"{place}, message {number}: needs `role` and `content`, found {_kind(item)}{keys}"
            )
        role = _string(item["role"], place, f"the role of message {number}")
        if role not in ROLES:
            near = close_matches(role, ROLES)
            suggestion = f"; did you mean `{near[0]}`?" if near else ""
            raise DataError(
                f"{place}, message {number}: role `{role[:60]}`; allowed: {', '.join(ROLES)}{suggestion}"
            )
        messages.append(Message(role, _string(item["content"], place, f"the content of message {number}")))
    if all(message.role != "assistant" for message in messages):
        raise DataError(f"{place} has no assistant message", hint="give every conversation an answer")
    return messages


def _string(value: object, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {what} must be a string, found {_kind(value)}")
    if "\0" in value:
        raise DataError(f"{place}: {what} contains a NUL character", hint="remove it from the data")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {what} has half of a surrogate pair", hint="write the data as UTF-8"
        ) from error
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
