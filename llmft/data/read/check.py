"""Rows of a data set: each is looked at once, before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from llmft.console import warn
from llmft.data.read.columns import Columns, choose, is_missing, value_of
from llmft.data.read.labels import LabelRule
from llmft.data.read.messages import (
    COLUMNS,
    INSTRUCTION,
    MESSAGES,
    OF_INSTRUCTION,
    PROMPT_COMPLETION,
    TEXT,
    Conversations,
)
from llmft.data.read.notes import SHOWN, Notes, refusal
from llmft.data.read.text import Line, Row, is_text
from llmft.errors import (
    ConfigError,
    DataError,
    DataFormatError,
    LabelError,
    SchemaError,
    counted,
    listed,
    shorten,
)

_LONE_RETURN = re.compile("\r(?!\n)")
SAMPLE = 1000  # rows that the columns are chosen by
_BATCH = 10_000  # rows handed on at a time
_CHARACTERS = 2**24  # of text handed on at a time
_PLACE = {"file": pa.int32(), "line": pa.int64()}

Lines = Iterator[tuple[int, Line]]  # each with the place of its file
Checked = dict[str, Any]  # what is wanted of a row as text, and its file and line


@dataclass(frozen=True)
class Rows:
    """Rows from wherever they come, the same ones from the start at each reading.

    Attributes:
        name: what to call them in messages. files: the paths, by their place.
        identity: for JSON; it is another where the rows may be.
        lines: gives the rows. The ``Check`` that will look at them can be told before
            which columns there are, and says which to read.
        max_bad_rows: how many may be left out.
        counted: how many rows after a bad one are looked at, to count others; None
            tells of the first only.
        size: bytes of the files, or 0. notes: how they were found. said: by passes.
        start: file and line wanted first; what is between ``SAMPLE`` and it may miss.
    """

    name: str
    files: tuple[str, ...]
    columns: Columns
    identity: Sequence[Any]
    lines: Callable[[Check], Lines]
    max_bad_rows: int = 0
    counted: int | None = 10**6
    size: int = 0
    notes: Sequence[str] = ()
    said: set[str] = field(default_factory=set, compare=False)
    start: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.size / 2**20:,.0f} MiB of " * bool(self.size) + self.name

    def described(self) -> list[Any]:
        """Return all that decides what comes out of reading, for JSON."""
        return [self.identity, asdict(self.columns), self.max_bad_rows]

    def __iter__(self) -> Iterator[Checked]:
        return self.read(Check(self))

    def read(self, check: Check) -> Iterator[Checked]:
        """Yield the good rows of plain text; warn of what was left out.

        Raises:
            DataError: where a bad row is reached, or a file that changed.
            ConfigError: they are no plain text.
            EnvironmentFault: the hub fails.
        """
        check.plain = True
        try:
            yield from check.rows()
        except GeneratorExit:  # a pass that ends before the last row
            self._tell(check, ", as far as it was read")
            raise
        self._tell(check)

    def _tell(self, check: Check, end: str = "") -> None:
        """Warn of what a pass met, if no pass before did."""
        said = "; ".join([*check.told.said(), *check.left_out()])
        if said and said not in self.said:
            self.said.add(said)
            warn(f"{self.name}: {said}{end}")

    def column_notes(self) -> list[str]:
        """Return what the user has to know before all is read; reads the first rows."""
        check = Check(self)
        next(self.read(check), None)
        return [*self.notes, *check.told.of_files(), *check.column_notes()]


class Check:
    """Checks the rows of one reading, and knows in the end what it saw.

    With ``plain``, as of a stream, nothing but plain text is read. ``told`` is what
    readers had to note.
    """

    def __init__(self, source: Rows, plain: bool = False) -> None:
        self.source, self.columns, self.plain = source, source.columns, plain
        self.told = Notes(self.columns.strict)
        self.wanted: dict[str, str] = {}
        self._only: str | None = None  # the column, where nothing else is wanted
        self._seen: list[tuple[int, Line]] = []  # the rows so far, as long as few
        self.problem_type: str | None = None
        self.format = TEXT
        self.bad = self._good = self._others = 0
        self._empty = self._blank = self._returns = 0
        self._names, self._first_bad = dict[str, None](), list[DataError]()
        self._unlabelled = (0, "")  # how many, and the place of the first
        self._conversations = Conversations(self.told, self.columns.nul)
        rule = (self.columns.problem_type, self.columns.label_delimiter)
        self._rule = LabelRule(*rule, self.told)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows as tables of ``wanted``, ``file`` and ``line``."""
        columns, size = dict[str, list[Any]](), 0
        # By column: from_pylist takes 3 s of a GB more, and rows that stay 2 s of gc.
        for row in self.rows():
            columns = columns or {n: [] for n in (*self.wanted, *_PLACE)}
            for name, values in columns.items():
                values.append(row[name])
            size += len(row["text"])
            if len(columns["line"]) == _BATCH or size > _CHARACTERS:
                yield _table(columns)
                columns, size = {}, 0
        if columns:
            yield _table(columns)

    def rows(self) -> Iterator[Checked]:
        """Yield the good rows; ``wanted`` is known before the first of them.

        Raises:
            DataError: the first bad row, with how many others there are; or there is
                no row left; or the labels do not go together.
        """
        source, looked, keys = self.source.lines(self), 0, None
        most, counted = self.source.max_bad_rows, self.source.counted or 0
        try:
            for file, (line, row) in chain(self._first(source), source):
                if isinstance(row, dict) and row.keys() != keys:
                    keys = row.keys()
                    self._names |= dict.fromkeys(keys)
                values = self._values(file, line, row)
                if self.bad > most:
                    looked += 1
                    self._others += values is not None
                    if looked > counted:
                        break
                elif values is not None:
                    self._good += 1
                    yield values
        except DataError as error:
            error.path = error.path or self.source.name
            raise self._refusal() or error from None
        self._finish()

    def _first(self, source: Lines) -> list[tuple[int, Line]]:
        """Return the first rows, which choose the columns; count what is before."""
        while part := self._look(source):
            if any(isinstance(row, dict) for _, (_, row) in part):
                self._choose_by_rows()
                self._seen = []
                return part
            for file, (line, row) in part:
                self._values(file, line, row)
            if self.bad > self.source.max_bad_rows + (self.source.counted or 0):
                break
        return []

    def _look(self, source: Lines) -> list[tuple[int, Line]]:
        """Return the next rows, which stand in ``_seen`` while they are read."""
        self._seen = []
        self._seen.extend(islice(source, SAMPLE))
        return self._seen

    def choose(
        self, names: list[str], strings: list[str] | None, rows: Sequence[Row]
    ) -> list[str]:
        """Choose the columns of data out of all, and of those that hold text.

        Some ``rows`` show what is in the latter; where there are none, ``strings``
        None, the first rows that are read will tell.

        Raises:
            SchemaError: as ``columns.choose``; or another file has not these columns.
            ConfigError: they are no plain text, and have to be.
        """
        self._choose_by_rows()  # of the files before
        if self.wanted and {*names} != {*self._names}:
            labels = self.columns.labels if "label" in self.wanted else ()
            if not {*self.wanted.values(), *self.columns.carried, *labels} <= {*names}:
                raise SchemaError(
                    f"columns are {listed(names)}",
                    f"expected those of {self.source.files[0]}: {listed(self._names)}",
                    "read files with other columns by themselves",
                )
            self.told.add("columns that are not used differ")
            self._names |= dict.fromkeys(names)
        if not self.wanted and strings is not None:
            self._choose(names, strings, rows)
        return [n for n in dict.fromkeys(self._read()) if n in names]

    def _choose(
        self, names: list[str], strings: list[str], rows: Sequence[Row]
    ) -> None:
        self._names = dict.fromkeys(names)
        self.format, self.wanted = choose(names, strings, self.columns, rows)
        bare = [*self.wanted] == ["text"] and self.format == TEXT
        if bare and not (self.columns.carried or self.columns.needs_text):
            self._only = self.wanted["text"]
        if self.plain and self.format != TEXT:
            said = f"streaming reads plain text, and the data are {self.format}"
            raise ConfigError(f"{said}: leave --streaming out", path=self.source.name)

    @property
    def instructs(self) -> bool:
        """Whether rows are instructions, each to become a conversation."""
        chosen = self.wanted.get("text") == INSTRUCTION and not self.columns.messages
        return chosen and self.format == MESSAGES

    def _read(self) -> list[str]:
        """Return the columns that are read."""
        more = [n for n in OF_INSTRUCTION if self.instructs and n in self._names]
        labels = self.columns.labels if "label" in self.wanted else ()
        return [*self.wanted.values(), *labels, *more, *self.columns.carried]

    def _choose_by_rows(self) -> None:
        """Choose by the rows that were read so far, where that is to be done."""
        rows = [row for _, (_, row) in self._seen if isinstance(row, dict)]
        if self.wanted or not rows:
            return
        first: Row = {}  # the first value of each column that some row has
        for row in rows:
            if row.keys() != first.keys() or None in first.values():
                first |= {n: v for n, v in row.items() if first.get(n) is None}
        strings = [n for n, value in first.items() if isinstance(value, str)]
        if self.columns.chat:  # one list is enough: the others are to blame
            seen = ((n, [type(row.get(n)) for row in rows]) for n in strings)
            strings = [n for n, types in seen if list not in types]
        self._choose([*first], strings, rows)

    def _values(
        self, file: int, line: int, row: Row | DataError | None
    ) -> Checked | None:
        """Return what to keep of a row, None where that is nothing; count why."""
        if row is None:
            self._empty += 1
            return None
        try:
            if isinstance(row, dict):
                return self._kept(file, line, row)
            error = row
        except DataError as fault:
            if fault.unusual:
                raise
            error = fault
        error.path, error.line = self.source.files[file], line
        self.bad += 1
        if self.bad <= SHOWN:
            self._first_bad.append(error)
        return None

    def _kept(self, file: int, line: int, row: Row) -> Checked:
        text = row.get(self._only) if self._only else None
        # What needs no second look comes first: a tenth of the time of reading.
        if type(text) is str and is_text(text) and not ("\r" in text or "\0" in text):
            return {"text": text, "file": file, "line": line}
        carried = {name: row.get(name) for name in self.columns.carried}
        values: Checked = {"carried": carried} if carried else {}
        place = f"{self.source.files[file]}:{line}"
        for key, column in self.wanted.items():
            if key == "label" and self.columns.label_optional:
                given = [row.get(n) for n in self.columns.labels or (column,)]
                given = [None if x != x else x for x in given]  # NaN, of pandas
                blank = next((x for x in given if x not in (None, "")), given[0])
                if blank == "" and self.columns.label_delimiter is not None:
                    self._blank += 1  # no label among several, unless all are so
                elif blank in (None, "") or is_missing(blank, self.columns):
                    count, first = self._unlabelled
                    self._unlabelled = count + 1, first or place
                    values[key] = None
                    continue
            if key == "text" and self.format == MESSAGES and column in row:
                told = self._conversations
                turns = told.of_instruction(row) if self.instructs else None
                values[key] = turns or told.store(row[column], column, place)
                continue
            value = value_of(key, column, row, self.columns, self._rule, place)
            learnt = key == "text_pair" and self.format == PROMPT_COMPLETION
            if learnt and not value.strip():
                said = f"{shorten(column)} is empty"
                raise DataFormatError(said, "expected a text to learn")
            values[key] = value
        if "\r" in values["text"] and _LONE_RETURN.search(values["text"]):
            self._returns += 1
        if "\0" in values["text"]:  # which was allowed
            self.told.count("texts hold NUL characters", place)
        values["file"], values["line"] = file, line
        return values

    def _refusal(self) -> DataError | None:
        """Return the first bad row as an error, where there are too many."""
        if self.bad <= self.source.max_bad_rows:
            return None
        if self.source.counted is None:
            return self._first_bad[0]
        most: int | str | None = None
        if self._first_bad[0].line is not None and self._good + self._others:
            most = self.bad if self.source.counted else "N"
        return refusal(self._first_bad, self.bad, most)

    def _finish(self) -> None:
        if error := self._refusal():
            raise error
        if not self._good:
            said = f"0 rows left after {self.bad:,} bad ones" if self.bad else "0 rows"
            raise DataError(said, "expected at least one", path=self.source.name)
        if "label" not in self.wanted:
            return
        count, first = self._unlabelled
        if count + self._blank == self._good:
            self.problem_type = None
        else:
            if count:
                said = f"{count:,} of {self._good:,} rows have no label"
                if not self.columns.some_labels:
                    raise LabelError(
                        f"{said}, the first at {first}",
                        "expected one in every row, or none",
                        "give them one, or take the column out",
                    )
                self.told.tell(f"{said} ({first}): predicted, not measured")
            self.problem_type = self._rule.decide(self.source.name)

    def notes(self) -> list[str]:
        """Return what the user has to know of the rows, after the last of them."""
        return [*self.told.said(), *self.column_notes(), *self.left_out()]

    def column_notes(self) -> list[str]:
        """Return what the user has to know of the columns, after the first row."""
        wanted, notes = self.wanted, []
        if self.format != TEXT:
            notes += [f"format = {self.format}", *self._conversations.notes()]
        named = {COLUMNS[self.format].get(k, k): v for k, v in wanted.items()}
        used = [f"{k} = {v!r}" for k, v in named.items() if k != v]
        if len(self.columns.labels) > 1 and "label" in wanted:
            notes.append(f"labels are the columns {listed(self.columns.labels)}")
        if used and not self.instructs:  # the notes of conversations say it
            notes.append(", ".join(used))
        if unused := [n for n in self._names if n not in self._read()]:
            notes.append(f"columns not used: {listed(unused)}")
        if self._rule.undelimited:
            notes.append(f"no label holds the delimiter {self._rule.delimiter!r}")
        label, given = wanted.get("label"), self.columns.label
        if label is not None and self.problem_type is None:
            notes.append(f"{label!r} is empty in all rows")
        elif self.columns.label_optional and given not in (None, *self._names):
            notes.append(f"there is no column {given!r}")
        return notes

    def left_out(self) -> list[str]:
        """Return how many lines and rows were not used, and odd line ends."""
        first = ", ".join(f"{e.path}:{e.line}" for e in self._first_bad[:3])
        counts = {
            "empty lines passed over": self._empty,
            "texts hold lone carriage returns": self._returns,
            f"bad rows left out ({first})": self.bad,
        }
        return [counted(count, what) for what, count in counts.items() if count]


def _table(columns: dict[str, list[Any]]) -> pa.RecordBatch:
    types = [_PLACE.get(name, pa.large_string()) for name in columns]
    made = [pa.array(v, t) for v, t in zip(columns.values(), types, strict=True)]
    return pa.record_batch(made, [*columns])
