"""Rows of user data: of files, of the hub, of an asset, or of a program's memory."""

from __future__ import annotations

import bz2
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetsError

from llmft.data.read.check import SAMPLE, Check, Lines, Rows
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading, is_pipe, named_files, rows_of
from llmft.data.read.packed import of_file
from llmft.data.read.tables import numbered
from llmft.errors import (
    ConfigError,
    DataError,
    DataFormatError,
    EncodingError,
    EnvironmentFault,
    SchemaError,
    brief,
    nearest,
)
from llmft.files import file_sha256
from llmft.sources import catalog
from llmft.sources.hub import MISSES

_BATCH = 1000  # rows of the hub at a time
_STRINGS = ("string", "large_string")  # what datasets calls columns of text
# What datasets raises on the way, of files that are not what it takes them for.
_FAULTS = (ValueError, OSError, EOFError, RuntimeError, ArithmeticError)


def file_rows(
    name: str,
    columns: Columns,
    reading: Reading,
    found: tuple[Sequence[Path], str],
    hashed: bool = True,
) -> Rows:
    """Return the rows of ``found``: the files, and what a row of a txt is by default.

    Where ``hashed`` they are known by their bytes, else by size and time of change.
    """
    files, unit = found
    shown = [name] if is_pipe(name) else [*map(str, files)]
    versions = [_version(file) for file in files]
    known = [of_file(file, file_sha256) for file in files] if hashed else versions
    return Rows(
        name,
        tuple(shown),
        columns,
        [known, shown, asdict(reading), unit],
        partial(_file_lines, files, versions, reading, reading.sample_by or unit),
        reading.max_bad_rows,
        size=sum(size for size, _ in versions),
    )


def streamed_files(name: str, columns: Columns, reading: Reading) -> Rows:
    """Return the rows of files too large to be stored, read again in every epoch.

    Raises:
        ConfigError: it is a pipe, which cannot be read again.
    """
    if is_pipe(name):
        said = "a pipe cannot be read again, as streaming does in every epoch"
        raise ConfigError(f"{said}; give a file", path=name)
    with named_files(name, reading, "train") as (files, notes, unit):
        rows = file_rows(name, columns, reading, (files, unit), hashed=False)
    return replace(rows, notes=notes)


def _file_lines(
    files: Sequence[Path],
    versions: Sequence[tuple[int, int]],
    reading: Reading,
    sample_by: str,
    check: Check,
) -> Lines:
    """Yield the rows of files. Raises DataError, also where one has changed."""
    for file, version in zip(files, versions, strict=True):
        _require_unchanged(file, version, "since the run began")
    for i, (file, version) in enumerate(zip(files, versions, strict=True)):
        if 0 < i < check.source.start[0]:
            continue
        try:
            check.told.file = check.source.files[i]
            how = (reading, sample_by, check.choose, check.told, _left_out(check, i))
            for line in rows_of(file, *how):
                yield i, line
            _require_unchanged(file, version, "while it was read")
        except DataError as error:
            error.path = error.path or check.source.files[i]
            if isinstance(error, EncodingError) and error.guess:
                decoded = replace(reading, encoding=error.guess)
                lines = partial(_file_lines, files, versions, decoded, sample_by)
                error.hint += _then(replace(check.source, lines=lines))
            raise


def _left_out(check: Check, file: int) -> range:
    """Return the lines of a file that stand before what is wanted first."""
    wanted, line = check.source.start
    first = SAMPLE + 1 if file == 0 else 1
    last = sys.maxsize if file < wanted else line if file == wanted else 0
    return range(first, max(last, first))


def _then(rows: Rows) -> str:
    """Return what else is wrong with a file, once it is read in its encoding.

    A file of another country often has another separator, too, and other columns.
    """
    try:
        next(Check(rows).rows(), None)
    except (DataFormatError, SchemaError) as error:
        parts = (error.found, error.expected, error.hint)
        return "; then: " + "; ".join(filter(None, parts))
    except DataError:
        pass
    return ""


def _version(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file. Raises DataError."""
    stat = of_file(path, Path.stat)
    return stat.st_size, stat.st_mtime_ns


def _require_unchanged(path: Path, version: tuple[int, int], when: str) -> None:
    if _version(path) != version:
        raise DataError(f"the file changed {when}", hint="start again", path=path)


def hub_rows(
    name: str,
    columns: Columns,
    data: Dataset | IterableDataset,
    version: str,
    max_bad_rows: int = 0,
) -> Rows:
    """Return the rows of a split of a hub data set, counted from 1.

    Of those that are fetched on the way, rows after a bad one are not counted.
    """
    lines = partial(_hub_lines, data)
    counted = 0 if isinstance(data, IterableDataset) else 10**6
    return Rows(name, (name,), columns, [name, version], lines, max_bad_rows, counted)


def _hub_lines(data: Dataset | IterableDataset, check: Check) -> Lines:
    """Yield the rows; of the wanted columns only, as soon as these are known."""
    features: Mapping[str, Any] = data.features or {}
    if features:
        strings = [n for n in features if getattr(features[n], "dtype", "") in _STRINGS]
        first = _first_rows(data, strings, check)
        data = data.select_columns(check.choose([*features], strings, first))
    for row in numbered(_hub_batches(data, check), features):
        yield 0, row


def _first_rows(
    data: Dataset | IterableDataset, names: list[str], check: Check
) -> list[dict[str, Any]]:
    """Return what some columns hold in the first rows, where that decides on them."""
    columns = check.columns
    if columns.text or not names or (len(names) == 1 and not columns.chat):
        return []
    streamed = isinstance(data, IterableDataset)
    some = data.take(SAMPLE if streamed else min(SAMPLE, len(data)))
    batches = _hub_batches(some.select_columns(names), check)
    return [
        dict(zip(names, row, strict=True))
        for batch in batches
        for row in zip(*(batch[n] for n in names), strict=True)
    ]


def _hub_batches(
    data: Dataset | IterableDataset, check: Check
) -> Iterator[dict[str, list[Any]]]:
    # Not as Arrow: datasets joins tables of JSON whose types differ, and fails.
    read = 0
    try:
        for batch in data.iter(_BATCH):
            yield dict(batch)
            read += len(next(iter(batch.values())))
    except MISSES as error:
        said = f"the hub failed after {read:,} rows ({brief(error)})"
        hint = "try again, or --resume_from_checkpoint"
        raise EnvironmentFault(said, hint=hint, path=check.source.name) from error
    except (*_FAULTS, pa.ArrowException, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a full disk, say
        said = f"cannot be read after {read:,} rows: {brief(error)}"
        raise DataError(said, path=check.source.name) from error


def asset_rows(name: str, config: str | None) -> Rows:
    """Return the rows of ``pypi:rotten-tomatoes``: text, label and group (the movie).

    Configurations: ``reviews`` (fresh or rotten), ``plots``, ``all``.
    """
    configs = {"reviews": ("fresh", "rotten"), "plots": ("plot",)}
    configs["all"] = configs["reviews"] + configs["plots"]
    asset = catalog.get(name)
    if asset.kind != "dataset":
        raise ConfigError(f"{name} is a {asset.kind}, not a data set")
    config = config or "all"
    if config not in configs:
        said = f"dataset_config_name of {name} is {config}, expected one of "
        raise ConfigError(said + ", ".join(configs) + nearest(config, configs))
    file = asset.members[0].name
    path, kinds = catalog.fetch(name) / file, configs[config]

    def lines(check: Check) -> Lines:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                if row["category"] in kinds:
                    yield 0, (reader.line_num, row)

    columns = Columns("text", "category", True, "movie_name")
    identity = [name, asset.archive_sha256, config]
    return Rows(f"{name} ({config})", (file,), columns, identity, lines)


def memory_rows(values: Mapping[str, Sequence[Any]], columns: Columns) -> Rows:
    """Return the rows of lists by the names of their columns, counted from 0.

    Their program has no flags: of bad rows the first is told, and nothing else.
    """

    def lines(check: Check) -> Lines:
        cells: Iterable[Any] = zip(*values.values(), strict=True)
        for line, row in enumerate(cells):
            yield 0, (line, dict(zip(values, row, strict=True)))

    return Rows("texts", ("texts",), columns, [], lines, counted=None)
