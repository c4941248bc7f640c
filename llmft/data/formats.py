"""The file formats of user data: rows with the number of the line they start on."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llmft.errors import DataError

Row = dict[str, Any]
Line = tuple[int, Row | None]  # None: an empty line
_SEPARATORS = {",": "commas", "\t": "tabs"}


@dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot hold; no trouble where its column is not used."""

    reason: str

    def __repr__(self) -> str:
        return f"not readable ({self.reason})"


def csv_rows(path: Path, delimiter: str) -> Iterator[Line]:
    text = _text(path)
    _check_separator(path, re.split("[\r\n]", text, maxsplit=1)[0], delimiter)
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, strict=True
        )
        line = 1
        header = next(reader, None)
        if not header:
            raise DataError(
                "the first line is empty", "expected column names", path=path, line=1
            )
        if len(set(header)) < len(header):
            raise DataError(f"a column name occurs twice: {header}", path=path, line=1)
        end_of_header = reader.line_num
        while True:
            line = reader.line_num + 1
            fields = next(reader, None)
            if fields is None and reader.line_num == end_of_header:
                raise DataError(
                    "a header line and no rows", "expected at least one", path=path
                )
            if fields is None:
                return
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
            elif not fields:
                yield line, None
            else:
                raise DataError(
                    f"{len(fields)} fields",
                    f"expected {len(header)} as in the header",
                    "quote texts that hold the separator or a line break"
                    + ("; a text a line is a .txt file" if len(header) < 2 else ""),
                    path=path,
                    line=line,
                )
    except csv.Error as error:
        raise DataError(f"not csv: {error}", path=path, line=line) from None
    finally:
        csv.field_size_limit(previous_limit)


def _check_separator(path: Path, header: str, delimiter: str) -> None:
    """Raise DataError where a header of one column looks separated by another sign."""
    others = [c for c in ",;\t|" if c in header and c != delimiter]
    if delimiter in header or not others:
        return
    other = max(others, key=header.count)
    wanted = _SEPARATORS[delimiter]
    ending = {".csv": "\t", ".tsv": ","}[path.suffix.lower()]
    hint = f"save it with {wanted}, or rename the column if it is a single one"
    if other == ending:
        hint = f"give it the ending {'.csv' if other == ',' else '.tsv'}; or {hint}"
    raise DataError(
        f"looks separated by {other!r}",
        f"expected {delimiter!r} between the column names",
        hint,
        path=path,
        line=1,
    )


def jsonl_rows(path: Path) -> Iterator[Line]:
    for number, line in enumerate(_lines(path), 1):
        yield number, _object(line, path, number) if line.strip() else None


def json_rows(path: Path) -> Iterator[Line]:
    text = _text(path)
    try:
        value = _parse_json(text, path)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line, as many tools write .json
            yield from jsonl_rows(path)
            return
        raise DataError(
            f"not JSON: {error.msg}", path=path, line=error.lineno
        ) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict) and not any(
        isinstance(v, list | dict) for v in value.values()
    ):
        value = [value]
    if not isinstance(value, list):
        raise DataError("not a list of objects", path=path, line=1)
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise DataError(f"item {number} is not an object", path=path)
        yield number, row


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise DataError(
                f"{twice!r} occurs twice in an object",
                "expected each name once",
                path=path,
                line=line,
            )
        return row

    def integer(digits: str) -> int | Unreadable:
        if len(digits) > 4000:  # Python refuses to convert more than 4,300
            return Unreadable(f"a number of {len(digits):,} digits")
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except RecursionError:
        raise DataError("JSON nested too deeply", path=path, line=line) from None


def _object(line: str, path: Path, number: int) -> Row:
    try:
        row = _parse_json(line, path, number)
    except json.JSONDecodeError as error:
        said = f"not JSON: {error.msg} at column {error.colno}"
        raise DataError(said, path=path, line=number) from None
    if not isinstance(row, dict):
        raise DataError(
            "not a JSON object", 'expected {"text": ...}', path=path, line=number
        )
    return row


def parquet_rows(path: Path) -> Iterator[Line]:
    try:
        source = pyarrow.BufferReader(_bytes(path))
        file = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
        table = file.read()
        names = table.column_names
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        said = f"damaged, or not a parquet file: {error}"
        raise DataError(said, path=path) from None
    if not names:
        raise DataError("a table without columns", "expected text", path=path)
    if len(set(names)) < len(names):
        raise DataError(f"a column name occurs twice: {names}", path=path)
    columns = [map(_cell, column) for column in table.columns]
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield number, dict(zip(names, cells, strict=True))


def _cell(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:  # not UTF-8; the year 300,000
        return Unreadable(str(error))


def txt_rows(path: Path, sample_by: str) -> Iterator[Line]:
    texts = [_text(path)] if sample_by == "document" else _lines(path)
    for number, text in enumerate(texts, 1):
        yield number, {"text": text} if text.strip() else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, ended by \\n or \\r\\n and by nothing else."""
    lines = _text(path).split("\n")
    return [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8",
            hint="save the file as UTF-8",
            path=path,
            line=raw.count(b"\n", 0, error.start) + 1,
        ) from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: Path) -> DataError:
    """Return the fault of a file or folder that the system does not let us read."""
    said = f"cannot be read: {error.strerror}"
    return DataError(said, hint="check its permissions, or take it out", path=path)
