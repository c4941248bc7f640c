"""Rows that are there twice: within a split, with another label, across splits.

Two texts are the same where they differ in nothing, or only in what ``normalised``
takes away. Each row is two hashes of 8 bytes, so that millions need little memory.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from llmft.console import warn
from llmft.data.read.labels import MULTI, REGRESSION
from llmft.data.read.store import CONTENT, Source, batches
from llmft.errors import LeakageError, listed

# Where there are no labels, a line with fewer letters and digits than this (a heading,
# an exclamation) may well occur twice.
SHORT = 32
_MANY_DUPLICATES = 0.01
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
    """Return texts without what readers pass over, NUL and \\x01 left as they are.

    NFKC and casefold; then no white space, punctuation, control or format characters.
    """
    joined = unicodedata.normalize("NFKC", "\0".join(texts)).casefold()
    kept = np.ones(0x110000, bool)
    kept[[ord(c) for c in set(joined) - {"\0", _PAIR} if _passed_over(c)]] = False
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    return codes[kept[codes]].tobytes().decode("utf-32-le").split("\0")


def _passed_over(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "PZ" or kind in ("Cc", "Cf")


def row_texts(source: Source, between: str = _PAIR) -> Iterator[list[str]]:
    """Yield the texts of all rows, a part at a time; ``between`` joins pairs."""
    names = [n for n in CONTENT[:2] if n in source.dataset.column_names]
    data = source.dataset.select_columns(names)
    for batch in batches(data, _BATCH, _CHARACTERS):
        yield [between.join(row) for row in zip(*batch.values(), strict=True)]


def prints(source: Source) -> Prints:
    """Return the hashes of all rows; texts of a pair count together."""
    data = source.dataset
    least = 1 if "label" in data.column_names else SHORT
    exact = np.empty(len(data), np.int64)
    plain, compared = exact.copy(), np.empty(len(data), bool)
    at = 0
    for texts in row_texts(source):
        for text, read in zip(texts, normalised(texts), strict=True):
            exact[at] = hash(text)
            # Of nothing but punctuation, every character counts.
            bare = not read.strip(_PAIR)
            plain[at] = exact[at] if bare else hash(read)
            length = len(text.replace(_PAIR, " ").strip()) if bare else len(read)
            compared[at] = length >= least
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

    Args:
        labels: one a row, as ``labels_of`` gives them.
        exact: whether texts have to be the same in every character.
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
    """Return the labels that occur and, of each row, the place of its own; int64."""
    places: dict[str, int] = {}
    if "label" not in source.dataset.column_names:
        return [], np.empty(0, np.int64)
    codes = [
        places.setdefault(label, len(places))
        for batch in source.dataset.select_columns("label").iter(_BATCH)
        for label in batch["label"]
    ]
    return list(places), np.array(codes)


def places(pairs: np.ndarray, of: Source, other: Source, sign: str = "=") -> str:
    """Return three pairs of rows as path:line = path:line, for a message."""
    shown = [f"{of.place(int(a))} {sign} {other.place(int(b))}" for a, b in pairs[:3]]
    return ", ".join(shown) + (", ..." if len(pairs) > 3 else "")


@dataclass(frozen=True)
class Audit:
    """What the audit of a run found: notes and counts for ``run.json``, by split."""

    notes: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_splits(
    sources: Mapping[str, Source],
    *,
    own: Collection[str] = (),
    noted: bool = False,
    allow: Collection[str] = (),
) -> Audit:
    """Look for duplicates, conflicting labels and leakage in the parts of a run.

    Args:
        sources: by split; train first.
        own: splits that the user made: their overlap with train is an error, that of
            others, which nobody can mend here, a warning.
        noted: overlap gives a note only.
        allow: may hold ``leakage``.

    Raises:
        LeakageError: rows of an own split are in train too.
    """
    found = {split: prints(source) for split, source in sources.items()}
    labels = {split: labels_of(source) for split, source in sources.items()}
    audit = Audit({s: [] for s in sources}, {s: {} for s in sources})
    leaks: list[str] = []
    for split, source in sources.items():
        _repeats(split, source, found[split], labels[split], audit)
    for other, split in combinations(sources, 2):
        both = overlap(found[split], found[other])
        if not both.rows:
            continue
        aside = "" if labels[split][0] else f" (rows below {SHORT} letters aside)"
        said = (
            f"{both.rows:,} of {len(sources[split].dataset):,} rows of {split} are in"
            f" {other} too{aside}, {both.exact:,} of them to the letter:"
            f" {places(both.pairs, sources[split], sources[other])}"
        )
        counts = audit.counts[split].setdefault("also_in", {})
        counts[other] = {"rows": both.rows, "exact": both.exact}
        if noted:
            audit.notes[split].append(f"rows also in {other}: {both.rows:,}")
        elif other == "train" and {split, other} <= {*own} and "leakage" not in allow:
            leaks.append(said)
        else:
            warn(f"{said}; metrics on {split} look better than they are")
    if leaks:
        raise LeakageError(
            "; ".join(leaks),
            "expected rows that training does not see",
            "take them out on one side; --allow leakage goes on all the same",
        )
    _absent_classes(
        {s: classes_of(source, labels[s][0]) for s, source in sources.items()}
    )
    return audit


def _repeats(
    split: str,
    source: Source,
    found: Prints,
    labels: tuple[list[str], np.ndarray],
    audit: Audit,
) -> None:
    """Note the rows of a split that repeat another; warn where they are many."""
    total, twice = len(source.dataset), duplicates(found)
    notes, counts = audit.notes[split], audit.counts[split]
    if twice.rows:
        counts["duplicates"] = {"rows": twice.rows, "exact": twice.exact}
        aside = "" if labels[0] else f" of {SHORT} letters or more"
        notes.append(f"duplicates{aside}: {twice.rows:,}")
    if split == "train" and twice.rows > _MANY_DUPLICATES * total:
        warn(
            f"train: {twice.rows:,} of {total:,} rows"
            f" ({100 * twice.rows / total:.2g} %) repeat an earlier one,"
            f" {twice.exact:,} of them to the letter:"
            f" {places(twice.pairs, source, source)}; they weigh more than others"
        )
    names, of_rows = labels
    pairs = conflicts(found, of_rows) if names else np.empty((0, 2), int)
    if len(pairs):
        counts["conflicting_texts"] = len(np.unique(pairs[:, 1]))
        label = "score" if source.problem_type == REGRESSION else "label"
        warn(
            f"{split}: texts with more than one {label}:"
            f" {counts['conflicting_texts']:,}: {places(pairs, source, source, '/')};"
            " no model can get all of these rows right"
        )


def _absent_classes(classes: dict[str, set[str]]) -> None:
    """Warn of classes of train that a split has no row of: no metric covers them."""
    trained = classes.pop("train", set())
    for split, known in classes.items():
        absent = sorted(trained - known)
        if absent and known:
            warn(
                f"classes of train that {split} has no row of: {len(absent):,}:"
                f" {listed(absent, 5)}; its metrics say nothing about them"
            )


def classes_of(source: Source, names: Sequence[str]) -> set[str]:
    """Return the classes among the labels that occur; scores are none."""
    if source.problem_type == REGRESSION:
        return set()
    if source.problem_type == MULTI:
        return {part for name in names for part in json.loads(name)}
    return {*names}
