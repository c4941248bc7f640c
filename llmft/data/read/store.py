"""What was read, and the cache that keeps it.

Text stays text, character by character: no type is inferred, and nothing means
"missing". What was read lies in the cache as memory-mapped Arrow, keyed by the bytes
of the files and by how they were read, so that a changed file is always read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from llmft import __version__
from llmft.console import say, warn
from llmft.data.read.check import Check, Rows
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading, named_files
from llmft.data.read.messages import TEXT
from llmft.data.read.prints import PRINTS, row_prints, with_prints
from llmft.data.read.rows import file_rows
from llmft.errors import EnvironmentFault
from llmft.files import checksum, clear_stagings, publish_folder, write_json
from llmft.sources import catalog

CONTENT = ("text", "text_pair", "label", "group")
BATCH = 10_000  # rows at a time, and
CHARACTERS = 2**21  # about as many characters at the most
_CACHE = 11  # to be raised where the same files are read in another way
_FACTS = "facts.json"  # of a folder of the cache
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError),
    pa.ArrowException,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One data set as read: ``text``, and where asked for the others of ``CONTENT``.

    All are strings; the texts of a ``format`` that is not plain are those of
    ``messages.COLUMNS``, a conversation being JSON. A label is the text that stands for
    its class, a number, or a JSON list of classes, as ``problem_type`` says. Columns
    ``file`` (int32, the place in ``files``) and ``line`` (int64) tell where each row
    begins; those of ``PRINTS`` are there where it was stored. ``bad`` rows were left
    out.
    """

    dataset: Dataset
    name: str
    notes: list[str] = field(default_factory=list)
    files: tuple[str, ...] = ()
    problem_type: str | None = None
    format: str = TEXT
    bad: int = 0

    def select(self, rows: Sequence[int] | np.ndarray) -> Source:
        """Return the rows at these places."""
        return replace(self, dataset=self.dataset.select(rows))

    def place(self, row: int) -> str:
        """Return where a row begins, as path:line."""
        found = self.dataset[row]
        return f"{self.files[found['file']]}:{found['line']}"


def content_hash(dataset: Dataset) -> str:
    """Return the sha256 over the content: its prints, and its labels and groups."""
    names = [n for n in CONTENT if n in dataset.column_names]
    digest = hashlib.sha256("\0".join(names).encode())
    digest.update(prints_of(dataset)[0].tobytes())
    if beside := [n for n in names if n not in CONTENT[:2]]:
        for batch in dataset.select_columns(beside).iter(BATCH):
            for values in zip(*batch.values(), strict=True):
                for value in values:
                    raw = b"" if value is None else value.encode()
                    digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def prints_of(data: Dataset) -> Sequence[np.ndarray]:
    """Return the columns ``PRINTS`` of rows; they are made where none are stored."""
    if PRINTS[0] in data.column_names:
        # Not by slicing: to gather a million chosen rows takes datasets seconds.
        rows = slice(None) if data._indices is None else data._indices.column(0)
        return [data.data.column(name).to_numpy()[rows] for name in PRINTS]
    texts = data.select_columns([n for n in CONTENT[:2] if n in data.column_names])
    parts = batches(texts, BATCH, CHARACTERS)
    made = [row_prints([*part.values()]) for part in parts]
    return [*map(np.concatenate, zip(*made, strict=True))]


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


def batches(
    data: Dataset, most: int, characters: int
) -> Iterator[dict[str, list[Any]]]:
    """Yield rows by column, few at once where they are long, as books are.

    That is ``in_parts``, and what is read ahead keeps to the mean length of a row.
    """
    mean = data.data.nbytes // max(1, data.data.num_rows) + 1
    for batch in data.iter(min(most, max(1, characters // mean))):
        lengths = [*map(len, batch["text"])]
        if sum(lengths) <= characters:  # as most are
            yield dict(batch)
            continue
        rows = range(len(lengths))
        for part in in_parts(rows, lengths.__getitem__, most, characters):
            some = slice(part[0], part[-1] + 1)
            yield {name: values[some] for name, values in batch.items()}


def read_file(
    name: str | Path,
    columns: Columns,
    reading: Reading | None = None,
    split: str | None = None,
) -> Source:
    """Read the files of a name: one, a folder, a pattern, or standard input.

    Of a folder that has files of several splits, those of the one.

    Raises:
        DataError: a file is missing, malformed (path:line), empty, or lacks a column;
            or a value is not what its column needs.
    """
    reading = reading or Reading()
    with named_files(str(name), reading, split) as (files, notes, unit):
        source = stored(file_rows(str(name), columns, reading, (files, unit)))
    return replace(source, notes=[*notes, *source.notes])


def stored(rows: Rows) -> Source:
    """Return the checked rows, out of the cache where their identity is in it.

    Raises:
        DataError: a row is bad, or there is none.
    """
    check = Check(rows)

    def write(staging: Path) -> dict[str, Any]:
        batches = with_prints(check.batches())
        first = next(batches)  # there is one, or an error
        with pa.ipc.new_stream(str(staging / "data.arrow"), first.schema) as writer:
            for batch in chain([first], batches):
                writer.write_batch(batch)
        kind, found = check.problem_type, check.format
        notes = check.notes()
        return {"notes": notes, "problem_type": kind, "format": found, "bad": check.bad}

    def read(folder: Path, said: dict[str, Any]) -> Source:
        dataset = Dataset.from_file(str(folder / "data.arrow"))
        kind = said["problem_type"]
        if kind is None and "label" in dataset.column_names:  # none of them has one
            dataset = dataset.remove_columns("label")
        notes, found, bad = said["notes"], said["format"], said["bad"]
        return Source(dataset, rows.name, notes, rows.files, kind, found, bad)

    how = [_CACHE, *rows.described()]
    return cached("read", how, write, read, f"reading {rows.name} again")


def in_memory(rows: Rows, most: int | None = None) -> Source:
    """Return the first ``most`` rows, of plain text; they are kept nowhere."""
    check = Check(rows)
    data = Dataset.from_list([*islice(rows.read(check), most)])
    return Source(data, rows.name, [], rows.files, check.problem_type)


def cached(
    part: str,
    how: Sequence[Any],
    write: Callable[[Path], dict[str, Any]],
    read: Callable[[Path, dict[str, Any]], T],
    again: str,
    *,
    overwrite: bool = False,
) -> T:
    """Return what ``read`` makes of a folder of the cache, which ``write`` has filled.

    The folder appears whole or not at all. What is damaged is written again, which a
    warning says.

    Args:
        part: of the cache. how: all that decides the content, for JSON.
        write: fills a folder with files; returns facts, for JSON.
        read: gets a folder and the facts; raises ValueError where it is damaged.
        again: what is done again, for the warning.
    """
    key = hashlib.sha256(json.dumps([__version__, *how]).encode()).hexdigest()
    folder = catalog.cache_home() / part / key
    clear_stagings(folder.parent)
    found = None if overwrite else _found(folder, read, again)
    if found is not None:
        return found
    with publish_folder(folder, replace=folder.exists()) as staging:
        facts = write(staging)
        sums = {path.name: checksum(path) for path in sorted(staging.iterdir())}
        write_json(staging / _FACTS, facts | {"xxh3": sums})
    found = _found(folder, read, again)
    if found is None:
        raise EnvironmentFault("what was just written is not there", path=folder)
    return found


def _found(
    folder: Path, read: Callable[[Path, dict[str, Any]], T], again: str
) -> T | None:
    """Return what is in a folder of the cache, None where it is not whole."""
    try:
        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        for name, xxh3 in facts["xxh3"].items():
            if checksum(folder / name) != xxh3:
                raise ValueError(f"{name} is not what was written")
        with suppress(OSError):  # a cache that only others may write to
            os.utime(folder)  # used now, for `llmft cache clear --older_than`
        return read(folder, facts)
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        warn(f"{folder}: damaged ({error}); {again}")
        return None


def show(split: str, source: Source) -> None:
    """Tell the user what was read for a split."""
    notes = f" ({'; '.join(source.notes)})" if source.notes else ""
    say(f"  {split:<10} {len(source.dataset):>9,} rows of {source.name}{notes}")
