"""Prints of rows: hashes of 8 bytes that tell which texts are equal, or nearly so.

Two texts are the same where they differ in nothing, or only in case and white space:
$1.50 is not $150, -5 not 5, and C# not C. Prints lie beside what was read, so that
they are made once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256

import numpy as np
import pyarrow as pa

# Columns of what was read: int64 hashes of the text as it is and of ``normalised``, and
# how many characters the latter has. Both texts of a pair count together.
PRINTS = ("exact", "normalised", "characters")
PAIR = "\x01"  # between the two texts of a row, where they are normalised

# Of ASCII: its small letters, and what is no text; \xff is a byte of no text.
_SMALL, _NO_TEXT = bytes(range(256)).lower(), bytes([*range(2, 33), 127])
_END, _END_OF_TEXT = b"\xff", "\ud800"


def normalised(texts: Sequence[str]) -> list[str]:
    """Return texts without case and white space, NUL and \\x01 left as they are.

    NFKC and casefold; then no white space, control or format characters.
    """
    plain = [text.encode() for text in texts if text.isascii()]
    small = _END.join(plain).translate(_SMALL, _NO_TEXT).decode("latin-1")
    done = iter(small.split(_END.decode("latin-1")))
    if len(plain) == len(texts):
        return [*done] if texts else []
    others = [unicodedata.normalize("NFKC", t) for t in texts if not t.isascii()]
    raw = _END_OF_TEXT.join(others).casefold().encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(raw, np.uint32)
    kept = codes[_kept()[codes]].tobytes().decode("utf-32-le", "surrogatepass")
    rest = iter(kept.split(_END_OF_TEXT))
    return [next(done) if text.isascii() else next(rest) for text in texts]


@cache
def _kept() -> np.ndarray:
    """Return which code points are kept, bool; no other planes have such."""
    kept = np.ones(0x110000, bool)
    for code in (*range(2, 0x20000), *range(0xE0000, 0xE1000)):
        kind = unicodedata.category(chr(code))
        kept[code] = kind[0] != "Z" and kind not in ("Cc", "Cf")
    return kept


def row_prints(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, ...]:
    """Return the columns ``PRINTS`` of rows, from their columns of text."""
    rows = texts[0] if len(texts) == 1 else [*map(PAIR.join, zip(*texts, strict=True))]
    read = normalised(rows)
    # The byte \xff stands in no UTF-8: no two pairs are joined to the same.
    raw = (map(str.encode, column) for column in texts)
    exact = _hashes(map(_END.join, zip(*raw, strict=True)))
    sizes = np.array([len(text.strip(PAIR)) for text in read], np.int32)
    return exact, _hashes(map(str.encode, read)), sizes


def _hashes(texts: Iterable[bytes]) -> np.ndarray:
    """Return the first 8 bytes of each SHA-256, int64."""
    digests = b"".join([sha256(text).digest() for text in texts])
    return np.frombuffer(digests, "<i8")[::4].astype(np.int64)


def with_prints(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows with the columns ``PRINTS``."""
    names = [name for name in ("text", "text_pair") if name in batch.schema.names]
    made = row_prints([batch.column(name).to_pylist() for name in names])
    for name, values in zip(PRINTS, made, strict=True):
        batch = batch.append_column(name, pa.array(values))
    return batch
