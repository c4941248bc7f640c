"""csv and tsv: rows with the number of the line they start on."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmft.console import warn
from llmft.data.read.notes import Notes
from llmft.data.read.tables import Unreadable
from llmft.data.read.text import (
    MAX_LINE,
    TOO_LONG,
    Choose,
    Line,
    Row,
    require_decodable,
    text_lines,
    too_long,
)
from llmft.errors import DataFormatError, escape, listed

_HEAD = 20  # lines that a separator is told by, and rows that a header is compared to
_ROWS = 3  # lines in quotes that look like rows
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_SEP = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # the first line of an Excel export


@dataclass(frozen=True)
class Dialect:
    """How fields and names of a csv are written; ``options`` are for ``csv.reader``.

    Attributes:
        given: the delimiter is the user's word, not the default.
        header: the first line has the names of the columns, where there are no
            ``names``. skip: lines above it.
    """

    options: dict[str, Any]
    given: bool = False
    header: bool = True
    names: Sequence[str] = ()
    skip: int = 0


def csv_rows(
    path: Path, encoding: str, dialect: Dialect, choose: Choose, notes: Notes
) -> Iterator[Line]:
    """Yield the rows of a file.

    A row that is malformed comes as the error that it is, to be counted; what leaves
    the rest of the file in doubt is raised.
    """
    dialect = _separated(path, encoding, dialect, notes)
    previous_limit = csv.field_size_limit(MAX_LINE)
    try:
        if not (dialect.header or dialect.names):
            lines = islice(text_lines(path, encoding, newline=""), dialect.skip, None)
            first = next(csv.reader(lines, **dialect.options), [])
            names = [f"column_{i}" for i in range(1, len(first) + 1)]
            dialect = replace(dialect, names=names)
        # A lone \r ends a row here, as in files of old systems; in quotes it is text.
        lines = islice(text_lines(path, encoding, newline=""), dialect.skip, None)
        reader = csv.reader(lines, strict=True, **dialect.options)
        table = _Table(_header(reader, dialect), dialect, notes)
        choose(table.names, None, ())
        end_of_header = reader.line_num
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fault = _csv_fault(error, line + dialect.skip)
                if reader.line_num > line:  # which rows it swallowed is not known
                    raise fault from None
                yield line + dialect.skip, fault
                continue
            last, line = reader.line_num + dialect.skip, line + dialect.skip
            row = table.row(fields, line, last)
            if last > line and isinstance(row, DataFormatError):
                raise row
            if row or not fields:
                yield line, row or None
        if reader.line_num == end_of_header:
            said = "0 rows: a header line and nothing else"
            raise DataFormatError(said, "expected at least one")
    finally:
        csv.field_size_limit(previous_limit)


@dataclass
class _Table:
    """The columns of a file, and what became of its rows."""

    header: list[str]
    dialect: Dialect
    notes: Notes
    names: list[str] = field(default_factory=list)
    _looked: int = 0

    def __post_init__(self) -> None:
        counts = Counter(self.header)
        self.names = [name for name in counts if name.strip()]
        self._twice = [n for n in self.names if counts[n] > 1]
        self._width = max(i + 1 for i, n in enumerate(self.header) if n.strip())
        self._plain = self.names == self.header[: self._width]
        if bare := len([n for n in self.header if not n.strip()]):
            what = "a column" if bare == 1 else f"{bare:,} columns"
            self.notes.add(f"{what} without a name not used")
        if self._twice:
            self.notes.add(f"columns named twice: {listed(self._twice)}")
        if self.dialect.names:
            self._looked = _HEAD
            return
        odd = [n for n in self.names if _NUMBER.fullmatch(n) or len(n.split()) > 7]
        if odd:
            self._is_data(odd[0])

    def row(
        self, fields: list[str], line: int, last: int
    ) -> Row | DataFormatError | None:
        """Return the row of some fields, None where they hold nothing."""
        width, notes = self._width, self.notes
        if fields and [fields[0].lstrip("\ufeff"), *fields[1:]] == self.header:
            notes.add("rows repeat the column names, passed over", line)
            return None
        if len(fields) > width:
            fields = self._cut(fields, line)
        if self._looked < _HEAD:
            self._looked += 1
            again = [n for n, f in zip(self.header, fields, strict=False) if n == f]
            if again and any(again) and fields != self.header[:width]:
                self._is_data(max(again))
        if len(fields) != width:
            if fields == [TOO_LONG]:
                return too_long()
            if not fields:
                return None
            said = f"{len(fields)} fields"
            of = "names that are given" if self.dialect.names else "header"
            expected = f"expected {len(self.header)} as in the {of}"
            hint = "quote texts that hold the separator or a line break"
            hint += "; a text a line is a .txt file" if len(self.header) < 2 else ""
            return DataFormatError(said, expected, hint, line=line)
        if width > 1 and not any(fields):
            notes.add("rows of empty fields passed over", line)
            return None
        if last > line:
            self._spans(fields, line)
        if self._plain:
            return dict(zip(self.names, fields, strict=True))
        row: Row = {
            n: f for n, f in zip(self.header, fields, strict=False) if n.strip()
        }
        return row | {
            n: Unreadable("the header has its name twice") for n in self._twice
        }

    def _cut(self, fields: list[str], line: int) -> list[str]:
        """Return fields without those beyond the last column with a name."""
        more, cut = fields[self._width :], fields[: self._width]
        if not any(more):
            if len(fields) > len(self.header):
                self.notes.add("rows end in empty fields, left out", line)
            return cut
        if len(fields) > len(self.header):
            return fields
        self.notes.add("rows hold something in columns without a name", line)
        return cut

    def _is_data(self, value: str) -> None:
        """Warn that the first line seems to be no header."""
        self._looked = _HEAD
        what = "first line taken for column names, though it looks like data"
        self.notes.add(f"{what}: {escape(repr(value), 40)}")
        warn(f"{self.notes.file}: {what}; --column_names text label gives names")

    def _spans(self, fields: list[str], line: int) -> None:
        """Count fields of several lines, and warn where these look like rows."""
        self.notes.count("rows with line breaks in quotes", line)
        between = re.escape(self.dialect.options["delimiter"])
        if not between.isspace():  # a comma of prose, or of 1,000, separates nothing
            between += r"(?!\s|(?<=\d.)\d{3}\b)"
        columns = len(self.header) - 1
        for i, value in enumerate(fields):
            parts = re.split("\r\n|\n|\r", value)
            counts = [len(re.findall(between, part)) for part in parts]
            middle = [columns] * (len(parts) - 2)
            rows = counts[1:-1].count(columns)
            all_rows = len(parts) > 1 and counts == [columns - i, *middle, i]
            if columns and (all_rows or rows >= _ROWS):
                what = "quoted texts look like several rows behind a stray quote"
                self.notes.add(what, line)
                hint = "where quotes are text, --quoting none"
                warn(f"{self.notes.file}:{line}: {what}; {hint}")


def _header(reader: Any, dialect: Dialect) -> list[str]:
    if dialect.names:
        return [*dialect.names]
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise _csv_fault(error, 1) from None
    if header == [TOO_LONG]:
        raise too_long()
    if not any(name.strip() for name in header):
        raise DataFormatError(
            "the first line is empty", "expected column names", line=1 + dialect.skip
        )
    return header


def _separated(path: Path, encoding: str, dialect: Dialect, notes: Notes) -> Dialect:
    """Return the dialect by the first lines; raise where it cannot be told."""
    lines = [*islice(text_lines(path, encoding, newline=""), _HEAD)]
    delimiter = dialect.options["delimiter"]
    if sep := _SEP.fullmatch(lines[0] if lines else ""):
        notes.add(f"Excel's {lines[0].strip()!r} above the column names")
        options = {} if dialect.given else {"delimiter": sep[1]}
        return replace(dialect, options=dialect.options | options, skip=1)
    header = re.sub('"[^"]*"', "", lines[0] if lines else "")
    others = [c for c in ",;\t|" if c in header and c != delimiter]
    if delimiter in header or not others or dialect.names:
        return dialect
    other = max(others, key=header.count)
    name = "tab" if other == "\t" else repr(other)
    options = dialect.options | {"delimiter": other}
    said = f"separated by {'tabs' if name == 'tab' else name}"
    if not dialect.given and other != "," and _alike(lines, options):
        notes.add(said)
        return replace(dialect, options=options)
    hint = f"add --delimiter {name}"
    if header.count(other) == 1:
        hint += "; or rename the column if it is one"
    expected = f"expected {delimiter!r} between the column names"
    require_decodable(path, encoding)
    raise DataFormatError(f"looks {said}", expected, hint, line=1)


def _alike(lines: list[str], options: dict[str, Any]) -> bool:
    """Whether the rows of some lines have as many fields as the header."""
    try:
        counts = [len(row) for row in csv.reader(lines, **options) if row]
    except csv.Error:
        return False
    whole = counts[:-1] if len(lines) == _HEAD else counts  # the last may be cut
    return len(whole) > 1 and {*whole} == {counts[0]}


def _csv_fault(error: csv.Error, line: int) -> DataFormatError:
    said = str(error)
    if "field larger" in said:
        said = f"a field of more than {MAX_LINE:,} characters"
    elif "unexpected end" in said:
        said = "a quote that is never closed"
    hint = 'write a quote in quotes twice: ""; where quotes are text, --quoting none'
    return DataFormatError(f"not csv: {said}", hint=hint, line=line)
