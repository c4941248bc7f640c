"""Parquet and arrow files: rows with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features

from llmft.console import warn
from llmft.data.read.text import unreadable
from llmft.errors import DataFormatError, escape

_BATCH = 10_000  # rows at a time
Numbered = tuple[int, dict[str, Any]]  # a row, by the names of its columns


@dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot hold; no trouble where its column is not used."""

    reason: str

    def __repr__(self) -> str:
        return f"not readable ({self.reason})"


def table_rows(path: Path, file_format: str) -> Iterator[Numbered]:
    """Yield the rows of a parquet or arrow file, counted from 1.

    Raises:
        DataFormatError: the file is damaged, or its columns have no names or one twice.
    """
    try:
        yield from _rows_of_batches(path, _batches(path, file_format))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(error, path) from error
        size = f"{path.stat().st_size:,} bytes"
        said = f"damaged, or not a {file_format} file: {error} ({size})"
        raise DataFormatError(said, path=path) from None


def _batches(path: Path, file_format: str) -> Iterator[pyarrow.RecordBatch]:
    """Yield the tables of a file, a part at a time."""
    with open(path, "rb") as stream:
        if file_format == "parquet":
            file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            _require_names(path, file.schema_arrow.names)
            yield from file.iter_batches(_BATCH)
        elif stream.read(6) == b"ARROW1":
            table = pyarrow.ipc.open_file(stream)
            _require_names(path, table.schema.names)
            yield from (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            stream.seek(0)
            reader = pyarrow.ipc.open_stream(stream)
            _require_names(path, reader.schema.names)
            yield from reader


def _require_names(path: Path, names: list[str]) -> None:
    if not names:
        raise DataFormatError("a table without columns", "expected text", path=path)
    if len(set(names)) < len(names):
        said = f"a column name occurs twice: {escape(names, 200)}"
        raise DataFormatError(said, path=path)


def _rows_of_batches(
    path: Path, batches: Iterator[pyarrow.RecordBatch]
) -> Iterator[Numbered]:
    number, features = 0, None
    for batch in batches:
        if features is None:
            features = _features(path, batch.schema)
        cells_of = zip(features, map(_cells, batch.columns), strict=True)
        columns = [class_names(feature, cells) for feature, cells in cells_of]
        for cells in zip(*columns, strict=True):
            number += 1
            yield number, dict(zip(batch.schema.names, cells, strict=True))


def _features(path: Path, schema: pyarrow.Schema) -> list[Any]:
    """Return what datasets noted of each column, None where it noted nothing."""
    if b"huggingface" in (schema.metadata or {}):
        try:
            return [*Features.from_arrow_schema(schema).values()]
        except (ValueError, TypeError, KeyError) as error:  # of another version
            said = f"what datasets noted of its columns cannot be read ({error})"
            warn(f"{path}: {escape(said, 200)}: classes keep their numbers")
    return [None] * len(schema)


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


def class_names(feature: Any, cells: list[Any]) -> list[Any]:
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
