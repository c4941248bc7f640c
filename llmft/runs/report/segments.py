"""Groups of rows that a model answers worse than the rest, told from chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import hypergeom

from llmft.metrics.intervals import CLEAR, NORMAL, wilson
from llmft.runs.report.answers import MULTI, REGRESSION, SINGLE, Answers, places_of

FEWEST = 10  # rows of a group that is looked at
_PARTS = 4  # groups of about equal size, of lengths and of places in a file


@dataclass(frozen=True)
class Segment:
    """A group of rows.

    Attributes:
        what: the kind of group. name: which one. n: its rows.
        value: its share of mistakes, or its mean absolute error.
        rest: that of all other rows.
        limits: of 95 %, of ``value``.
        chance: how probable so large a value is where the group is like the rest.
    """

    what: str
    name: str
    n: int
    value: float
    rest: float
    limits: tuple[float, float]
    chance: float


def segments(answers: Answers) -> list[Segment]:
    """Return the groups that were looked at, the most striking first."""
    if answers.kind == REGRESSION:
        off = np.abs(answers.said - answers.given)
    else:
        off = (~answers.right).astype(float)
    found = [
        _segment(what, name, rows, off, shares=answers.kind != REGRESSION)
        for what, name, rows in _groups(answers)
        if FEWEST <= len(rows) <= len(off) - FEWEST
    ]
    return sorted(found, key=lambda s: (s.chance, -s.value))


def weak(found: Sequence[Segment]) -> list[Segment]:
    """Return those that chance does not explain, among as many as were looked at.

    A single one counts from ``CLEAR`` standard errors on; of k groups each must be k
    times as improbable (Bonferroni).
    """
    least = float(ndtr(-CLEAR)) / max(1, len(found))
    return [segment for segment in found if segment.chance < least]


def standard_errors(found: Sequence[Segment]) -> float:
    """Return the standard errors that a weak one of so many groups is off by."""
    return -float(ndtri(ndtr(-CLEAR) / max(1, len(found))))


def _segment(
    what: str, name: str, rows: Sequence[int], off: np.ndarray, shares: bool
) -> Segment:
    inside = np.zeros(len(off), bool)
    inside[list(rows)] = True
    one, other = off[inside], off[~inside]
    value, rest = float(one.mean()), float(other.mean())
    if shares:
        limits = wilson(float(one.sum()), len(one))
        # So many mistakes or more among as many rows drawn of all: Fisher's exact test.
        chance = float(hypergeom.sf(one.sum() - 1, len(off), off.sum(), len(one)))
    else:
        own = one.var(ddof=1) / len(one)
        half, both = NORMAL * math.sqrt(own), own + other.var(ddof=1) / len(other)
        limits = (value - half, value + half)
        chance = float(ndtr((rest - value) / math.sqrt(both))) if both else 1.0
    return Segment(what, name, len(one), value, rest, limits, chance)


def _groups(answers: Answers) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yield kind, name and rows of each group."""
    texts = [
        " ".join(str(row[n]) for n in ("text", "text_pair") if row.get(n))
        for row in answers.rows
    ]
    yield from _in_parts("length in words", [len(text.split()) for text in texts])
    if answers.kind == SINGLE:
        for place, rows in places_of(answers.given.tolist()).items():
            yield "label", answers.names[place], rows
    elif answers.kind == MULTI:
        for place, name in enumerate(answers.names):
            yield (
                "has the label",
                name,
                np.flatnonzero(answers.given[:, place]).tolist(),
            )
        yield from _in_parts("labels of the text", answers.given.sum(1).tolist())
    else:
        yield from _in_parts("number", answers.given.tolist())
    unknown = [i for i, row in enumerate(answers.rows) if row.get("unknown_tokens")]
    yield "unknown tokens", "1 or more", unknown
    paths = [row.get("path") for row in answers.rows]
    by_path = places_of(paths)
    for path, rows in by_path.items():
        if len(by_path) > 1:
            yield "file", str(path), rows
        lines = [answers.rows[i].get("line") for i in rows]
        if all(isinstance(line, int) for line in lines):
            what = "lines" if len(by_path) == 1 else f"lines of {path}"
            for _, name, inner in _in_parts(what, lines):
                yield what, name, [rows[i] for i in inner]
    if "fold" in answers.rows[0]:
        for fold, rows in places_of(answers.column("fold")).items():
            yield "fold", str(fold), rows


def _in_parts(
    what: str, values: Sequence[float | None]
) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Yield the rows in ranges of a value, each with about as many."""
    x = np.asarray(values, float)
    limits = np.unique(np.quantile(x, np.linspace(0, 1, _PARTS + 1)))
    for low, high in pairwise(limits):
        top = high == limits[-1]
        rows = np.flatnonzero((x >= low) & ((x <= high) if top else (x < high)))
        if not len(rows):
            continue
        ends = x[rows].min(), x[rows].max()
        shown = " to ".join(
            f"{end:,.4g}" if end < 1e4 else f"{end:,.0f}" for end in ends
        )
        yield what, shown, rows.tolist()
