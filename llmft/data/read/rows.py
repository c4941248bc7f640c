"""Rows that are read on the way, again in every epoch: of files, and of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetsError

from llmft.console import warn
from llmft.data.read.check import Check, Checked
from llmft.data.read.columns import Columns, choose
from llmft.data.read.delimited import Line, Reading
from llmft.data.read.files import is_pipe, named_files
from llmft.data.read.messages import TEXT
from llmft.data.read.store import STRINGS, file_rows, version_of
from llmft.errors import ConfigError, DataError, EnvironmentFault
from llmft.sources.hub import MISSES, brief

_BATCH = 1000  # rows of the hub at a time
# What datasets raises on the way, of files that are not what it takes them for.
_FAULTS = (ValueError, OSError, EOFError, RuntimeError, ArithmeticError)


class Rows(Protocol):
    """What a stream is made of; ``str`` says how much it is."""

    @property
    def name(self) -> str:
        """What to call them in messages."""

    @property
    def files(self) -> tuple[str, ...]:
        """The paths, by their place."""

    @property
    def identity(self) -> list[Any]:
        """What is another where the rows may be."""

    def check(self) -> Check:
        """Return what looks at the rows of a pass."""

    def read(self, check: Check) -> Iterator[Checked]:
        """Yield the good rows from the start: the place of the file, line and values.

        Raises DataError where a bad one is reached.
        """

    def __iter__(self) -> Iterator[Checked]:
        """Do what ``read`` does, with a ``check`` of its own."""


def column_notes(rows: Rows) -> list[str]:
    """Return what the user has to know of the columns; reads the first row."""
    check = rows.check()
    next(rows.read(check), None)
    return check.column_notes()


@dataclass(frozen=True)
class FileRows:
    """The rows of the files of a name; see ``Rows``.

    Reading raises DataError where a file is not what it was when this was made.

    Raises:
        ConfigError: it is a pipe, which cannot be read again.
    """

    name: str
    columns: Columns
    reading: Reading
    versions: list[tuple[str, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", self._now())

    def _now(self) -> list[tuple[str, int, int]]:
        """Return path, size and time of change of each file."""
        if is_pipe(self.name):
            said = "a pipe cannot be read again, as streaming does in every epoch"
            raise ConfigError(f"{said}; give a file", path=self.name)
        with named_files(self.name, self.reading) as (files, _, _):
            return [(str(file), *version_of(file)) for file in files]

    def __str__(self) -> str:
        size = sum(size for _, size, _ in self.versions) / 2**20
        return f"{size:,.0f} MiB of {self.name}"

    @property
    def files(self) -> tuple[str, ...]:
        """See ``Rows``."""
        return tuple(path for path, _, _ in self.versions)

    @property
    def identity(self) -> list[Any]:
        """See ``Rows``."""
        return [self.versions, asdict(self.reading), asdict(self.columns)]

    def check(self) -> Check:
        """See ``Rows``."""
        most = self.reading.max_bad_rows
        return Check(self.name, self.files, self.columns, most)

    def __iter__(self) -> Iterator[Checked]:
        return self.read(self.check())

    def read(self, check: Check) -> Iterator[Checked]:
        """See ``Rows``."""
        now = self._now()
        if now != self.versions:
            changed = sorted({v[0] for v in {*now} ^ {*self.versions}})
            said = "the file changed since the run began"
            raise DataError(said, hint="start again", path=changed[0])
        with named_files(self.name, self.reading) as (files, _, unit):
            versions = [(size, time) for _, size, time in now]
            notes: list[str] = []
            rows = file_rows(files, self.files, versions, self.reading, unit, notes)
            with _told(self.name, check, notes):
                for row in check.rows(rows):
                    _require_text(check.format, self.name)
                    yield row


@dataclass(frozen=True)
class HubRows:
    """The rows of a split of a hub data set, counted from 1; see ``Rows``.

    Args:
        data: the split. version: of the data set on the hub.

    Reading raises EnvironmentFault where the hub fails.
    """

    name: str
    columns: Columns
    data: Dataset | IterableDataset
    version: str
    max_bad_rows: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def files(self) -> tuple[str, ...]:
        """The name, in place of a path."""
        return (self.name,)

    @property
    def identity(self) -> list[Any]:
        """See ``Rows``."""
        return [self.name, self.version, asdict(self.columns), self.max_bad_rows]

    def check(self) -> Check:
        """See ``Rows``. Rows after a bad one would have to be fetched to be counted."""
        return Check(self.name, self.files, self.columns, self.max_bad_rows, counted=0)

    def __iter__(self) -> Iterator[Checked]:
        return self.read(self.check())

    def read(self, check: Check) -> Iterator[Checked]:
        """See ``Rows``."""
        with _told(self.name, check):
            yield from check.rows((0, line) for line in self._lines(check))

    def _lines(self, check: Check) -> Iterator[Line]:
        """Yield the rows, of the wanted columns only."""
        number, wanted = 0, list[str]()
        for batch in self._batches():
            if not wanted:
                wanted = self._choose(batch)
                check.columns = replace(self.columns, text=wanted[0])
            for cells in zip(*(batch[name] for name in wanted), strict=True):
                number += 1
                yield number, dict(zip(wanted, cells, strict=True))

    def _choose(self, batch: dict[str, list[Any]]) -> list[str]:
        """Return the columns to read, by the kinds that the hub says, or by a batch."""
        features = self.data.features or {}
        names, strings = list(features or batch), []
        for name in names:
            if name in features:
                texts = getattr(features[name], "dtype", "") in STRINGS
            else:
                texts = any(isinstance(cell, str) for cell in batch[name])
            strings += [name] * texts
        found, wanted = choose(names, strings, self.columns, self.name)
        _require_text(found, self.name)
        return [*wanted.values()]

    def _batches(self) -> Iterator[dict[str, list[Any]]]:
        # Not as Arrow: datasets joins tables of JSON whose types differ, and fails.
        read = 0
        try:
            for batch in self.data.iter(_BATCH):
                yield batch
                read += len(next(iter(batch.values())))
        except MISSES as error:
            raise EnvironmentFault(
                f"the hub failed after {read:,} rows ({brief(error)})",
                hint="try again, or --resume_from_checkpoint",
                path=self.name,
            ) from error
        except (*_FAULTS, pa.ArrowException, DatasetsError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # a full disk, say
            said = f"cannot be read after {read:,} rows: {brief(error)}"
            raise DataError(said, path=self.name) from error


@contextmanager
def _told(name: str, check: Check, notes: Sequence[str] = ()) -> Iterator[None]:
    """Warn of what was left out, also where a pass ends before the last row."""
    try:
        yield
    except GeneratorExit:
        if check.bad:
            warn(f"{name}: {'; '.join(check.left_out())}, as far as it was read")
        raise
    if told := [*notes, *check.left_out()]:
        warn(f"{name}: {'; '.join(told)}")


def _require_text(found: str, name: str) -> None:
    if found != TEXT:
        said = f"streaming reads plain text, and the data are {found}"
        raise ConfigError(f"{said}: leave --streaming out", path=name)
