"""The file formats of user data: rows with the number of the line they start on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llmft.errors import DataError

Row = dict[str, Any]
Line = tuple[int, Row | None]  # None: an empty line


def csv_rows(path: Path, delimiter: str) -> Iterator[Line]:
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(
            io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True
        )
        line = 1
        header = next(reader, None)
        if not header:
            raise DataError("no header line", path=path)
        if len(set(header)) < len(header):
            raise DataError(f"a column name occurs twice: {header}", path=path, line=1)
        while True:
            line = reader.line_num + 1
            fields = next(reader, None)
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
                    "quote texts that hold the separator or a line break",
                    path=path,
                    line=line,
                )
    except csv.Error as error:
        raise DataError(f"not csv: {error}", path=path, line=line) from None
    finally:
        csv.field_size_limit(previous_limit)


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

    try:
        return json.loads(text, object_pairs_hook=unique)
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
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError, OSError) as error:
        raise DataError(f"not a parquet file: {error}", path=path) from None
    yield from enumerate(table.to_pylist(), 1)


def txt_rows(path: Path, sample_by: str) -> Iterator[Line]:
    texts = [_text(path)] if sample_by == "document" else _lines(path)
    for number, text in enumerate(texts, 1):
        yield number, {"text": text} if text.strip() else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, ended by \\n or \\r\\n and by nothing else."""
    lines = _text(path).split("\n")
    return [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8",
            hint="save the file as UTF-8",
            path=path,
            line=raw.count(b"\n", 0, error.start) + 1,
        ) from None
