"""From what a user names to the files it stands for."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from llmft.data.read.delimited import FORMATS, Reading
from llmft.data.read.text import plain_suffix, unreadable
from llmft.errors import DataError, DataFormatError, listed, nearest
from llmft.files import placed

STDIN = "-"


def is_pipe(name: str) -> bool:
    """Return whether a name is ``-``, standard input, or a pipe as of ``<(zcat a)``."""
    if name == STDIN:
        return True
    try:
        return _expanded(name).is_fifo()
    except OSError:  # a name that is too long
        return False


def _expanded(name: str) -> Path:
    return Path(os.path.expanduser(name))  # that of Path fails for an unknown user


@contextmanager
def named_files(
    name: str, reading: Reading
) -> Iterator[tuple[list[Path], list[str], str]]:
    """Yield the files of a name, notes, and what a row of txt is by default.

    The name is a file, a folder with files of one format, a pattern with ``*``, or a
    pipe, which is copied to a temporary file first.

    Raises:
        DataError: there are none, or a folder holds several formats.
    """
    path = _expanded(name)
    if is_pipe(name):
        if reading.file_format is None:
            said = "standard input, or a pipe, does not say its format"
            raise DataFormatError(said, hint="name it with --file_format", path=name)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            copy = Path(folder, f"stdin.{reading.file_format}")
            if name == STDIN and sys.stdin is None:
                raise DataError("standard input is closed", path=name)
            pipe: IO[bytes] = sys.stdin.buffer
            if name != STDIN:
                pipe = stack.enter_context(open(path, "rb"))
            try:
                with open(copy, "wb") as stream:
                    shutil.copyfileobj(pipe, stream)
            except OSError as error:
                raise placed(error, copy) from None
            yield [copy], [], "line"
    elif os.path.isdir(path):
        files, notes = _in_folder(path, reading)
        yield files, notes, "document"
    elif os.path.exists(path):
        yield [path], [], "line"
    else:
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        found = [p for p in matches if p.is_file()]
        if not found:
            raise _none(path)
        once = {os.path.realpath(p): p for p in reversed(found)}
        files, notes = sorted(once.values()), [f"{len(once):,} files"]
        if len(files) < len(found):
            said = f"{len(found) - len(files):,} other names of them passed over"
            notes.append(said)
        yield files, notes, "line"


def _none(path: Path) -> DataError:
    is_pattern = glob.has_magic(str(path))
    near = nearest(path.name, [p.name for p in path.parent.glob("*")])
    said = "no file matches" if is_pattern else "no such file"
    if path.is_absolute():
        return DataError(said, hint=near.strip(", "), path=path)
    return DataError(f"{said}, from {Path.cwd()}", hint=near.strip(", "), path=path)


def _in_folder(path: Path, reading: Reading) -> tuple[list[Path], list[str]]:
    def refuse(error: OSError) -> None:
        raise error

    described = path / "dataset_dict.json"
    if described.is_file():  # of save_to_disk: train and test would become one
        splits = listed(sorted(p.name for p in path.iterdir() if p.is_dir()))
        said = f"a folder of several splits: {splits}"
        raise DataError(said, hint=f"name the folder of one: {path}/SPLIT", path=path)
    files: list[Path] = []
    others = links = 0
    try:
        for folder, folders, names in os.walk(path, onerror=refuse):
            links += sum(Path(folder, name).is_symlink() for name in folders)
            hidden = [name for name in folders if name.startswith(".")]
            others += len(hidden)  # notebooks keep old copies in such folders
            folders[:] = [name for name in folders if name not in hidden]
            shown = [n for n in names if not n.startswith(".")]
            known = [Path(folder, n) for n in shown if _known(Path(n), reading)]
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
        wanted = reading.file_format or ", ".join(FORMATS)
        said = f"a folder without files that end in {wanted}"
        raise DataError(said, "; ".join(notes), path=path)
    found = Counter(plain_suffix(file).removeprefix(".") for file in files)
    if len(found) > 1 and reading.file_format is None:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.most_common())
        # What save_to_disk of datasets leaves is one arrow file among json ones.
        first = "arrow" if found["arrow"] else found.most_common(1)[0][0]
        raise DataError(
            f"a folder of several formats: {kinds}",
            hint=f"read those of one, as by --file_format {first}",
            path=path,
        )
    return sorted(files), [f"{len(files):,} files", *notes]


def _known(name: Path, reading: Reading) -> bool:
    suffix = plain_suffix(name).removeprefix(".")
    suffix = "tsv" if suffix == "tab" else suffix
    return suffix in FORMATS and reading.file_format in (None, suffix)
