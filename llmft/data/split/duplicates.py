"""Rows that are there twice: within a split, with another label, across splits.

Rows are compared by their prints, so that millions need little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmft.data.read.labels import MULTI, names_in
from llmft.data.read.prints import PAIR
from llmft.data.read.store import BATCH, CHARACTERS, CONTENT, Source, batches, prints_of
from llmft.files import to_json

# Where there are no labels, a line with fewer characters than this (a heading, an
# exclamation) may well occur twice.
SHORT = 32


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


def row_texts(source: Source, between: str = PAIR) -> Iterator[list[str]]:
    """Yield the texts of all rows, a part at a time; ``between`` joins pairs."""
    names = [n for n in CONTENT[:2] if n in source.dataset.column_names]
    data = source.dataset.select_columns(names)
    for batch in batches(data, BATCH, CHARACTERS):
        rows = (between.join(row) for row in zip(*batch.values(), strict=True))
        yield [text.replace("\0", " ") for text in rows]  # NUL separates texts


def prints(source: Source) -> Prints:
    """Return the hashes of all rows; texts of a pair count together."""
    exact, plain, characters = prints_of(source.dataset)
    least = 1 if "label" in source.dataset.column_names else SHORT
    return Prints(exact, plain, characters >= least)


def first_rows(found: Prints, *, exact: bool = False) -> np.ndarray:
    """Return for each row the first one with the same text; int64, ``(rows,)``."""
    keys, rows = found.exact if exact else found.normalised, np.arange(len(found.exact))
    # Sorted first, for few are alike: of 1.5 million 0.09 s, where looking each up took
    # 0.87; where most are, 0.42 instead of 0.12 (AMD EPYC).
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    alike = pc.is_in(pa.array(keys), pa.array(twice))
    near = np.flatnonzero(alike.to_numpy(zero_copy_only=False) & found.compared)
    which = twice.searchsorted(keys[near])
    place = np.empty(len(twice), np.int64)
    place[which[::-1]] = near[::-1]  # of several with one key, the last is kept
    first = rows.copy()
    first[near] = place[which]
    return first


def duplicates(found: Prints) -> Overlap:
    """Return the rows that repeat an earlier one."""
    first = first_rows(found)
    rows = np.flatnonzero(first != np.arange(len(first)))
    alike = found.exact[np.union1d(rows, first[rows])]  # those to the letter, too
    exact = len(alike) - len(np.unique(alike))
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
    # A few rows are soon found among a million, which take a second to be looked up in.
    alike = pc.is_in(pa.array(other.normalised), pa.array(found.normalised))
    near = np.flatnonzero(alike.to_numpy(zero_copy_only=False))
    at = pc.index_in(pa.array(found.normalised), pa.array(other.normalised[near]))
    place = at.fill_null(-1).to_numpy()
    rows = np.flatnonzero((place >= 0) & found.compared)
    exact = np.isin(found.exact[rows], other.exact[near]).sum()
    return Overlap(len(rows), int(exact), np.stack([rows, near[place[rows]]], 1))


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
        for batch in source.dataset.select_columns("label").iter(BATCH)
        for label in batch["label"]
    ]
    return list(places), np.array(codes)
