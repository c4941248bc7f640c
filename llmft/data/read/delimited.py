"""csv and tsv: rows with the number of the line they start on."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.data.read.text import (
    MAX_LINE,
    Choose,
    Line,
    choose_encoding,
    require_decodable,
    text_lines,
)
from llmft.errors import DataFormatError, EncodingError, escape


def csv_encoding(path: Path, encoding: str | None, delimiter: str) -> tuple[str, str]:
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


def csv_rows(
    path: Path, encoding: str, dialect: dict[str, Any], choose: Choose
) -> Iterator[Line]:
    """Yield the rows of a file whose first line has the names of the columns.

    A row that is malformed comes as the error that it is, to be counted; what leaves
    the rest of the file in doubt is raised.
    """
    previous_limit = csv.field_size_limit(MAX_LINE)
    try:
        # A lone \r ends a row here, as in files of old systems; in quotes it is text.
        lines = text_lines(path, encoding, newline="")
        reader = csv.reader(lines, strict=True, **dialect)
        header = _header(reader)
        choose(header, header)
        end_of_header = reader.line_num
        expected = f"expected {len(header)} as in the header"
        hint = "quote texts that hold the separator or a line break"
        hint += "; a text a line is a .txt file" if len(header) < 2 else ""
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fault = _csv_fault(error, line)
                if reader.line_num > line:  # which rows it swallowed is not known
                    raise fault from None
                yield line, fault
                continue
            if len(fields) == len(header):
                yield line, dict(zip(header, fields, strict=True))
                continue
            said = f"{len(fields)} fields"
            wrong = fields and DataFormatError(said, expected, hint, line=line)
            if wrong and reader.line_num > line:
                raise wrong
            yield line, wrong or None
        if reader.line_num == end_of_header:
            said = "0 rows: a header line and nothing else"
            raise DataFormatError(said, "expected at least one")
    finally:
        csv.field_size_limit(previous_limit)


def _header(reader: Any) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _csv_fault(error, 1) from None
    if not header:
        raise DataFormatError(
            "the first line is empty", "expected column names", line=1
        )
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        said = f"the column name {escape(twice[0], 40)!r} occurs twice"
        raise DataFormatError(said, "expected each once", line=1)
    return header


def _separator_fault(
    path: Path, encoding: str, delimiter: str
) -> DataFormatError | None:
    """Return what is wrong where a header of one column seems to be several."""
    header = re.sub('"[^"]*"', "", next(text_lines(path, encoding, newline=""), ""))
    if re.fullmatch(r"sep=.\s*", header, re.IGNORECASE):
        said = f"Excel's {header.strip()!r}, not column names"
        hint = "take this line out, and give --delimiter"
        return DataFormatError(said, hint=hint, line=1)
    others = [c for c in ",;\t|" if c in header and c != delimiter]
    if delimiter in header or not others:
        return None
    other = max(others, key=header.count)
    name = "tab" if other == "\t" else repr(other)
    hint = f"add --delimiter {name}"
    if header.count(other) == 1:
        hint += "; or rename the column if it is one"
    said = f"looks separated by {'tabs' if name == 'tab' else name}"
    expected = f"expected {delimiter!r} between the column names"
    return DataFormatError(said, expected, hint, line=1)


def _csv_fault(error: csv.Error, line: int) -> DataFormatError:
    said = str(error)
    if "field larger" in said:
        said = f"a field of more than {MAX_LINE:,} characters"
    elif "unexpected end" in said:
        said = "a quote that is never closed"
    hint = 'write a quote in quotes twice: ""; where quotes are text, --quoting none'
    return DataFormatError(f"not csv: {said}", hint=hint, line=line)
