"""From a file to its text: encodings, and limits against hostile input.

Nothing is guessed: text is UTF-8, or what its byte-order mark says, unless
``--encoding`` says otherwise. Where it is not, the error names what the file looks
like; ``--encoding auto`` takes that guess. A file of which most is in its encoding has
damaged rows: a byte that cannot be decoded stays in the text as half of a character,
which ``require_clean`` refuses.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import chardet

from llmft.config.convert import text_encoding
from llmft.data.read.notes import Notes
from llmft.data.read.packed import open_bytes
from llmft.errors import DataError, DataFormatError, EncodingError, escape

MAX_LINE = 16 * 2**20  # characters of a line of text, or of a field
MAX_DOCUMENT = 256 * 2**20  # characters of a file that is one text
_BLOCK = 2**20
# What files that are no text begin with, and what to do about them.
_KINDS = {
    b"PK\x03\x04": ("an Excel workbook or another zip file", "export it as csv"),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "export it as csv"),
    b"\x1f\x8b": ("packed by gzip", "give it an ending such as .csv.gz"),
    b"BZh": ("packed by bzip2", "give it an ending such as .csv.bz2"),
    b"\xfd7zXZ\0": ("packed by xz", "give it an ending such as .csv.xz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "give it an ending such as .csv.zst"),
    b"PAR1": ("a parquet file", "add --file_format parquet"),
    b"ARROW1": ("an arrow file", "add --file_format arrow"),
    b"SQLite format 3": ("a SQLite database", "export a table as csv"),
    b"%PDF": ("a PDF", "extract its text"),
    b"\x89PNG": ("a PNG image", "name a file of text"),
    b"\xff\xd8\xff": ("a JPEG image", "name a file of text"),
    b"\x7fELF": ("a program", "name a file of text"),
}
_NAME_IT = "name it with --encoding, or save the file as UTF-8"
_BY_ITSELF = (
    "leave out --encoding; of files in several, --encoding auto reads each as it is"
)
_SAMPLE = 2**18  # bytes of lines that are not ASCII, to guess an encoding from
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# A row by the names of its columns; None: an empty line; an error: a row that is none.
Row = dict[str, Any]
Line = tuple[int, Row | DataError | None]
# Is given all names of columns, those of text (None: rows will tell), and some rows of
# the latter; returns the names to read.
Choose = Callable[[list[str], list[str] | None, Sequence[Row]], list[str]]
TOO_LONG = "\udfff"  # stands for a line of more than MAX_LINE; no text holds it
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")  # a byte, as surrogateescape keeps it


def is_text(text: str) -> bool:
    """Return whether UTF-8 can write all of it: it holds no half of a character."""
    try:
        return text.isascii() or bool(text.encode())  # a third of a search's time
    except UnicodeEncodeError:
        return False


def require_clean(text: str, name: str, nul: bool = False) -> None:
    """Raise DataError, without a place, for what is no text.

    That is a byte that was not decoded, half of a character, and NUL unless ``nul``.
    """
    if not is_text(text):
        found = _LONE_SURROGATE.search(text)
        assert found is not None
        if found[0] == TOO_LONG:
            raise too_long()
        if _UNDECODED.match(found[0]):
            at, byte = found.start() + 1, ord(found[0]) - 0xDC00
            said = f"{name} holds byte 0x{byte:02x}, which is not of its encoding,"
            said += f" as character {at:,}"
            raise EncodingError(said, f"near {_around(text, at - 1)!r}", "mend it")
        said = f"{name} holds half of a character (a lone surrogate)"  # of JSON escapes
        raise DataFormatError(said, "expected text that UTF-8 can write")
    if "\0" in text and not nul:
        said = f"{name} holds a NUL byte, as character {text.index(chr(0)) + 1:,}"
        raise DataFormatError(said, "expected text", "take it out, or --allow nul")


def too_long() -> DataFormatError:
    """Return the error of a line, or a field, that is too long."""
    said = f"a line of more than {MAX_LINE:,} characters"
    return DataFormatError(said, hint="break it into lines; is this a text file?")


def _around(text: str, at: int) -> str:
    shown = _UNDECODED.sub("\ufffd", text[max(0, at - 25) : at + 30])
    return escape(shown.strip(), 60)


def text_lines(
    path: Path, encoding: str, newline: str = "\n", before: int = 0
) -> Iterator[str]:
    """Yield the lines of a text file with their ends, which are \\n and nothing else.

    With ``newline=""`` a lone \\r ends a line too. A byte-order mark is left out.
    The first ``before`` of them are passed over as fast as they are read.
    ``TOO_LONG`` takes the place of a line of more than 16 Mi characters, whose rest is
    passed over before it is read.

    Raises:
        EncodingError: more is not ``encoding`` than is, with the first line.
    """
    damaged = False
    with _text(path, encoding, newline, before) as text:
        while line := text.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                while line and line[-1] not in "\r\n":
                    line = text.readline(MAX_LINE)
                line = TOO_LONG + "\n"
            elif not (line.isascii() or damaged or is_text(line)):
                require_decodable(path, encoding)
                damaged = True  # that was a look at all of the file
            yield line


def whole_text(path: Path, encoding: str) -> str:
    """Return all of a text file, at most 256 Mi characters; raises as above."""
    with _text(path, encoding, "") as text:
        found = text.read(MAX_DOCUMENT + 1)
    if not is_text(found):
        require_decodable(path, encoding)
    if len(found) > MAX_DOCUMENT:
        said = f"more than {MAX_DOCUMENT:,} characters in one piece"
        raise DataFormatError(said, hint="use jsonl, or --sample_by line")
    return found


def numbered_lines(
    path: Path, encoding: str, left_out: range = range(0)
) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers from 1, without those ``left_out``."""
    if left_out:
        lines = enumerate(text_lines(path, encoding), 1)
        yield from islice(lines, left_out.start - 1)
    before = left_out.stop - 1 if left_out else 0
    yield from enumerate(text_lines(path, encoding, before=before), before + 1)


def txt_rows(
    path: Path, encoding: str, sample_by: str, left_out: range = range(0)
) -> Iterator[Line]:
    """Yield each line, or with ``sample_by`` document all of them, as a row."""
    if sample_by == "document":
        text = whole_text(path, encoding)
        yield 1, {"text": text} if text.strip() else None
        return
    for number, line in numbered_lines(path, encoding, left_out):
        text = line.removesuffix("\n").removesuffix("\r")
        row: Row | DataError | None = {"text": text} if text.strip() else None
        yield number, too_long() if text == TOO_LONG else row


@contextmanager
def _text(
    path: Path, encoding: str, newline: str, before: int = 0
) -> Iterator[io.TextIOWrapper]:
    """Open a text file after its byte-order mark, which these codecs take for text."""
    with open_bytes(path) as stream:
        if encoding.startswith(("utf-8", "utf-16-", "utf-32-")):
            mark = "\ufeff".encode(encoding)
            stream.read(len(mark) * stream.peek(len(mark)).startswith(mark))
        ascii_like = "\n\r".encode(encoding)[-2:] == b"\n\r"
        if ascii_like:
            _pass_over(stream, before)
        try:
            text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline)
            if not ascii_like:
                deque(islice(text, before), 0)
            yield text
        except UnicodeError:  # also that of UTF-16 without its mark
            raise _not_decoded(path, encoding) from None


def _pass_over(stream: io.BufferedReader, lines: int) -> None:
    """Read so many lines; a gigabyte a second."""
    while lines and (block := stream.peek()):
        count, end = block.count(b"\n"), len(block)
        if count >= lines:
            end = 0
            for _ in range(lines):
                end = block.index(b"\n", end) + 1
        stream.read(end)
        lines -= min(count, lines)


def require_text(path: Path) -> bytes:
    """Return the start of a file. Raises DataFormatError where it is none of text."""
    with open_bytes(path) as stream:
        start = stream.read(4096)
    for magic, (kind, hint) in _KINDS.items():
        if start.startswith(magic):
            raise DataFormatError(f"{kind}, not text", hint=hint)
    return start


def choose_encoding(path: Path, encoding: str | None, notes: Notes) -> str:
    """Return the encoding to read a file in; note it where it is not plain UTF-8.

    ``auto`` takes the guess over the whole file, else ``encoding`` is taken as it is;
    None is what a byte-order mark says, else UTF-8.

    Raises:
        DataFormatError: the file is none of text.
        EncodingError: UTF-16 without its mark where UTF-8 is expected, or with it where
            another encoding is; or nothing can be guessed.
        ValueError: there is no such encoding.
    """
    start = require_text(path)
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "")
    if encoding == "auto":
        guess = marked or _guess(path)
        if guess is None:
            raise EncodingError("its encoding cannot be told", hint=_NAME_IT)
        if guess != "utf-8":
            notes.tell(f"looks like {guess}, read so")
        return guess
    if marked and encoding is None:
        notes.add(f"read as {marked}, by its byte-order mark")
        return marked
    name = text_encoding(encoding or "utf-8")
    if name == "utf-8-sig":
        encoding, name = None, "utf-8"  # the same: a mark is read over
    if marked and marked[:6] != name[:6]:
        said = f"{marked.upper()}, by its byte-order mark, not {name}"
        raise _wrong(path, said, marked)
    if encoding is not None and name != "utf-8":
        # Never so by chance.
        if _first_fault(path, "ascii") and not _first_fault(path, "utf-8"):
            raise EncodingError(f"it is UTF-8, not {name}", hint=_BY_ITSELF)
        notes.tell(f"read as {name}")
        return name
    if utf16 := _looks_like_utf16(start):
        raise _wrong(path, f"looks like {utf16}: every other byte is NUL", utf16)
    if start.startswith(codecs.BOM_UTF8):
        notes.tell("byte-order mark left out")
    return name


def in_unicode(path: Path) -> bool:
    """Return whether a file is UTF-16 by its mark, or UTF-8 with more than ASCII.

    Also where some bytes are damaged: then reading it as UTF-8 says where.
    """
    with open_bytes(path) as stream:
        start = stream.read(4)
    if any(start.startswith(mark) for mark in _MARKS):
        return True
    return bool(_first_fault(path, "ascii")) and _mostly(path, "utf-8")


def _looks_like_utf16(start: bytes) -> str | None:
    """Return utf-16-le or utf-16-be where every other byte of the start is NUL."""
    pairs = len(start) // 2
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        if pairs > 1 and start[first::2].count(0) > 0.4 * pairs:
            if start[1 - first :: 2].count(0) < 0.1 * pairs:
                return name
    return None


def _guess(path: Path) -> str | None:
    """Return the likeliest encoding that all of a file can be read in."""
    with open_bytes(path) as stream:
        utf16 = _looks_like_utf16(stream.read(4096))
    if utf16 or _mostly(path, "utf-8"):
        return utf16 or "utf-8"
    sample, size = [], 0
    with open_bytes(path) as stream:
        while size < _SAMPLE and (line := stream.readline(_BLOCK)):
            if not line.isascii():
                sample.append(line)
                size += len(line)
    raw, eras = b"".join(sample), chardet.EncodingEra
    # What is still in use comes first: a short German text fits MacTurkish as well.
    for era in (eras.MODERN_WEB, eras.ALL):
        for guess in chardet.detect_all(raw, encoding_era=era):
            name = guess["encoding"] and text_encoding(guess["encoding"])
            if name and _first_fault(path, name) is None:
                return name
    return None


def _first_fault(path: Path, encoding: str) -> tuple[int, int, int] | None:
    """Return byte offset, line and value of the first byte that cannot be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read = lines = 0
    with open_bytes(path) as stream:
        while True:
            block = stream.read(_BLOCK)
            kept = decoder.getstate()[0]
            try:
                lines += decoder.decode(block, final=not block).count("\n")
            except UnicodeError as error:
                if not isinstance(error, UnicodeDecodeError):
                    return 0, 1, block[0]
                held = kept + block
                before = held[: error.start].decode(encoding, "ignore")
                at = min(error.start, len(held) - 1)
                offset = read - len(kept) + error.start
                return offset, lines + before.count("\n") + 1, held[at]
            if not block:
                return None
            read += len(block)


def _mostly(path: Path, encoding: str) -> bool:
    """Return whether of what is not ASCII in a file more is in an encoding than not."""
    decoder, good, bad = codecs.getincrementaldecoder(encoding)("surrogateescape"), 0, 0
    with open_bytes(path) as stream:
        while block := stream.read(_BLOCK):
            try:
                text = decoder.decode(block)
            except UnicodeError:  # UTF-16 without its mark
                return False
            if not text.isascii():
                undecoded = len(_UNDECODED.findall(text))
                bad += undecoded
                good += len(text) - len(text.encode("ascii", "ignore")) - undecoded
    return good > bad or not bad


def require_decodable(path: Path, encoding: str) -> None:
    """Raise EncodingError where most of a file, but for ASCII, is of another one."""
    if not _mostly(path, encoding):
        raise _not_decoded(path, encoding)


def _not_decoded(path: Path, encoding: str) -> EncodingError:
    offset, line, byte = _first_fault(path, encoding) or (0, 1, 0)
    said = f"byte 0x{byte:02x} at offset {offset:,} is not {encoding.upper()}"
    guess = _guess(path)
    return _wrong(path, said, guess if guess != encoding else None, line)


def _wrong(
    path: Path, said: str, guess: str | None, line: int | None = None
) -> EncodingError:
    """Return the error of a file in another encoding, and how a line of it reads."""
    hint = _NAME_IT
    if guess is not None:
        hint = f"add --encoding {guess}"
        if line is not None:
            reads = next(islice(text_lines(path, guess), line - 1, None), "")
            # What is around its first character that is not ASCII.
            at = next((i for i, c in enumerate(reads) if ord(c) > 127), 0)
            hint += f", if this is right: {_around(reads, at)!r}"
    expected = f"the file looks like {guess}" if guess and line else "expected UTF-8"
    error = EncodingError(said, expected, hint, line=line)
    error.guess = guess
    return error
