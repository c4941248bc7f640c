"""json and jsonl: rows with the number of the line they start on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.data.read.tables import Unreadable
from llmft.data.read.text import (
    TOO_LONG,
    Line,
    Row,
    numbered_lines,
    text_lines,
    too_long,
    whole_text,
)
from llmft.errors import DataError, DataFormatError, escape, listed


def jsonl_rows(path: Path, encoding: str, left_out: range = range(0)) -> Iterator[Line]:
    """Yield the objects of a file with one a line; what is none comes as its error."""
    for number, line in numbered_lines(path, encoding, left_out):
        text = line.rstrip("\r\n")
        yield number, _object(text) if text.strip() else None


def _object(text: str) -> Row | DataError:
    """Return the object of a line, or what is wrong with it."""
    if text == TOO_LONG:
        return too_long()
    try:
        row = _parse_json(text)
    except ValueError as error:
        return _json_fault(error, text)
    if isinstance(row, dict):
        return row
    said = f"not a JSON object: {escape(text.strip(), 60)}"
    return DataFormatError(said, 'expected {"text": ...}')


def _json_fault(
    error: ValueError, text: str, line: int | None = None
) -> DataFormatError:
    if not isinstance(error, json.JSONDecodeError):
        return DataFormatError(str(error), line=line)
    around = text[max(0, error.pos - 30) : error.pos + 40].strip()
    said = f"not JSON: {error.msg} near {escape(around, 80)!r}"
    return DataFormatError(said, line=error.lineno, column=error.colno)


def json_rows(path: Path, encoding: str) -> Iterator[Line]:
    """Yield the objects of a list, of {"data": [...]}, or of one a line."""
    if _are_lines(path, encoding):  # as many tools write .json, of any size
        yield from jsonl_rows(path, encoding)
        return
    text = whole_text(path, encoding)
    start = _after_space(text, 0)
    if text.startswith("[", start):
        yield from _items(text, start)
        return
    try:
        value = _parse_json(text)
    except ValueError as error:
        raise _json_fault(error, text) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        beside = [k for k, v in value.items() if k != "data" and _holds_more(v)]
        if beside:
            said = f"rows under 'data', and something else under {listed(beside)}"
            raise DataFormatError(said, "expected a list of objects", line=1)
        yield from _items(text, _list_of_data(text, start), whole=False)
        return
    if not isinstance(value, dict) or _is_table(value):
        raise DataFormatError("not a list of objects", line=1)
    yield 1, value


def _are_lines(path: Path, encoding: str) -> bool:
    """Whether the first line that is not empty is an object, and not the last."""
    filled = (line for line in text_lines(path, encoding) if line.strip())
    first = next(filled, "")
    return isinstance(_object(first), dict) and next(filled, "").startswith("{")


def _holds_more(value: Any) -> bool:
    """Whether what stands beside the rows is more than a version or a name."""
    return isinstance(value, list | dict) or (
        isinstance(value, str) and len(value) > 99
    )


def _list_of_data(text: str, at: int) -> int:
    """Return where the list under "data" begins, of the object at ``at``."""
    while True:
        key, at = _DECODER.raw_decode(text, _after_space(text, at + 1))
        at = _after_space(text, _after_space(text, at) + 1)  # after the colon
        if key == "data":
            return at
        at = _after_space(text, _DECODER.raw_decode(text, at)[1])  # at the comma


def _is_table(value: Row) -> bool:
    """Whether an object is a list of rows under a name, and no conversation."""
    lists = all(isinstance(cell, list | dict) for cell in value.values())
    return lists and not value.keys() & {"messages", "conversations"}


def _items(text: str, at: int, whole: bool = True) -> Iterator[Line]:
    """Yield the items of a JSON list that begins at ``at``, the ``whole`` of a text."""
    line, seen, number = 1, 0, 0
    try:
        while True:
            at = _after_space(text, at + 1)  # the bracket, or a comma
            if text[at : at + 1] == "]":
                if number:
                    raise json.JSONDecodeError("an item after the comma", text, at)
                break
            line, seen = line + text.count("\n", seen, at), at
            value, at = _DECODER.raw_decode(text, at)
            number += 1
            none = f"item {number} is not an object"
            yield line, value if isinstance(value, dict) else DataFormatError(none)
            at = _after_space(text, at)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if whole and (at := _after_space(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except RecursionError:
        raise DataFormatError("nested too deeply", line=line) from None
    except ValueError as error:
        raise _json_fault(error, text, line) from None


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise ValueError(f"{escape(twice, 40)!r} occurs twice in an object")
    return row


def _integer(digits: str) -> int | Unreadable:
    if len(digits) > 4000:  # Python refuses to convert more than 4,300
        return Unreadable(f"a number of {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)
# The same for what holds no number of thousands of digits, nor space around it.
_FAST: Any = json.JSONDecoder(object_pairs_hook=_unique)
_scan = _FAST.scan_once


def _parse_json(text: str) -> Any:
    try:
        try:
            value, end = _scan(text, 0)
            if end == len(text):
                return value
        except (StopIteration, ValueError):
            pass  # the decoder tells it better
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
