"""The file formats of user data: rows with the number of the line they start on.

A row that is malformed comes as the error that it is, so that the reader can count
it; what leaves the rest of a file in doubt is raised.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from llmft.config.convert import separator
from llmft.config.fields import DataArguments
from llmft.data.read.tables import Unreadable, table_rows
from llmft.data.read.text import (
    MAX_LINE,
    choose_encoding,
    plain_suffix,
    require_decodable,
    require_text,
    text_lines,
    unreadable,
    whole_text,
)
from llmft.errors import DataError, DataFormatError, EncodingError, escape, listed

Row = dict[str, Any]
# None: an empty line; an error: a row that is none.
Line = tuple[int, Row | DataError | None]
FORMATS = ("csv", "tsv", "json", "jsonl", "txt", "parquet", "arrow")


@dataclass(frozen=True)
class Reading:
    """How to read files; None is what a file's ending and the defaults say.

    ``max_bad_rows`` may be left out, counted, before reading fails.
    """

    file_format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quoting: str = "minimal"
    sample_by: str | None = None
    max_bad_rows: int = 0

    @classmethod
    def of(cls, args: DataArguments) -> Reading:
        """Return how the files of the arguments are read."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls)})

    def dialect(self, file_format: str) -> dict[str, Any]:
        """Return what ``csv.reader`` needs to know."""
        given = self.delimiter
        if given is None:
            given = "tab" if file_format == "tsv" else "comma"
        quoting = csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL
        return {"delimiter": separator(given), "quoting": quoting}


def rows_of(path: Path, reading: Reading, sample_by: str) -> tuple[Iterator[Line], str]:
    """Return the rows of a file, and a note on its encoding.

    Args:
        sample_by: what a row of txt is, line or document.

    Raises:
        DataError: no such format, or an empty file; while reading, what is wrong.
    """
    file_format = reading.file_format or plain_suffix(path).removeprefix(".")
    if file_format == "tab":
        file_format = "tsv"
    if file_format not in FORMATS:
        require_text(path)
        raise DataFormatError(
            f"cannot tell the format from the ending {path.suffix or '(none)'}",
            f"expected one of {', '.join(FORMATS)}, or a folder of them",
            "name it with --file_format",
            path=path,
        )
    try:
        if not path.stat().st_size:
            raise DataFormatError("0 bytes", "expected at least one row", path=path)
    except OSError as error:
        raise unreadable(error, path) from error
    if file_format in ("parquet", "arrow"):
        return table_rows(path, file_format), ""
    if file_format in ("csv", "tsv"):
        dialect = reading.dialect(file_format)
        encoding, note = _csv_encoding(path, reading.encoding, dialect["delimiter"])
        return _csv_rows(path, encoding, dialect), note
    encoding, note = choose_encoding(path, reading.encoding)
    readers: dict[str, Callable[[Path, str], Iterator[Line]]] = {
        "json": _json_rows,
        "jsonl": _jsonl_rows,
        "txt": partial(_txt_rows, sample_by=sample_by),
    }
    return readers[file_format](path, encoding), note


def _csv_encoding(path: Path, encoding: str | None, delimiter: str) -> tuple[str, str]:
    """Do what ``choose_encoding`` does, and check the header.

    A file of another country often has both another encoding and another separator:
    one error tells of both.
    """
    try:
        chosen, note = choose_encoding(path, encoding)
        fault = _separator_fault(path, chosen, delimiter)
        if fault is None:
            return chosen, note
        require_decodable(path, chosen)
    except EncodingError as error:
        if error.guess and (also := _separator_fault(path, error.guess, delimiter)):
            error.hint += f"; it also {also.found}: {also.hint}"
        raise
    raise fault


def _csv_rows(path: Path, encoding: str, dialect: dict[str, Any]) -> Iterator[Line]:
    previous_limit = csv.field_size_limit(MAX_LINE)
    try:
        # A lone \r ends a row here, as in files of old systems; in quotes it is text.
        lines = text_lines(path, encoding, newline="")
        reader = csv.reader(lines, strict=True, **dialect)
        header = _header(reader, path)
        end_of_header = reader.line_num
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fault = _csv_fault(error, path, line)
                if reader.line_num > line:  # which rows it swallowed is not known
                    raise fault from None
                yield line, fault
                continue
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
                continue
            wrong = _field_count(fields, header, path, line) if fields else None
            if wrong and reader.line_num > line:
                raise wrong
            yield line, wrong
        if reader.line_num == end_of_header:
            said = "0 rows: a header line and nothing else"
            raise DataFormatError(said, "expected at least one", path=path)
    finally:
        csv.field_size_limit(previous_limit)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _csv_fault(error, path, 1) from None
    if not header:
        said = "the first line is empty"
        raise DataFormatError(said, "expected column names", path=path, line=1)
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        said = f"the column name {escape(twice[0], 40)!r} occurs twice"
        raise DataFormatError(said, "expected each once", path=path, line=1)
    return header


def _separator_fault(
    path: Path, encoding: str, delimiter: str
) -> DataFormatError | None:
    """Return what is wrong where a header of one column seems to be several."""
    header = re.sub('"[^"]*"', "", next(text_lines(path, encoding, newline=""), ""))
    if re.fullmatch(r"sep=.\s*", header, re.IGNORECASE):
        said = f"Excel's {header.strip()!r}, not column names"
        hint = "take this line out, and give --delimiter"
        return DataFormatError(said, hint=hint, path=path, line=1)
    others = [c for c in ",;\t|" if c in header and c != delimiter]
    if delimiter in header or not others:
        return None
    other = max(others, key=header.count)
    name = "tab" if other == "\t" else f"'{other}'"
    return DataFormatError(
        f"looks separated by {'tabs' if other == chr(9) else repr(other)}",
        f"expected {delimiter!r} between the column names",
        f"add --delimiter {name}"
        + ("; or rename the column if it is one" if header.count(other) == 1 else ""),
        path=path,
        line=1,
    )


def _csv_fault(error: csv.Error, path: Path, line: int) -> DataFormatError:
    said = str(error)
    if "field larger" in said:
        said = f"a field of more than {MAX_LINE:,} characters"
    elif "unexpected end" in said:
        said = "a quote that is never closed"
    hint = 'write a quote in quotes twice: ""; where quotes are text, --quoting none'
    return DataFormatError(f"not csv: {said}", hint=hint, path=path, line=line)


def _field_count(
    fields: list[str], header: list[str], path: Path, line: int
) -> DataFormatError:
    return DataFormatError(
        f"{len(fields)} fields",
        f"expected {len(header)} as in the header",
        "quote texts that hold the separator or a line break"
        + ("; a text a line is a .txt file" if len(header) < 2 else ""),
        path=path,
        line=line,
    )


def _jsonl_rows(path: Path, encoding: str) -> Iterator[Line]:
    for number, line in enumerate(text_lines(path, encoding), 1):
        text = line.rstrip("\r\n")
        yield number, _object(text, path, number) if text.strip() else None


def _object(text: str, path: Path, line: int) -> Row | DataError:
    """Return the object of a line, or what is wrong with it."""
    try:
        row = _parse_json(text)
    except ValueError as error:
        return _json_fault(error, text, path, line)
    if isinstance(row, dict):
        return row
    said = f"not a JSON object: {escape(text.strip(), 60)}"
    return DataFormatError(said, 'expected {"text": ...}', path=path, line=line)


def _json_fault(error: ValueError, text: str, path: Path, line: int) -> DataFormatError:
    if not isinstance(error, json.JSONDecodeError):
        return DataFormatError(str(error), path=path, line=line)
    around = text[max(0, error.pos - 30) : error.pos + 40].strip()
    return DataFormatError(
        f"not JSON: {error.msg} near {escape(around, 80)!r}",
        path=path,
        line=line + error.lineno - 1,
        column=error.colno,
    )


def _json_rows(path: Path, encoding: str) -> Iterator[Line]:
    """Yield the objects of a list, of {"data": [...]}, or of one a line."""
    text = whole_text(path, encoding)
    start = _after_space(text, 0)
    if text.startswith("[", start):
        yield from _items(text, start, path)
        return
    try:
        value = _parse_json(text)
    except json.JSONDecodeError as error:
        if "Extra data" not in error.msg:
            raise _json_fault(error, text, path, 1) from None
        yield from _jsonl_rows(path, encoding)  # as many tools write .json
        return
    except ValueError as error:
        raise DataFormatError(str(error), path=path) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        beside = [k for k, v in value.items() if k != "data" and _holds_more(v)]
        if beside:
            said = f"rows under 'data', and something else under {listed(beside)}"
            raise DataFormatError(said, "expected a list of objects", path=path, line=1)
        yield from _items(text, _list_of_data(text, start), path, whole=False)
        return
    if not isinstance(value, dict) or _is_table(value):
        raise DataFormatError("not a list of objects", path=path, line=1)
    yield 1, value


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


def _no_object(path: Path, number: int, line: int) -> DataFormatError:
    return DataFormatError(f"item {number} is not an object", path=path, line=line)


def _items(text: str, at: int, path: Path, whole: bool = True) -> Iterator[Line]:
    """Yield the items of a JSON list that begins at ``at``, the ``whole`` of a text."""
    line, seen, number = 1, 0, 0
    at = _after_space(text, at + 1)
    try:
        while text[at : at + 1] != "]" or number == 0:
            if number == 0 and text[at : at + 1] == "]":
                break
            line, seen = line + text.count("\n", seen, at), at
            value, at = _DECODER.raw_decode(text, at)
            number += 1
            row = value if isinstance(value, dict) else _no_object(path, number, line)
            yield line, row
            at = _after_space(text, at)
            if text[at : at + 1] == ",":
                at = _after_space(text, at + 1)
                if text[at : at + 1] == "]":
                    raise json.JSONDecodeError("an item after the comma", text, at)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if whole and (at := _after_space(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except RecursionError:
        raise DataFormatError("nested too deeply", path=path, line=line) from None
    except ValueError as error:
        first = 1 if isinstance(error, json.JSONDecodeError) else line
        raise _json_fault(error, text, path, first) from None


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


def _parse_json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _txt_rows(path: Path, encoding: str, sample_by: str) -> Iterator[Line]:
    if sample_by == "document":
        text = whole_text(path, encoding)
        yield 1, {"text": text} if text.strip() else None
        return
    for number, line in enumerate(text_lines(path, encoding), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, {"text": text} if text.strip() else None
