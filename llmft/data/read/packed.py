"""From a packed file to its bytes, with limits against hostile input."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow

from llmft.errors import DataFormatError

# Text packs to a fifth or a tenth; what unpacks to more is made to fill disks.
_MAX_RATIO, _RATIO_FROM = 200, 64 * 2**20
_BLOCK = 2**20
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_MAGIC = {
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "zstd": b"\x28\xb5\x2f\xfd",
    "xz": b"\xfd7zXZ",
}
T = TypeVar("T")


def plain_suffix(path: Path) -> str:
    """Return the ending of a file's format: ``.csv`` of ``a.CSV`` and ``a.csv.gz``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _CODECS else suffix


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file; faults name the place in it."""

    def __init__(self, path: Path) -> None:
        self._path, self._total = path, 0
        self._codec = _CODECS.get(path.suffix.lower())
        self._packed = of_file(path, Path.stat).st_size
        self._file = of_file(path, self._open)

    def _open(self, path: Path) -> Any:
        if self._codec is None:
            return open(path, "rb")
        with open(path, "rb") as stream:
            begin = stream.read(8)
            skipped = self._codec == "zstd" and begin[1:4] == b"\x2a\x4d\x18"
            if not (begin.startswith(_MAGIC[self._codec]) or skipped):
                said = f"not packed by {self._codec}, as its name says"
                ending = path.suffix
                raise DataFormatError(
                    said, hint=f"take {ending} off its name, or pack it"
                )
        if self._codec != "xz":
            # Not by its name, which may be no UTF-8.
            return pyarrow.input_stream(path.open("rb"), compression=self._codec)
        with open(path, "rb") as stream:  # lzma passes over what follows the end
            stream.seek(max(0, self._packed - 4096))
            if not stream.read().rstrip(b"\0").endswith(b"YZ"):
                self._refuse("cut off, or followed by something else")
        return lzma.open(path, "rb")

    def _refuse(self, what: str) -> None:
        said = f"damaged {self._codec} file: {what}"
        said += f", after {self._total:,} unpacked bytes"
        raise DataFormatError(said, hint="copy or pack it again")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._file.read(len(buffer))
        except (OSError, EOFError, lzma.LZMAError, pyarrow.ArrowException) as error:
            if isinstance(error, OSError) and error.errno:
                raise unreadable(error, self._path) from error
            self._refuse(str(error))
        buffer[: len(block)] = block
        self._total += len(block)
        limit = max(_RATIO_FROM, _MAX_RATIO * self._packed)
        if self._codec and self._total > limit:
            said = f"unpacks to more than {_MAX_RATIO} times its {self._packed:,} bytes"
            hint = "unpack it yourself if you trust it"
            raise DataFormatError(said, hint=hint)
        return len(block)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file, unpacked where its ending is gz, bz2, xz or zst.

    Raises:
        DataFormatError: while reading, where it is damaged or unpacks to far too much.
    """
    return io.BufferedReader(_Unpacked(path), _BLOCK)


def of_file(path: Path, read: Callable[[Path], T]) -> T:
    """Return what is read of a file. Raises DataFormatError; see ``unreadable``."""
    try:
        return read(path)
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: Path) -> DataFormatError:
    """Return the fault of a file or folder that the system does not let us read."""
    hint = "check its permissions, or take it out"
    return DataFormatError(f"cannot be read: {error.strerror}", hint=hint, path=path)
