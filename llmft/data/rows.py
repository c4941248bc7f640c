"""Rows that are read on the way, again in every epoch: of files, and of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from datasets import Dataset, IterableDataset

from llmft.console import warn
from llmft.data.check import Check, Checked
from llmft.data.columns import Columns
from llmft.data.formats import Line, Reading
from llmft.data.messages import TEXT
from llmft.data.paths import is_pipe, named_files
from llmft.data.read import file_rows, version_of
from llmft.errors import ConfigError, DataError, EnvironmentFault
from llmft.hub import MISSES, brief

_BATCH = 1000  # rows of the hub at a time


class Rows(Protocol):
    """What a stream is made of; iterating reads it from the start.

    Each good row comes as the place of its file in ``files``, its line, and its values.
    A DataError is raised where a bad one is reached.
    """

    @property
    def name(self) -> str:
        """What to call them in messages."""

    @property
    def files(self) -> tuple[str, ...]:
        """The paths, by their place."""

    @property
    def identity(self) -> list[Any]:
        """What is another where the rows may be."""

    def __iter__(self) -> Iterator[Checked]: ...


@dataclass(frozen=True)
class FileRows:
    """The rows of the files of a name; see ``Rows``.

    Iterating raises DataError where a file is not what it was when this was made.

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

    @property
    def files(self) -> tuple[str, ...]:
        """The paths, by their place."""
        return tuple(path for path, _, _ in self.versions)

    @property
    def identity(self) -> list[Any]:
        """What is another where the rows may be."""
        return [self.versions, asdict(self.reading), asdict(self.columns)]

    def __str__(self) -> str:
        size = sum(size for _, size, _ in self.versions) / 2**20
        return f"{size:,.0f} MiB of {self.name}"

    def __iter__(self) -> Iterator[Checked]:
        now = self._now()
        if now != self.versions:
            changed = sorted({v[0] for v in {*now} ^ {*self.versions}})
            said = "the file changed since the run began"
            raise DataError(said, hint="start again", path=changed[0])
        with named_files(self.name, self.reading) as (files, _, unit):
            versions = [(size, time) for _, size, time in now]
            notes: list[str] = []
            rows = file_rows(files, self.files, versions, self.reading, unit, notes)
            most = self.reading.max_bad_rows
            check = Check(self.name, self.files, self.columns, most)
            yield from _plain(check, rows)
            if told := notes + check.left_out():
                warn(f"{self.name}: {'; '.join(told)}")


@dataclass(frozen=True)
class HubRows:
    """The rows of a split of a hub data set, counted from 1; see ``Rows``.

    Args:
        data: the split. version: of the data set on the hub.

    Iterating raises EnvironmentFault where the hub fails.
    """

    name: str
    columns: Columns
    data: Dataset | IterableDataset
    version: str

    @property
    def files(self) -> tuple[str, ...]:
        """The name, in place of a path."""
        return (self.name,)

    @property
    def identity(self) -> list[Any]:
        """What is another where the rows may be."""
        return [self.name, self.version, asdict(self.columns)]

    def __str__(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[Checked]:
        check = Check(self.name, self.files, self.columns)
        yield from _plain(check, ((0, line) for line in self._lines()))

    def _lines(self) -> Iterator[Line]:
        number = 0
        try:
            for table in self.data.with_format("arrow").iter(_BATCH):
                for row in table.to_pylist():
                    number += 1
                    yield number, row
        except MISSES as error:
            raise EnvironmentFault(
                f"the hub failed after {number:,} rows ({brief(error)})",
                hint="try again, or --resume_from_checkpoint",
                path=self.name,
            ) from error


def _plain(check: Check, rows: Iterator[tuple[int, Line]]) -> Iterator[Checked]:
    """Yield the checked rows; raise ConfigError where they are no plain text."""
    for row in check.rows(rows):
        if check.format != TEXT:
            said = f"streaming reads plain text, and the data are {check.format}"
            raise ConfigError(f"{said}: leave --streaming out", path=check.name)
        yield row
