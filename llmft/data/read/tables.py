"""Parquet and arrow files: rows with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features

from llmft.console import warn
from llmft.data.read.packed import unreadable
from llmft.data.read.text import Choose
from llmft.errors import DataFormatError, escape

_BATCH = 10_000  # rows at a time
_SHOWN = 100  # of the first of them, to choose columns by
Numbered = tuple[int, dict[str, Any]]  # a row, by the names of its columns


@dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot hold; no trouble where its column is not used."""

    reason: str

    def __repr__(self) -> str:
        return f"not readable ({self.reason})"


def table_rows(path: Path, file_format: str, choose: Choose) -> Iterator[Numbered]:
    """Yield the rows of a parquet or arrow file, counted from 1.

    Only the columns that ``choose`` returns are read: others may be vectors that take
    a hundred times as much memory as the texts.

    Raises:
        DataFormatError: the file is damaged, or its columns have no names or one twice.
    """
    try:
        with open(path, "rb") as stream:
            schema, batches = _opened(stream, file_format)
            if not schema.names:
                raise DataFormatError("a table without columns", "expected text")
            if len(set(schema.names)) < len(schema.names):
                said = f"a column name occurs twice: {escape(schema.names, 200)}"
                raise DataFormatError(said)
            features = _features(path, schema)
            strings = [f.name for f in schema if _is_text(f.type)]
            wanted = choose(schema.names, strings, _first_rows(batches, strings))
            cells = ({n: _cells(batch[n]) for n in wanted} for batch in batches(wanted))
            yield from numbered(cells, features)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(error, path) from error
        size = f"{path.stat().st_size:,} bytes"
        said = f"damaged, or not a {file_format} file: {error} ({size})"
        raise DataFormatError(said) from None


def numbered(
    batches: Iterable[dict[str, list[Any]]], features: Mapping[str, Any]
) -> Iterator[Numbered]:
    """Yield rows, counted from 1, of columns whose ``features`` datasets may know."""
    number = 0
    for batch in batches:
        columns = [_class_names(features.get(n), cells) for n, cells in batch.items()]
        for cells in zip(*columns, strict=True):
            number += 1
            yield number, dict(zip(batch, cells, strict=True))


def _opened(
    stream: IO[bytes], file_format: str
) -> tuple[pyarrow.Schema, Callable[[list[str]], Iterator[pyarrow.RecordBatch]]]:
    """Return the schema of a file, and what reads some of its columns in parts."""
    if file_format == "parquet":
        file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        read = partial(file.iter_batches, _BATCH, None)  # of all groups of rows
        return file.schema_arrow, read
    is_file = stream.read(6) == b"ARROW1"
    start = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    stream.seek(0)
    schema = start(stream).schema

    def batches(wanted: list[str]) -> Iterator[pyarrow.RecordBatch]:
        places = sorted(map(schema.names.index, wanted))
        stream.seek(0)
        some = pyarrow.ipc.IpcReadOptions(included_fields=places)
        reader = start(stream, options=some)
        if is_file:
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from reader

    return schema, batches


def _first_rows(
    batches: Callable[[list[str]], Iterator[pyarrow.RecordBatch]], names: list[str]
) -> list[dict[str, Any]]:
    """Return what some columns hold in the first rows."""
    batch = next(batches(names), None) if names else None
    if batch is None:
        return []
    cells = [_cells(batch[n].slice(0, _SHOWN)) for n in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]


def _is_text(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view")


def _features(path: Path, schema: pyarrow.Schema) -> Mapping[str, Any]:
    """Return what datasets noted of the columns, nothing where it noted nothing."""
    if b"huggingface" in (schema.metadata or {}):
        try:
            return Features.from_arrow_schema(schema)
        except (ValueError, TypeError, KeyError) as error:  # of another version
            said = f"what datasets noted of its columns cannot be read ({error})"
            warn(f"{path}: {escape(said, 200)}: classes keep their numbers")
    return {}


def _cells(column: pyarrow.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # one of them cannot be held
        return [_cell(value) for value in column]


def _cell(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:  # not UTF-8; the year 300,000
        return Unreadable(str(error))


def _class_names(feature: Any, cells: list[Any]) -> list[Any]:
    """Return cells with the names of classes, where a feature of datasets has them.

    -1, which stands for no label in data sets of the hub, becomes None.
    """
    if isinstance(feature, ClassLabel):
        return [_class_of(feature, cell) for cell in cells]
    of = getattr(feature, "feature", None)
    if isinstance(of, ClassLabel):
        return [cell and [_class_of(of, one) for one in cell] for cell in cells]
    return cells


def _class_of(feature: ClassLabel, cell: int | None) -> str | Unreadable | None:
    if cell is None or cell < 0:
        return None
    if cell >= feature.num_classes:
        return Unreadable(f"{cell} is none of {feature.num_classes:,} classes")
    return feature.int2str(cell)
