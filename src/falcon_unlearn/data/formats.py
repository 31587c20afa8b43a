"""Turn file contents into rows or texts. Every failure names the file and the line."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from falcon_unlearn.errors import DataError

_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # UTF-32 first: its little-endian mark starts with that of UTF-16


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one value of a file and where it stands, for error messages."""

    place: str
    """For instance `facts.jsonl, line 3`."""
    value: object


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte order mark, to text with plain newlines.

    Raises:
        DataError: if the content is empty, has another encoding, or contains NUL bytes.
    """
    for mark, encoding in _OTHER_ENCODINGS.items():
        if content.startswith(mark):
            raise DataError(f"{name} is {encoding}, not UTF-8", hint="save the file as UTF-8 and try again")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8",
            hint="save the file as UTF-8; `iconv -f LATIN1 -t UTF-8` converts Western European files",
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}, line {line}: contains a NUL byte",
            hint="the file is binary, damaged or UTF-16 without a mark",
        )
    if not text.strip():
        raise DataError(f"{name} is empty", hint="name a file with at least one example")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json_rows(text: str, name: str) -> list[Row]:
    """Split JSON into rows: one array of values, or any number of values one after another (JSON lines).

    The content decides which, not the name of the file.

    Raises:
        DataError: at the first line that is not valid JSON.
    """
    decoder = json.JSONDecoder()
    rows: list[Row] = []
    position, line, counted = _skip_space(text, 0), 1, 0
    in_array = text.startswith("[", position)
    if in_array:
        position = _skip_space(text, position + 1)
        if text.startswith("]", position):
            raise DataError(f"{name} holds an empty list", hint="name a file with at least one example")
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except RecursionError as error:
            raise DataError(f"{name}, line {line}: nested too deeply to be data") from error
        except ValueError as error:
            _refuse_json(error, text, name, line, has_rows=bool(rows))
        rows.append(Row(f"{name}, line {line}", value))
        position = _skip_space(text, position)
        if in_array:
            if text.startswith(",", position):
                position = _skip_space(text, position + 1)
            elif text.startswith("]", position):
                position = _skip_space(text, position + 1)
                in_array = False
                if position < len(text):
                    line = text.count("\n", 0, position) + 1
                    raise DataError(
                        f"{name}, line {line}: text after the end of the list",
                        hint="write one list, or one object on each line",
                    )
            else:
                break
    if in_array:
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}, line {line}: the list is not closed", hint="the file may be incomplete")
    return rows


def _skip_space(text: str, position: int) -> int:
    match = _JSON_SPACE.match(text, position)
    return match.end() if match else position


def _refuse_json(error: ValueError, text: str, name: str, line: int, *, has_rows: bool) -> NoReturn:
    """Word a JSON failure; `line` is where the broken value starts."""
    if not isinstance(error, json.JSONDecodeError):
        raise DataError(f"{name}, line {line}: {error}") from error
    torn = has_rows and line == text.rstrip().count("\n") + 1
    hint = (
        "the last line is incomplete; fetch or write the file again"
        if torn
        else "each line holds one JSON object, or the whole file one list of objects"
    )
    position = f"{error.msg} at line {error.lineno} column {error.colno}"
    raise DataError(f"{name}, line {line}: not valid JSON ({position})", hint=hint) from error


def split_text(text: str, how: Literal["auto", "line", "paragraph", "file"]) -> list[str]:
    """Cut a plain text into examples; `auto`: paragraphs if a blank line exists, else lines."""
    if how == "file":
        return [text.strip()]
    body = text.strip()
    if how == "auto":
        how = "paragraph" if _BLANK_LINE.search(body) else "line"
    parts = _BLANK_LINE.split(body) if how == "paragraph" else body.split("\n")
    return [part.strip() for part in parts if part.strip()]
