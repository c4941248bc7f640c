"""Reading user data: the only module that opens it, with the formats it is in.

Every reader yields rows with the number of the line they start on. Text stays text,
character by character: no type is inferred, and nothing means "missing".
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from llmft import assets
from llmft.console import say
from llmft.data.formats import (
    Line,
    Row,
    csv_rows,
    json_rows,
    jsonl_rows,
    parquet_rows,
    txt_rows,
    unreadable,
)
from llmft.errors import ConfigError, DataError, escape
from llmft.parser import nearest

_TEXT_NAMES = ("text", "sentence", "content", "review")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LABEL_NAMES = ("label", "labels", "category", "class", "target")


@dataclass(frozen=True)
class Columns:
    """The columns wanted: None lets ``pick`` choose; no ``label`` reads none.

    With ``label_optional``, data without a label column is read without labels.
    """

    text: str | None = None
    label: str | None = None
    needs_label: bool = False
    group: str | None = None
    label_optional: bool = False


@dataclass(frozen=True)
class Source:
    """One data set as read: ``text``, and where asked for ``label`` and ``group``.

    All columns are strings; a label is the text that stands for its class.
    """

    dataset: Dataset
    name: str
    notes: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Hash of the content as read."""
        return content_hash(self.dataset)


def content_hash(dataset: Dataset) -> str:
    """Return the sha256 over all values of a data set of strings, and its names."""
    digest = hashlib.sha256()
    for name in dataset.column_names:
        digest.update(f"\0{name}\0".encode())
        for text in dataset[name][:]:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def read_file(path: Path, columns: Columns, sample_by: str | None = None) -> Source:
    """Read a csv, tsv, json, jsonl, txt or parquet file, or a folder of txt.

    Raises:
        DataError: the file is missing, malformed (path:line), empty, or lacks a
            column; or a text is not text.
    """
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.glob("*")])
        raise DataError("no such file", hint=near.strip(", "), path=path)
    if path.is_dir():
        return _read_folder(path, columns, sample_by or "document")
    readers = {
        ".csv": lambda p: csv_rows(p, ","),
        ".tsv": lambda p: csv_rows(p, "\t"),
        ".json": json_rows,
        ".jsonl": jsonl_rows,
        ".txt": lambda p: txt_rows(p, sample_by or "line"),
        ".parquet": parquet_rows,
    }
    if path.suffix.lower() not in readers:
        raise DataError(
            f"cannot tell the format from the ending {path.suffix or '(none)'}",
            f"expected one of {', '.join(readers)}, or a folder of txt",
            path=path,
        )
    if not path.stat().st_size:
        raise DataError("the file is empty", "expected at least one row", path=path)
    return from_rows(list(readers[path.suffix.lower()](path)), str(path), columns)


def from_rows(lines: list[Line], name: str, columns: Columns) -> Source:
    """Make a ``Source`` of rows with their line numbers; check every value.

    An empty line of a file, None, is no row; they are counted in the notes.
    """
    rows = [(line, row) for line, row in lines if row is not None]
    if not rows:
        raise DataError("0 rows", "expected at least one", path=name)
    first: Row = {}  # the first value of each column that some row has
    for _, row in rows:
        if row.keys() != first.keys() or None in first.values():
            first |= {n: v for n, v in row.items() if first.get(n) is None}
    strings = [n for n, value in first.items() if isinstance(value, str)]
    wanted = _choose(list(first), strings, columns, name)
    source = _source(rows, wanted, name, list(first), columns)
    if len(rows) < len(lines):
        passed = f"{len(lines) - len(rows):,} empty lines passed over"
        return replace(source, notes=[*source.notes, passed])
    return source


def _source(
    rows: Sequence[tuple[int, Row]],
    wanted: dict[str, str],
    name: str,
    names: list[str],
    columns: Columns,
) -> Source:
    """Make a ``Source`` of the ``wanted`` columns; check every value.

    Labels that may be missing are either there in every row or in none.
    """
    wanted, notes = dict(wanted), []
    label = wanted.get("label")
    if (
        columns.label_optional
        and label is not None
        and all(row.get(label) in (None, "") for _, row in rows)
    ):
        del wanted["label"]
        notes = [f"{label!r} is empty in all rows"]
    elif columns.label_optional and columns.label not in (None, *names):
        notes = [f"there is no column {columns.label!r}"]
    values: dict[str, list[str]] = {key: [] for key in wanted}
    for line, row in rows:
        for key, column in wanted.items():
            values[key].append(_value(key, column, row, name, line))
    return Source(_dataset(values), name, _notes(names, wanted) + notes)


def _value(key: str, column: str, row: Row, name: str, line: int) -> str:
    fault = partial(DataError, path=name, line=line)
    if column not in row:
        raise fault(f"no {column!r} in this row", f"it has {listed(row)}")
    value = row[column]
    if isinstance(value, str) and _LONE_SURROGATE.search(value):  # from JSON escapes
        raise fault(
            f"{column!r} holds half of a character (a lone surrogate)",
            "expected text that can be written as UTF-8",
        )
    if key == "text":
        if not isinstance(value, str):
            raise fault(
                f"{column!r} is {shorten(value)} ({type(value).__name__})",
                "expected text in every row",
            )
        return value
    shown = class_name(value)
    if shown is None:
        raise fault(
            f"{column!r} is {shorten(value)}",
            "expected a label: text that is not empty, a whole number, or true/false",
            "give the row a label, or take it out",
        )
    return shown


def class_name(value: Any) -> str | None:
    """Return the text that stands for a label, or None where it is not one.

    Text stands for itself, 3 for "3", true for "true"; None, "", fractions, lists and
    numbers of more than 64 bits are not labels.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else None
    return value if isinstance(value, str) and value.strip() else None


def pick(
    names: list[str], strings: list[str], columns: Columns, source: str
) -> tuple[str, str | None]:
    """Choose the text and label columns; raise DataError where that is a guess."""
    text, label = columns.text, columns.label
    optional = columns.label_optional
    if optional and label not in names:
        label = None
    if not names:
        raise DataError("rows without columns", "expected text", path=source)
    if columns.needs_label and label is None:
        known = [n for n in _LABEL_NAMES if n in names and n != text]
        others = [n for n in names if n != text]
        if not known and text is not None and len(others) == 1 and not optional:
            known = others
        if not known and not optional:
            raise DataError(
                "no label column found",
                f"columns are {listed(names)}",
                "name it with --label_column_name",
                path=source,
            )
        label = known[0] if known and not (optional and columns.label) else None
    if text is None:
        candidates = [n for n in strings if n not in (label, columns.group)]
        known = [n for n in _TEXT_NAMES if n in names] or candidates
        if len(known) != 1 and "text" not in known:
            raise DataError(
                f"cannot tell the text column among {listed(names)}",
                hint="name it with --text_column_name",
                path=source,
            )
        text = known[0]
    return text, label if columns.needs_label else None


def _choose(
    names: list[str], strings: list[str], columns: Columns, source: str
) -> dict[str, str]:
    """Return the columns to read by what they are for: text, label, group."""
    text, label = pick(names, strings, columns, source)
    chosen = {"text": text, "label": label, "group": columns.group}
    wanted = {key: column for key, column in chosen.items() if column is not None}
    for column in wanted.values():
        if column not in names:
            raise DataError(
                f"no column {column!r}",
                f"it has {listed(names)}",
                nearest(column, names).strip(", "),
                path=source,
            )
    return wanted


def from_hub(raw: Dataset, name: str, columns: Columns) -> Source:
    """Make a ``Source`` of one split of a hub data set; check every value."""
    if not len(raw):
        return Source(raw.select_columns([]), name)
    features, names = raw.features, raw.column_names
    strings = [n for n in names if getattr(features[n], "dtype", "") == "string"]
    wanted = _choose(names, strings, columns, name)
    read = {column: raw[column][:] for column in wanted.values()}
    for column, cells in read.items():
        if isinstance(feature := features[column], ClassLabel):
            read[column] = [
                feature.int2str(c) if c is not None and c >= 0 else None for c in cells
            ]
    rows = (
        dict(zip(read, cells, strict=True))
        for cells in zip(*read.values(), strict=True)
    )
    numbered = list(enumerate(rows, 1))
    return _source(numbered, wanted, name, names, columns)


def read_asset(name: str, config: str | None) -> Source:
    """Read ``pypi:rotten-tomatoes``: text, label and group (the movie).

    Configurations: ``reviews`` (fresh or rotten), ``plots``, ``all``.
    """
    configs = {"reviews": ("fresh", "rotten"), "plots": ("plot",)}
    configs["all"] = configs["reviews"] + configs["plots"]
    asset = assets.get(name)
    if asset.kind != "dataset":
        raise ConfigError(f"{name} is a {asset.kind}, not a data set")
    config = config or "all"
    if config not in configs:
        said = f"dataset_config_name of {name} is {config}, expected one of "
        raise ConfigError(said + ", ".join(configs) + nearest(config, configs))
    path = assets.fetch(name) / asset.members[0].name
    with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = [
            row for row in csv.DictReader(stream) if row["category"] in configs[config]
        ]
    values = {
        "text": [row["text"] for row in rows],
        "label": [row["category"] for row in rows],
        "group": [row["movie_name"] for row in rows],
    }
    return Source(_dataset(values), f"{name} ({config})")


def _read_folder(path: Path, columns: Columns, sample_by: str) -> Source:
    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    others = links = 0
    try:
        for folder, folders, names in os.walk(path, onerror=refuse):
            links += sum(Path(folder, name).is_symlink() for name in folders)
            texts = [Path(folder, n) for n in names if n.lower().endswith(".txt")]
            # A link to nothing is read, and refused; a pipe would block.
            texts = [t for t in texts if t.is_file() or not t.exists()]
            others += len(names) - len(texts)
            files += texts
    except OSError as error:
        raise unreadable(error, Path(error.filename)) from error
    counts = {"other file": others, "linked folder": links}
    notes = [
        f"{count:,} {kind}{'s' if count > 1 else ''} passed over"
        for kind, count in counts.items()
        if count
    ]
    if not files:
        raise DataError("a folder without .txt files", "; ".join(notes), path=path)
    lines = [line for file in sorted(files) for line in txt_rows(file, sample_by)]
    source = from_rows(lines, str(path), columns)
    read = f"{len(files):,} files"
    return replace(source, notes=[read, *notes, *source.notes])


def _dataset(values: dict[str, list[str]]) -> Dataset:
    return Dataset.from_dict(
        values, Features({k: Value("large_string") for k in values})
    )


def _notes(names: list[str], wanted: dict[str, str]) -> list[str]:
    unused = [n for n in names if n not in wanted.values()]
    used = [f"{k} = {v!r}" for k, v in wanted.items() if k != v]
    notes = [", ".join(used)] if used else []
    if unused:
        notes.append(f"columns not used: {listed(unused)}")
    return notes


def shorten(value: object) -> str:
    """Return ``repr`` of a value for a message, cut to 80 characters."""
    return escape(repr(value), 80)


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Return names for a message, each quoted; those above ``limit`` are counted."""
    shown = [shorten(name) for name in names]
    more = f" and {len(shown) - limit:,} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def show(split: str, source: Source) -> None:
    """Tell the user what was read for a split."""
    notes = f" ({'; '.join(source.notes)})" if source.notes else ""
    say(f"  {split:<10} {len(source.dataset):>9,} rows of {source.name}{notes}")
