"""From what a user names to the files it stands for."""

from __future__ import annotations

import csv
import glob
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path, PureWindowsPath

from llmft.config.convert import separator
from llmft.config.fields import DataArguments
from llmft.data.read.delimited import Dialect, csv_rows
from llmft.data.read.jsons import json_rows, jsonl_rows
from llmft.data.read.notes import Notes
from llmft.data.read.packed import of_file, plain_suffix, unreadable
from llmft.data.read.tables import table_rows
from llmft.data.read.text import (
    Choose,
    Line,
    choose_encoding,
    require_text,
    txt_rows,
)
from llmft.errors import DataError, DataFormatError, counted, listed, nearest
from llmft.files import placed

STDIN = "-"
# What save_to_disk of datasets writes beside the rows.
_DESCRIBE = {"dataset_info.json", "state.json", "dataset_dict.json"}
_SPLITS = {
    split: re.compile(rf"(?<![a-z])(?:{names})(?:set|data)?(?![a-z])")
    for split, names in {
        "train": "train|training",
        "validation": "validation|validate|valid|val|dev|eval|evaluation",
        "test": "test|testing|holdout|heldout",
    }.items()
}
_ALSO = {"tab": "tsv", "ndjson": "jsonl", "jsonlines": "jsonl"}  # endings
FORMATS = ("csv", "tsv", "json", "jsonl", "txt", "parquet", "arrow")


@dataclass(frozen=True)
class Reading:
    """How to read files; None is what a file's ending and the defaults say.

    ``max_bad_rows`` may be left out, counted, before reading fails.
    """

    file_format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quoting: str = "minimal"
    sample_by: str | None = None
    max_bad_rows: int = 0
    column_names: Sequence[str] | None = None
    no_header: bool = False

    @classmethod
    def of(cls, args: DataArguments) -> Reading:
        """Return how the files of the arguments are read."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls)})

    def dialect(self, file_format: str) -> Dialect:
        """Return how csv is written."""
        usual = "tab" if file_format == "tsv" else "comma"
        quoting = csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL
        options = {"delimiter": separator(self.delimiter or usual), "quoting": quoting}
        names = [n for part in self.column_names or () for n in part.split(",")]
        return Dialect(options, self.delimiter is not None, not self.no_header, names)


def is_pipe(name: str) -> bool:
    """Return whether a name is ``-``, standard input, or a pipe as of ``<(zcat a)``."""
    try:
        return name == STDIN or _expanded(name).is_fifo()
    except OSError:  # a name that is too long
        return False


def _expanded(name: str) -> Path:
    return Path(os.path.expanduser(name))  # that of Path fails for an unknown user


@contextmanager
def named_files(
    name: str, reading: Reading, split: str | None = None
) -> Iterator[tuple[list[Path], list[str], str]]:
    """Yield the files of a name, notes, and what a row of txt is by default.

    The name is a file, a folder with files of one format, a pattern with ``*``, or a
    pipe, which is copied to a temporary file first. Of a folder with files of
    several splits, those of the ``split``.

    Raises:
        DataError: there are none, or a folder holds several formats, or is not clear
            about which of its files are of the split.
    """
    path = _expanded(name)
    if is_pipe(name):
        if reading.file_format is None:
            said = "standard input, or a pipe, does not say its format"
            raise DataFormatError(said, hint="name it with --file_format", path=name)
        if name == STDIN and sys.stdin is None:
            raise DataError("standard input is closed", path=name)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, f"stdin.{reading.file_format}")
            given = nullcontext(sys.stdin.buffer) if name == STDIN else path.open("rb")
            try:
                with given as pipe, open(copy, "wb") as stream:
                    shutil.copyfileobj(pipe, stream)
            except OSError as error:
                raise placed(error, copy) from None
            yield [copy], [], "line"
    elif os.path.isdir(path):
        files, notes = _in_folder(path, reading)
        if split is not None:
            files, notes = _of_split(path, files, notes, split)
        yield files, notes, "document"
    elif os.path.exists(path):
        yield [path], [], "line"
    else:
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        found = [p for p in matches if p.is_file()]
        if not found:
            raise _nowhere(name, path)
        once = {os.path.realpath(p): p for p in reversed(found)}
        files, notes = sorted(once.values()), [counted(len(once), "files")]
        if others := len(found) - len(files):
            notes.append(f"{others:,} other names of them passed over")
        yield files, notes, "line"


def _nowhere(name: str, path: Path) -> DataError:
    """Return the error of a name that no file has, with what it may be instead."""
    here = "" if path.is_absolute() else f", from {Path.cwd()}"
    if "://" in name:
        said, hint = "an address, not a file", "download it, and name the file"
        return DataError(said, hint=hint, path=name)
    if os.path.islink(path):
        said = f"a link to {os.readlink(path)}, which is not there"
        return DataError(said, path=path)
    if "\\" in name and os.sep != "\\":
        other = PureWindowsPath(name).as_posix()
        hint = f"write {other}" if os.path.exists(other) else "check the path"
        said = f"no such file{here}, where \\ separates no folders"
        return DataError(said, hint=hint, path=path)
    near = nearest(path.name, [p.name for p in path.parent.glob("*")])
    said = "no file matches" if glob.has_magic(str(path)) else "no such file"
    return DataError(f"{said}{here}", hint=near.strip(", "), path=path)


def _in_folder(path: Path, reading: Reading) -> tuple[list[Path], list[str]]:
    def refuse(error: OSError) -> None:
        raise error

    formats = (reading.file_format,) if reading.file_format else FORMATS
    files: list[Path] = []
    others = links = 0
    try:
        for folder, folders, names in os.walk(path, onerror=refuse):
            links += sum(Path(folder, name).is_symlink() for name in folders)
            hidden = [name for name in folders if name.startswith(".")]
            others += len(hidden)  # notebooks keep old copies in such folders
            folders[:] = [name for name in folders if name not in hidden]
            shown = [n for n in names if not n.startswith(".") and n not in _DESCRIBE]
            if "state.json" in names:  # of save_to_disk, where map leaves its cache
                shown = [name for name in shown if not name.startswith("cache-")]
            known = [Path(folder, n) for n in shown if format_of(Path(n)) in formats]
            # A link to nothing is read, and refused; a pipe would block.
            known = [p for p in known if p.is_file() or not p.exists()]
            others += len(names) - len(known)
            files += known
    except OSError as error:
        raise unreadable(error, Path(error.filename)) from error
    notes = [
        f"{count:,} {kind}{'s' if count > 1 else ''} passed over"
        for kind, count in {"other file": others, "linked folder": links}.items()
        if count
    ]
    if not files:
        said = f"a folder without files that end in {', '.join(formats)}"
        raise DataError(said, "; ".join(notes), path=path)
    found = Counter(map(format_of, files))
    if len(found) > 1 and reading.file_format is None:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.most_common())
        said = f"a folder of several formats: {kinds}"
        hint = f"read those of one, as by --file_format {found.most_common(1)[0][0]}"
        raise DataError(said, hint=hint, path=path)
    return sorted(files), [counted(len(files), "files"), *notes]


def folder_splits(name: str, reading: Reading) -> Collection[str]:
    """Return the splits that a folder has files of; none where it is all one."""
    path = _expanded(name)
    if is_pipe(name) or not os.path.isdir(path):
        return ()
    return _parts(path, _in_folder(path, reading)[0]).keys() - {""}


def _parts(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of a folder by split, as their names or folders say, or nothing.

    A word of the name is that of the split, as in train.csv, reviews_test_2.csv, or
    test-00000-of-00002.parquet; files of none stand under "". Where none is of
    validation or test, all are one.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        within = file.relative_to(path)
        words = [*within.parts[:-1], *within.name.split(".")]
        told = [s for word in words for s in _SPLITS if _SPLITS[s].search(word.lower())]
        found.setdefault(told[-1] if told else "", []).append(file)
    return found if found.keys() & {"validation", "test"} else {}


def _of_split(
    path: Path, files: list[Path], notes: list[str], split: str
) -> tuple[list[Path], list[str]]:
    """Return the files of a folder that are of a split: never those of another one."""
    found = _parts(path, files)
    if not found:
        return files, notes
    if split not in found:
        shown = ", ".join(f"{len(f):,} of {s or 'no split'}" for s, f in found.items())
        said = f"a folder without files of {split}: it has {shown}"
        hint = f"name those of {split}, as by a pattern with *"
        raise DataError(said, hint=hint, path=path)
    note = f"{counted(len(found[split]), 'files')} of {split}, of {notes[0]}"
    if others := found.get(""):
        note += f"; of no split: {listed([str(f.relative_to(path)) for f in others])}"
    return found[split], [note, *notes[1:]]


def format_of(name: Path) -> str:
    """Return the format that a name's ending says, which may be none of ``FORMATS``."""
    suffix = plain_suffix(name).removeprefix(".")
    return _ALSO.get(suffix, suffix)


def rows_of(
    path: Path,
    reading: Reading,
    sample_by: str,
    choose: Choose,
    notes: Notes,
    left_out: range = range(0),
) -> Iterator[Line]:
    """Return the rows of a file.

    ``choose`` is told of csv and tables which columns there are. Lines ``left_out``
    are, where lines are rows.

    Raises:
        DataError: no such format, or an empty file; while reading, what is wrong. The
            path is left to the caller, who knows what the user named.
    """
    file_format = reading.file_format or format_of(path)
    if file_format not in FORMATS:
        require_text(path)
        raise DataFormatError(
            f"cannot tell the format from the ending {path.suffix or '(none)'}",
            f"expected one of {', '.join(FORMATS)}, or a folder of them",
            "name it with --file_format",
        )
    if not of_file(path, Path.stat).st_size:
        raise DataFormatError("0 bytes", "expected at least one row")
    if file_format in ("parquet", "arrow"):
        return table_rows(path, file_format, choose)
    encoding = choose_encoding(path, reading.encoding, notes)
    if file_format in ("csv", "tsv"):
        return csv_rows(path, encoding, reading.dialect(file_format), choose, notes)
    if file_format == "txt":
        return txt_rows(path, encoding, sample_by, left_out)
    if file_format == "jsonl":
        return jsonl_rows(path, encoding, left_out)
    return json_rows(path, encoding)
