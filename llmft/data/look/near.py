"""Texts that are nearly the same, by MinHash: an estimate that misses a few.

Two texts are near where they have at least ``THRESHOLD`` of their pieces of
``PIECE`` characters in common (Jaccard), case and white space aside. What a
bucket of hashes brings together is compared piece by piece, so that each pair found
is one; of the pairs at the threshold about 98 % are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmft.data.read.prints import normalised
from llmft.data.read.store import Source
from llmft.data.split.duplicates import SHORT, Prints, first_rows, row_texts

THRESHOLD, PIECE = 0.8, 5
# 1 - (1 - 0.8**4)**8 = 0.985 of the pairs at the threshold share a bucket.
_BANDS, _IN_BAND = 8, 4
_ROWS = 2000  # at a time: their hashes stay in the processor's cache
_PAIRS = 200

Row = tuple[int, int]  # source, row


def near_duplicates(
    sources: Sequence[Source], found: Sequence[Prints]
) -> list[tuple[Row, Row]]:
    """Return rows with an earlier one that is near, each as (source, row).

    Rows that are the same as an earlier one when normalised, and those of fewer than
    ``SHORT`` characters, are left aside. Takes some 200 bytes a row.
    """
    keys, ids = [], []
    for i, (source, prints) in enumerate(zip(sources, found, strict=True)):
        new = prints.compared & (first_rows(prints) == np.arange(len(prints.exact)))
        for before in found[:i]:
            new &= ~np.isin(prints.normalised, before.normalised)
        at = 0
        for texts in row_texts(source):
            read = normalised(texts)
            for start in range(0, len(read), _ROWS):
                part = read[start : start + _ROWS]
                rows = np.flatnonzero(new[at : at + len(part)])
                rows = rows[[len(part[row]) >= SHORT for row in rows]]
                if len(rows):
                    keys.append(_buckets([part[row] for row in rows]))
                    ids.append(np.stack([np.full(len(rows), i), at + rows], 1))
                at += len(part)
    if not keys:
        return []
    rows_of = np.concatenate(ids)
    pairs = rows_of[_together(np.concatenate(keys))]
    near: dict[Row, Row] = {}
    for start in range(0, len(pairs), _PAIRS):
        for later, earlier in _near(pairs[start : start + _PAIRS], sources):
            near.setdefault(later, earlier)
    return sorted(near.items())


def _buckets(texts: Sequence[str]) -> np.ndarray:
    """Return the buckets that texts fall into; uint64, ``(texts, _BANDS)``."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    lengths = np.array([len(text) for text in texts])
    pieces = _pieces(codes)
    whole = np.ones(len(pieces), bool)  # not across the end of a text
    ends = np.cumsum(lengths)[:-1, None] - np.arange(1, PIECE)
    whole[ends.ravel()] = False
    mixed = pieces[whole]  # of whose upper half, after this, all bits decide
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    hashes = (mixed >> np.uint64(32)).astype(np.uint32)
    counts = lengths - PIECE + 1
    starts = np.cumsum(counts) - counts
    draw = np.random.default_rng(0)
    found = np.zeros((len(texts), _BANDS), np.uint64)
    for band in range(_BANDS):
        for _ in range(_IN_BAND):
            factor = np.uint32(draw.integers(2**31) * 2 + 1)
            order = hashes * factor + np.uint32(draw.integers(2**32))
            least = np.minimum.reduceat(order, starts)
            found[:, band] = found[:, band] * np.uint64(0xD1342543DE82EF95) + least
    return found


def _pieces(codes: np.ndarray) -> np.ndarray:
    """Return the hash of each piece of a text, uint64, from its characters, uint32."""
    pieces = np.zeros(len(codes) - PIECE + 1, np.uint64)
    for i in range(PIECE):
        pieces *= np.uint64(0x9E3779B97F4A7C15)
        pieces += codes[i : len(codes) - PIECE + 1 + i]
    return pieces


def _together(keys: np.ndarray) -> np.ndarray:
    """Return (later, earliest) for what shares a bucket in some band, ``(n, 2)``."""
    found = []
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        starts = np.append(True, ~same)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
        later = np.flatnonzero(~starts)
        found.append(np.stack([order[later], order[first[later]]], 1))
    return np.unique(np.concatenate(found), axis=0)


def _near(pairs: np.ndarray, sources: Sequence[Source]) -> Iterator[tuple[Row, Row]]:
    """Yield those of the pairs, ``(n, 2, 2)``, that are near indeed."""
    ids = np.unique(pairs.reshape(-1, 2), axis=0)
    pieces: dict[Row, np.ndarray] = {}
    for i in np.unique(ids[:, 0]):
        rows = ids[ids[:, 0] == i, 1]
        texts = [text for part in row_texts(sources[i].select(rows)) for text in part]
        for row, text in zip(rows, normalised(texts), strict=True):
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            pieces[int(i), int(row)] = np.unique(_pieces(codes))
    for later, earlier in pairs.tolist():
        one, two = pieces[tuple(later)], pieces[tuple(earlier)]
        common = len(np.intersect1d(one, two, assume_unique=True))
        if common >= THRESHOLD * (len(one) + len(two) - common):
            yield tuple(later), tuple(earlier)
