"""Reading user data: the only module that opens it.

Text stays text, character by character: no type is inferred, and nothing means
"missing". What was read lies in the cache as memory-mapped Arrow, keyed by the bytes
of the files and by how they were read, so that a changed file is always read again.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from llmft import __version__
from llmft.console import say, warn
from llmft.data.read.check import Check
from llmft.data.read.columns import Columns, choose
from llmft.data.read.delimited import Line, Reading, Row, rows_of
from llmft.data.read.files import is_pipe, named_files
from llmft.data.read.messages import COLUMNS, TEXT
from llmft.data.read.tables import class_names
from llmft.data.read.text import plain_suffix, unreadable
from llmft.errors import (
    ConfigError,
    DataError,
    EnvironmentFault,
    SchemaError,
    listed,
    nearest,
)
from llmft.files import checksum, file_sha256, publish_folder, write_json
from llmft.sources import catalog

CONTENT = ("text", "text_pair", "label", "group")
STRINGS = ("string", "large_string")  # what datasets calls columns of text
_BATCH = 10_000
CACHE = 4  # to be raised where the same files are read in another way

Lines = Iterable[tuple[int, Line]]  # each with the place of its file


@dataclass(frozen=True)
class Source:
    """One data set as read: ``text``, and where asked for the others of ``CONTENT``.

    All are strings; the texts of a ``format`` that is not plain are those of
    ``messages.COLUMNS``, a conversation being JSON. A label is the text that stands for
    its class, a number, or a JSON list of classes, as ``problem_type`` says. Columns
    ``file`` (int32, the place in ``files``) and ``line`` (int64) tell where each row
    begins.
    """

    dataset: Dataset
    name: str
    notes: list[str] = field(default_factory=list)
    files: tuple[str, ...] = ()
    problem_type: str | None = None
    format: str = TEXT

    @property
    def sha256(self) -> str:
        """Hash of the content as read."""
        return content_hash(self.dataset)

    def select(self, rows: Sequence[int] | np.ndarray) -> Source:
        """Return the rows at these places."""
        return replace(self, dataset=self.dataset.select(rows))

    def place(self, row: int) -> str:
        """Return where a row begins, as path:line."""
        found = self.dataset[row]
        return f"{self.files[found['file']]}:{found['line']}"


def content_hash(dataset: Dataset) -> str:
    """Return the sha256 over all values of the content, and the names of columns."""
    names = [n for n in CONTENT if n in dataset.column_names]
    digest = hashlib.sha256("\0".join(names).encode())
    for batch in dataset.select_columns(names).iter(_BATCH):
        for values in zip(*batch.values(), strict=True):
            for value in values:
                raw = b"" if value is None else value.encode()
                digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def read_file(
    name: str | Path, columns: Columns, reading: Reading | None = None
) -> Source:
    """Read the files of a name: one, a folder, a pattern, or standard input.

    Raises:
        DataError: a file is missing, malformed (path:line), empty, or lacks a column;
            or a value is not what its column needs.
    """
    reading = reading or Reading()
    with named_files(str(name), reading) as (files, notes, unit):
        shown = [str(name)] if is_pipe(str(name)) else [str(file) for file in files]
        versions = [version_of(file) for file in files]
        identity = [[_sha256(file) for file in files], shown, asdict(reading), unit]
        encodings: list[str] = []
        rows = file_rows(files, shown, versions, reading, unit, encodings)
        check = Check(str(name), shown, columns, reading.max_bad_rows)
        source = _cached(identity, check, rows, encodings)
    return replace(source, notes=[*notes, *source.notes])


def file_rows(
    files: Sequence[Path],
    shown: Sequence[str],
    versions: Sequence[tuple[int, int]],
    reading: Reading,
    unit: str,
    encodings: list[str],
) -> Iterator[tuple[int, Line]]:
    """Yield the rows of files, each with the place of its file.

    Args:
        shown: what to call the files. versions: of each, as ``version_of`` gave them.
        unit: what a row of a txt is, where ``reading`` does not say it.
        encodings: is told what is not plain UTF-8.

    Raises:
        DataError: a file cannot be read, or changed; or it has other columns.
    """
    first: Row | None = None
    for i, (file, version) in enumerate(zip(files, versions, strict=True)):
        kind = reading.file_format or plain_suffix(file).removeprefix(".")
        of_file: Row | None = None
        try:
            found, note = rows_of(file, reading, reading.sample_by or unit)
            if note:
                encodings.append(note if len(files) < 2 else f"{shown[i]} {note}")
            for line, row in found:
                if isinstance(row, DataError):
                    row.path = shown[i]  # standard input, not the copy of it
                if of_file is None and isinstance(row, dict):
                    of_file, first = row, first or row
                    if kind not in ("json", "jsonl"):  # these may leave some out
                        _require_same(of_file, first, shown[i], shown[0])
                yield i, (line, row)
            if version_of(file) != version:
                said = "the file changed while it was read"
                raise DataError(said, hint="start again", path=file)
        except DataError as error:
            error.path = shown[i]
            raise


def version_of(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file. Raises DataError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(error, path) from error
    return stat.st_size, stat.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(error, path) from error


def _require_same(row: Row, first: Row, file: str, first_file: str) -> None:
    """Raise SchemaError where two files have other columns."""
    if row.keys() != first.keys():
        raise SchemaError(
            f"columns are {listed(row)}",
            f"expected those of {first_file}: {listed(first)}",
            "read files with other columns by themselves",
            path=file,
        )


def _cached(
    identity: list[Any], check: Check, rows: Lines, encodings: Sequence[str] = ()
) -> Source:
    """Return the checked rows, out of the cache where their identity is in it.

    Raises:
        DataError: a row is bad, or there is none.
    """
    how = [__version__, CACHE, identity, asdict(check.columns), check.max_bad_rows]
    key = hashlib.sha256(json.dumps(how).encode()).hexdigest()
    folder = catalog.cache_home() / "read" / key
    source = _stored(folder, check)
    if source is not None:
        return source
    with publish_folder(folder, replace=folder.exists()) as staging:
        table = staging / "data.arrow"
        with ExitStack() as stack:
            writer = None
            for batch in check.batches(rows):
                if writer is None:
                    stream = pa.ipc.new_stream(str(table), batch.schema)
                    writer = stack.enter_context(stream)
                writer.write_batch(batch)
        said = {
            "notes": [*encodings, *check.notes()],
            "problem_type": check.problem_type,
            "format": check.format,
            "crc32": checksum(table),
        }
        write_json(staging / "source.json", said)
    source = _stored(folder, check)
    if source is None:
        raise EnvironmentFault("what was just written is not there", path=folder)
    return source


def _stored(folder: Path, check: Check) -> Source | None:
    """Return what is in a folder of the cache, None where it is not whole."""
    table, described = folder / "data.arrow", folder / "source.json"
    try:
        said = json.loads(described.read_text("utf-8"))
        if checksum(table) != said["crc32"]:
            raise ValueError("data.arrow is not what was written")
        dataset = Dataset.from_file(str(table))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        warn(f"{folder}: damaged ({error}); reading {check.name} again")
        return None
    kind = said["problem_type"]
    if kind is None and "label" in dataset.column_names:  # none of them has one
        dataset = dataset.remove_columns("label")
    files = tuple(check.files)
    return Source(dataset, check.name, said["notes"], files, kind, said["format"])


def from_hub(
    raw: Dataset, name: str, columns: Columns, max_bad_rows: int = 0
) -> Source:
    """Make a ``Source`` of one split of a hub data set; check every value."""
    features, names = raw.features, raw.column_names
    strings = [n for n in names if getattr(features[n], "dtype", "") in STRINGS]
    found, wanted = choose(names, strings, columns, name)
    used = raw.select_columns(sorted(set(wanted.values())))

    def rows() -> Iterator[tuple[int, Line]]:
        line = 0
        for batch in used.iter(_BATCH):
            for column, cells in batch.items():
                batch[column] = class_names(features[column], cells)
            for cells in zip(*batch.values(), strict=True):
                line += 1
                yield 0, (line, dict(zip(batch, cells, strict=True)))

    fields = {COLUMNS[found].get(key, key): column for key, column in wanted.items()}
    named = replace(columns, **fields)  # type: ignore[arg-type]  # none is chat
    check = Check(name, [name], named, max_bad_rows)
    source = _cached([name, raw._fingerprint], check, rows())
    unused = [n for n in names if n not in wanted.values()]
    notes = [f"columns not used: {listed(unused)}"] if unused else []
    return replace(source, notes=[*source.notes, *notes])


def read_asset(name: str, config: str | None) -> Source:
    """Read ``pypi:rotten-tomatoes``: text, label and group (the movie).

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
    path = catalog.fetch(name) / file

    def rows() -> Iterator[tuple[int, Line]]:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                if row["category"] in configs[config]:
                    yield 0, (reader.line_num, row)

    columns = Columns("text", "category", True, "movie_name")
    check = Check(f"{name} ({config})", [file], columns)
    identity = [name, asset.archive_sha256, config]
    return replace(_cached(identity, check, rows()), notes=[])


def show(split: str, source: Source) -> None:
    """Tell the user what was read for a split."""
    notes = f" ({'; '.join(source.notes)})" if source.notes else ""
    say(f"  {split:<10} {len(source.dataset):>9,} rows of {source.name}{notes}")
