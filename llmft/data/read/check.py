"""Every row of a data set is looked at once, before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

import pyarrow as pa

from llmft.data.read.columns import Columns, choose, value_of
from llmft.data.read.labels import LabelRule
from llmft.data.read.messages import (
    COLUMNS,
    MESSAGES,
    PROMPT_COMPLETION,
    TEXT,
    Conversations,
)
from llmft.data.read.text import Line, Row
from llmft.errors import (
    ConfigError,
    DataError,
    DataFormatError,
    LabelError,
    SchemaError,
    listed,
    shorten,
)

_LONE_RETURN = re.compile("\r(?!\n)")
_SAMPLE = 1000  # rows that the columns are chosen by
_BATCH = 10_000  # rows handed on at a time
_CHARACTERS = 2**24  # of text handed on at a time
_SHOWN = 4  # bad rows that a message names

T = TypeVar("T")
Checked = tuple[int, int, dict[str, str | None]]  # file, line, values


@dataclass
class Check:
    """Checks the rows of a data set, and knows in the end what it saw.

    Args:
        name: the data set, for messages. files: their names, by their place.
        columns: which to read. max_bad_rows: how many may be left out.
        counted: how many rows after a bad one are looked at, to count others; None
            tells of the first only.

    With ``plain``, as of a stream, nothing but plain text is read. ``encodings`` is
    told by the reader what is not UTF-8.
    """

    name: str
    files: Sequence[str]
    columns: Columns
    max_bad_rows: int = 0
    counted: int | None = 10**6
    plain: bool = False
    encodings: list[str] = field(default_factory=list)
    wanted: dict[str, str] = field(default_factory=dict)
    problem_type: str | None = None
    format: str = TEXT
    _names: list[str] = field(default_factory=list)
    bad: int = 0
    _first_bad: list[DataError] = field(default_factory=list)
    _empty: int = 0
    _returns: int = 0
    _unlabelled: tuple[int, str] = (0, "")
    _blank: int = 0
    _good: int = 0
    _conversations: Conversations = field(default_factory=Conversations)

    def __post_init__(self) -> None:
        self._rule = LabelRule(self.columns.problem_type, self.columns.label_delimiter)

    def batches(self, rows: Iterable[tuple[int, Line]]) -> Iterator[pa.RecordBatch]:
        """Yield the rows as tables of ``wanted``, ``file`` and ``line``."""
        for part in in_parts(self.rows(rows), _length, _BATCH, _CHARACTERS):
            schema = pa.schema([(key, pa.large_string()) for key in self.wanted])
            schema = schema.append(pa.field("file", pa.int32()))
            schema = schema.append(pa.field("line", pa.int64()))
            columns: list[list[Any]]
            columns = [[values[key] for _, _, values in part] for key in self.wanted]
            columns += [[file for file, _, _ in part], [line for _, line, _ in part]]
            yield pa.record_batch(
                [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)],
                schema,
            )

    def rows(self, rows: Iterable[tuple[int, Line]]) -> Iterator[Checked]:
        """Yield the good rows; ``wanted`` is known before the first of them.

        Raises:
            DataError: the first bad row, with how many others there are; or there is
                no row left; or the labels do not go together.
        """
        source, looked, keys = iter(rows), 0, None
        try:
            for file, (line, row) in chain(self._first(source), source):
                if isinstance(row, dict) and row.keys() != keys:
                    keys = row.keys()
                    self._names += [name for name in keys if name not in self._names]
                values = self._values(file, line, row)
                if self.bad > self.max_bad_rows:
                    looked += 1
                    if looked > (self.counted or 0):
                        break
                elif values is not None:
                    self._good += 1
                    yield file, line, values
        except DataError as error:
            raise self._refusal() or error from None
        self._finish()

    def _first(self, source: Iterator[tuple[int, Line]]) -> list[tuple[int, Line]]:
        """Return the first rows from which the columns are chosen.

        What comes before them, lines that are empty and rows that are bad, is counted.
        """
        while part := list(islice(source, _SAMPLE)):
            found = [row for _, (_, row) in part if isinstance(row, dict)]
            if found:
                if not self.wanted:
                    self._choose_by(found)
                return part
            for file, (line, row) in part:
                self._values(file, line, row)
            if self.bad > self.max_bad_rows + (self.counted or 0):
                break
        return []

    def choose(self, names: list[str], strings: list[str]) -> list[str]:
        """Choose the columns of data whose names are known; return which to read.

        Args:
            names, strings: all columns, and those that hold text.

        Raises:
            SchemaError: as ``columns.choose``; or another file has other columns.
            ConfigError: they are no plain text, and have to be.
        """
        if self.wanted and {*names} != {*self._names}:
            raise SchemaError(
                f"columns are {listed(names)}",
                f"expected those of {self.files[0]}: {listed(self._names)}",
                "read files with other columns by themselves",
            )
        if not self.wanted:
            self._names = [*names]
            chosen = choose(names, strings, self.columns, self.name)
            self.format, self.wanted = chosen
            if self.plain and self.format != TEXT:
                said = f"the data are {self.format}: leave --streaming out"
                said = f"streaming reads plain text, and {said}"
                raise ConfigError(said, path=self.name)
        return self.to_read()

    def to_read(self) -> list[str]:
        """Return the names of the wanted columns, none before they are chosen."""
        return [*dict.fromkeys(self.wanted.values())]

    def _choose_by(self, rows: Sequence[Row]) -> None:
        first: Row = {}  # the first value of each column that some row has
        for row in rows:
            if row.keys() != first.keys() or None in first.values():
                first |= {n: v for n, v in row.items() if first.get(n) is None}
        strings = [n for n, value in first.items() if isinstance(value, str)]
        if self.columns.chat:  # one list is enough: the others are to blame
            seen = ((n, [type(row.get(n)) for row in rows]) for n in strings)
            strings = [n for n, types in seen if list not in types]
        self.choose([*first], strings)

    def _values(
        self, file: int, line: int, row: Row | DataError | None
    ) -> dict[str, str | None] | None:
        """Return what to keep of a row, None where that is nothing; count why."""
        if row is None:
            self._empty += 1
            return None
        if isinstance(row, DataError):
            self._leave_out(row)
            return None
        values: dict[str, str | None] = {}
        place = {"path": self.files[file], "line": line}
        for key, column in self.wanted.items():
            if key == "label" and self.columns.label_optional:
                blank = row.get(column)
                if blank == "" and self.columns.label_delimiter is not None:
                    self._blank += 1  # no label among several, unless all are so
                elif blank in (None, ""):
                    count, first = self._unlabelled
                    self._unlabelled = count + 1, first or f"{self.files[file]}:{line}"
                    values[key] = None
                    continue
            value = self._value(key, column, row, place)
            if isinstance(value, DataError):
                self._leave_out(value)
                return None
            values[key] = value
        text = values["text"]
        if text is not None and "\r" in text and _LONE_RETURN.search(text):
            self._returns += 1
        return values

    def _leave_out(self, error: DataError) -> None:
        self.bad += 1
        if self.bad <= _SHOWN:
            self._first_bad.append(error)

    def _value(
        self, key: str, column: str, row: Row, place: dict[str, Any]
    ) -> str | DataError:
        if key == "text" and self.format == MESSAGES and column in row:
            return self._conversations.store(row[column], column, place)
        value = value_of(key, column, row, self.columns, self._rule, place)
        learnt = key == "text_pair" and self.format == PROMPT_COMPLETION
        if learnt and isinstance(value, str) and not value.strip():
            said = f"{shorten(column)} is empty"
            return DataFormatError(said, "expected a text to learn", **place)
        return value

    def _refusal(self) -> DataError | None:
        """Return the first bad row as an error, where there are too many."""
        if self.bad <= self.max_bad_rows:
            return None
        error, count = self._first_bad[0], self.bad
        if self.counted is None:
            return error
        others = ""
        if count > 1:
            lines = [f"{e.path}:{e.line}" for e in self._first_bad[1:]]
            more = ", ..." if count > _SHOWN else ""
            others = f"{count:,} rows are bad ({', '.join(lines)}{more})"
            error.expected = "; ".join(filter(None, [error.expected, others]))
        if error.line is not None:
            most = count if self.counted else "N"
            leave = f"--max_bad_rows {most} leaves bad rows out"
            error.hint = "; or ".join(filter(None, [error.hint, leave]))
        error.args = (str(error),)
        return error

    def _finish(self) -> None:
        if error := self._refusal():
            raise error
        if not self._good:
            left = f"0 rows left after {self.bad:,} bad ones" if self.bad else ""
            raise DataError(left or "0 rows", "expected at least one", path=self.name)
        if "label" not in self.wanted:
            return
        count, first = self._unlabelled
        if count + self._blank == self._good:
            self.problem_type = None
        elif count:
            raise LabelError(
                f"{count:,} of {self._good:,} rows have no label, the first at {first}",
                "expected one in every row, or none",
                "give them one, or take the column out",
            )
        else:
            self.problem_type = self._rule.decide(self.name)

    def notes(self) -> list[str]:
        """Return what the user has to know of the rows, after the last of them."""
        return [*self.encodings, *self.column_notes(), *self.left_out()]

    def column_notes(self) -> list[str]:
        """Return what the user has to know of the columns, after the first row."""
        wanted, notes = dict(self.wanted), []
        if self.format != TEXT:
            notes += [f"format = {self.format}", *self._conversations.notes()]
        named = {COLUMNS[self.format].get(k, k): v for k, v in wanted.items()}
        used = [f"{k} = {v!r}" for k, v in named.items() if k != v]
        if used:
            notes.append(", ".join(used))
        unused = [n for n in self._names if n not in wanted.values()]
        if unused:
            notes.append(f"columns not used: {listed(unused)}")
        if self._rule.undelimited:
            said = f"no label holds the delimiter {self._rule.delimiter!r}"
            notes.append(said)
        label, given = wanted.get("label"), self.columns.label
        if label is not None and self.problem_type is None:
            notes.append(f"{label!r} is empty in all rows")
        elif self.columns.label_optional and given not in (None, *self._names):
            notes.append(f"there is no column {given!r}")
        return notes

    def left_out(self) -> list[str]:
        """Return how many lines and rows were not used, and odd line ends."""
        notes = []
        if self._empty:
            notes.append(f"{self._empty:,} empty lines passed over")
        if self._returns:
            notes.append(f"{self._returns:,} texts hold lone carriage returns")
        if self.bad:
            first = [f"{e.path}:{e.line}" for e in self._first_bad[:3]]
            notes.append(f"{self.bad:,} bad rows left out ({', '.join(first)})")
        return notes


def _length(row: Checked) -> int:
    return len(row[2]["text"] or "")


def in_parts(
    items: Iterable[T], length: Callable[[T], int], most: int, characters: int
) -> Iterator[list[T]]:
    """Yield items in lists of at most ``most``, and of about so many characters."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += length(item)
        if len(part) == most or size > characters:
            yield part
            part, size = [], 0
    if part:
        yield part
