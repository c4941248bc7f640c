"""Rows that are there twice: within a split, with another label, across splits.

Two texts are the same where they differ in nothing, or only in case and white space:
$1.50 is not $150, -5 not 5, and C# not C. Each row is two hashes of 8 bytes, so that
millions need little memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from llmft.data.read.labels import MULTI, names_in
from llmft.data.read.store import CONTENT, Source, batches
from llmft.files import to_json

# Where there are no labels, a line with fewer characters than this (a heading, an
# exclamation) may well occur twice.
SHORT = 32
_BATCH = 10_000  # rows at a time, and
_CHARACTERS = 2**21  # about as many characters at the most
_PAIR = "\x01"  # between the two texts of a row; no text holds a NUL


@dataclass(frozen=True)
class Prints:
    """Hashes of the rows of a source.

    Attributes:
        exact, normalised: int64, of the text as it is and of ``normalised``.
        compared: bool; empty rows are not, nor short ones where there are no labels.
    """

    exact: np.ndarray
    normalised: np.ndarray
    compared: np.ndarray


@dataclass(frozen=True)
class Overlap:
    """Rows of one source that an earlier row, or another source, has too.

    ``exact`` of them are the same in every character. ``pairs`` holds each row with
    the first of those it repeats, ``(n, 2)``.
    """

    rows: int
    exact: int
    pairs: np.ndarray


def normalised(texts: Sequence[str]) -> list[str]:
    """Return texts without case and white space, NUL and \\x01 left as they are.

    NFKC and casefold; then no white space, control or format characters.
    """
    joined = unicodedata.normalize("NFKC", "\0".join(texts)).casefold()
    kept = np.ones(0x110000, bool)
    kept[[ord(c) for c in set(joined) - {"\0", _PAIR} if _passed_over(c)]] = False
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    return codes[kept[codes]].tobytes().decode("utf-32-le").split("\0")


def _passed_over(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] == "Z" or kind in ("Cc", "Cf")


def row_texts(source: Source, between: str = _PAIR) -> Iterator[list[str]]:
    """Yield the texts of all rows, a part at a time; ``between`` joins pairs."""
    names = [n for n in CONTENT[:2] if n in source.dataset.column_names]
    data = source.dataset.select_columns(names)
    for batch in batches(data, _BATCH, _CHARACTERS):
        rows = (between.join(row) for row in zip(*batch.values(), strict=True))
        yield [text.replace("\0", " ") for text in rows]  # NUL separates texts


def prints(source: Source) -> Prints:
    """Return the hashes of all rows; texts of a pair count together."""
    data = source.dataset
    least = 1 if "label" in data.column_names else SHORT
    exact = np.empty(len(data), np.int64)
    plain, compared = exact.copy(), np.empty(len(data), bool)
    at = 0
    for texts in row_texts(source):
        for text, read in zip(texts, normalised(texts), strict=True):
            exact[at], plain[at] = hash(text), hash(read)
            compared[at] = len(read.strip(_PAIR)) >= least
            at += 1
    return Prints(exact, plain, compared)


def first_rows(found: Prints, *, exact: bool = False) -> np.ndarray:
    """Return for each row the first one with the same text; int64, ``(rows,)``."""
    keys = found.exact if exact else found.normalised
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return np.where(found.compared, first[which], np.arange(len(keys)))


def duplicates(found: Prints) -> Overlap:
    """Return the rows that repeat an earlier one."""
    first, every = first_rows(found), np.arange(len(found.exact))
    rows = np.flatnonzero(first != every)
    exact = int((first_rows(found, exact=True) != every).sum())
    return Overlap(len(rows), exact, np.stack([rows, first[rows]], 1))


def conflicts(found: Prints, labels: np.ndarray, *, exact: bool = True) -> np.ndarray:
    """Return rows whose label is not that of the first with their text, ``(n, 2)``.

    ``labels`` are those of ``labels_of``; ``exact`` texts are the same to the letter.
    """
    first = first_rows(found, exact=exact)
    rows = np.flatnonzero(labels != labels[first])
    return np.stack([rows, first[rows]], 1)


def overlap(found: Prints, other: Prints) -> Overlap:
    """Return the rows of ``found`` that ``other`` has too."""
    known, first = np.unique(other.normalised, return_index=True)
    values, which = np.unique(found.normalised, return_inverse=True)
    at = np.searchsorted(known, values)  # both in order: one pass through memory
    at[known[np.minimum(at, len(known) - 1)] != values] = -1
    at = at[which]
    rows = np.flatnonzero((at >= 0) & found.compared)
    exact = np.isin(found.exact[rows], other.exact).sum()
    return Overlap(len(rows), int(exact), np.stack([rows, first[at[rows]]], 1))


def labels_of(source: Source) -> tuple[list[str], np.ndarray]:
    """Return the labels that occur and, of each row, the place of its own; int64.

    Several labels of a row are the same in any order.
    """
    places: dict[str, int] = {}
    if "label" not in source.dataset.column_names:
        return [], np.empty(0, np.int64)

    @cache
    def place(label: str) -> int:
        if source.problem_type == MULTI and label is not None:
            label = to_json(sorted({*names_in(label)}))
        return places.setdefault(label, len(places))

    codes = [
        place(label)
        for batch in source.dataset.select_columns("label").iter(_BATCH)
        for label in batch["label"]
    ]
    return list(places), np.array(codes)
