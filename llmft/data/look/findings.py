"""What is odd about data, and the one wording of it.

A finding is told in one line in a run, and at length by ``llmft data``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llmft.data.look.profile import Profile, profile
from llmft.data.read.labels import MULTI, REGRESSION, names_in, nearly_ids
from llmft.data.read.similar import rarer, similar
from llmft.data.read.store import Source
from llmft.data.split.duplicates import (
    SHORT,
    conflicts,
    duplicates,
    labels_of,
    overlap,
    prints,
)
from llmft.errors import listed, shorten

ERROR, WARNING, NOTE = "error", "warning", "note"
_SHOWN, _EVERY = 3, 1000  # places that a run shows, and `llmft data --html` at most
_MANY = 0.01  # share of rows that repeat another, or that another part has, too


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Attributes:
        what, where, meaning: what was found, in which lines, and what it means.
        helps: what to do about it, where one is not at it already.
        note: a few words for the line that a run shows of a part. counts: for run.json.
        rows: the places of those that it is about, where a run leaves them aside.
        every: in which lines, without leaving out any of the first thousand.
    """

    level: str
    what: str
    where: str = ""
    meaning: str = ""
    helps: str = ""
    note: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[int] | np.ndarray = field(default=(), compare=False)
    every: str = ""

    def brief(self) -> str:
        """Return what a run says."""
        said = ": ".join(filter(None, (self.what, self.where)))
        return "; ".join(filter(None, (said, self.meaning)))

    def means(self) -> str:
        """Return at length what it means, and what to do about it."""
        return "; ".join(filter(None, (self.meaning, self.helps)))


class Part:
    """Train, validation, test or a file: a source with what is compared of it.

    ``labels`` are those that occur, ``of_rows`` the place of each row's own in them;
    ``tokens`` those of each row, where they were counted.
    """

    def __init__(
        self, name: str, source: Source, tokens: np.ndarray | None = None
    ) -> None:
        self.name, self.source, self.tokens = name, source, tokens
        self.prints, self.rows = prints(source), len(source.dataset)
        self.labels, self.of_rows = labels_of(source)

    @cached_property
    def profile(self) -> Profile:
        """What the texts are like."""
        return profile(self.source)

    def classes(self) -> dict[str, int]:
        """Return the rows of each class, the most frequent first; scores are none."""
        if self.source.problem_type == REGRESSION or not self.labels:
            return {}
        counts: Counter[str] = Counter()
        rows = np.bincount(self.of_rows)
        for names, count in zip(self._classes_of_labels(), rows, strict=True):
            counts.update(dict.fromkeys(names, int(count)))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _classes_of_labels(self) -> list[list[str]]:
        several = self.source.problem_type == MULTI
        return [names_in(label) if several else [label] for label in self.labels]

    def places(self, classes: Collection[str]) -> dict[str, Any]:
        """Return ``where`` and ``every`` of the rows of any of these classes."""
        of_labels = [not {*classes}.isdisjoint(n) for n in self._classes_of_labels()]
        rows = np.flatnonzero(np.array(of_labels)[self.of_rows])
        return _places(self._at(rows), rows)

    def _at(self, rows: np.ndarray) -> list[str]:
        return [self.source.place(int(row)) for row in rows[:_EVERY]]

    def shows(self, level: str, what: str, rows: np.ndarray, meaning: str) -> Finding:
        """Return that rows show something, and where the first three begin."""
        where = _places(self._at(rows), rows)
        what = f"{what} in {self.name}: {len(rows):,}"
        return Finding(level, what, meaning=meaning, **where)


def pairs_at(
    pairs: np.ndarray, of: Part, other: Part, sign: str = "="
) -> dict[str, Any]:
    """Return ``where`` and ``every`` of pairs of rows, as path:line = path:line."""
    shown = [
        f"{of.source.place(int(a))} {sign} {other.source.place(int(b))}"
        for a, b in pairs[:_EVERY]
    ]
    return _places(shown, pairs)


def _places(shown: Sequence[str], of: np.ndarray) -> dict[str, Any]:
    return {
        name: ", ".join(shown[:most]) + ", ..." * (len(of) > most)
        for name, most in (("where", _SHOWN), ("every", _EVERY))
    }


def repeats(part: Part) -> Iterator[Finding]:
    """Yield that rows repeat an earlier one; that is serious where they are many."""
    twice = duplicates(part.prints)
    if twice.rows:
        share, repeat = twice.rows / part.rows, f"repeat{'s' * (twice.rows == 1)}"
        aside = "" if part.labels else f" of {SHORT} characters or more"
        yield Finding(
            WARNING if share > _MANY else NOTE,
            f"{part.name}: {twice.rows:,} of {part.rows:,} rows ({100 * share:.2g} %)"
            f"{aside} {repeat} an earlier one, {twice.exact:,} of them to the letter",
            meaning="they weigh more than others",
            helps="take them out where that is unwanted",
            note=f"duplicates{aside}: {twice.rows:,}",
            counts={"duplicates": {"rows": twice.rows, "exact": twice.exact}},
            **pairs_at(twice.pairs, part, part),
        )


def contradictions(part: Part, alike: bool = False) -> Iterator[Finding]:
    """Yield that a text has several labels; with ``alike`` also texts much like it."""
    told = np.empty(0, np.int64)
    for exact in (True, False) if alike else (True,):
        if not part.labels:
            return
        pairs = conflicts(part.prints, part.of_rows, exact=exact)
        pairs = pairs[~np.isin(pairs[:, 0], told)]
        told = np.append(told, pairs[:, 0])
        if texts := len(np.unique(pairs[:, 1])):
            label = "score" if part.source.problem_type == REGRESSION else "label"
            texts_are = "texts" if exact else "texts that are alike,"
            yield Finding(
                WARNING if exact else NOTE,
                f"{part.name}: {texts_are} with more than one {label}: {texts:,}",
                meaning="no model can get all of these rows right",
                helps=f"decide for one {label}",
                counts={"conflicting_texts": texts} if exact else {},
                **pairs_at(pairs, part, part, "/"),
            )


def shared(part: Part, other: Part) -> Iterator[Finding]:
    """Yield that rows of a part are in another one, too.

    That is an error where they are many, or the two are read from one file.
    """
    aside = "" if part.labels else f" (rows below {SHORT} characters aside)"
    both = overlap(part.prints, other.prints)
    if both.rows:
        untrained = {part.name, other.name} == {"validation", "test"}
        few = both.rows < _MANY * part.rows and not _one_file(part, other)
        yield Finding(
            WARNING if few or untrained else ERROR,
            f"{both.rows:,} of {part.rows:,} rows of {part.name} are in {other.name}"
            f" too{aside}, {both.exact:,} of them to the letter",
            meaning=f"metrics on {part.name} look better than they are",
            helps=f"below {_MANY:.0%} a run goes on; a classifier's metrics are shown"
            " without them, too"
            if few and not untrained
            else "where one trains and the other tests, a run stops unless --allow"
            " leakage",
            note=f"rows also in {other.name}: {both.rows:,}",
            counts={other.name: {"rows": both.rows, "exact": both.exact}},
            rows=both.pairs[:, 0],
            **pairs_at(both.pairs, part, other),
        )


def _one_file(part: Part, other: Part) -> bool:
    one, two = ({*map(os.path.realpath, p.source.files)} for p in (part, other))
    return bool(one & two)


def other_classes(part: Part, trained: Part) -> Iterator[Finding]:
    """Yield classes that only one of two parts has; scores are none."""
    known, found = trained.classes().keys(), part.classes().keys()
    meaning = f"a model that is trained on {trained.name} does not know them"
    sides = (
        (ERROR, found - known, part, trained, meaning),
        (WARNING, known - found, trained, part, "its metrics say nothing about them"),
    )
    for level, names, one, other, means in sides:
        if names and known and found:
            what = f"classes of {one.name} that {other.name} has no row of"
            what, where = f"{what}: {len(names):,}", listed(sorted(names), 5)
            yield Finding(level, what, where, means)


def odd_classes(part: Part) -> Iterator[Finding]:
    """Yield what is odd about the classes of a part, each by itself."""
    counts, name = part.classes(), part.name
    if part.source.problem_type == REGRESSION and len(part.labels) == 1:
        counts = {part.labels[0]: part.rows}  # numbers that are all the same
    if not counts:
        return
    if len(counts) > max(20, part.rows / 2):
        refused = name not in ("validation", "test") and nearly_ids(
            part.source.problem_type, len(counts), part.rows
        )
        allowed = "; --allow many_classes trains all the same" * refused
        yield Finding(
            ERROR if refused else WARNING,
            f"{part.rows:,} rows of {name} have {len(counts):,} different labels",
            meaning="an id or a text? --label_column_name; a score? --problem_type"
            f" regression{allowed}",
        )
        return
    first, most = next(iter(counts.items()))
    if len(counts) == 1 and most == part.rows:
        yield Finding(
            NOTE if name in ("validation", "test") else ERROR,
            f"a single label in {name}: {shorten(first)}",
            meaning="nothing to tell apart; a training refuses it unless --allow"
            " one_class",
        )
    if pairs := similar(counts):
        alike = [f"{shorten(a)} and {shorten(b)}" for a, b in pairs[:20]]
        more = f", and {len(pairs) - 20:,} more" if len(pairs) > 20 else ""
        yield Finding(
            ERROR,
            f"labels that look like one in {name}: {', '.join(alike)}{more}",
            **part.places({rarer(pair, counts) for pair in pairs}),
            meaning="write them alike; if they differ, a training takes them with"
            " --allow similar_labels",
        )
    if rare := [label for label, rows in counts.items() if rows < 10]:
        rarest = ", ".join(map(shorten, rare[:-4:-1])) + ", ..." * (len(rare) > 3)
        yield Finding(
            NOTE,
            f"labels with fewer than 10 rows in {name}: {len(rare):,} ({rarest})",
            **part.places(rare),
            meaning="too few to learn from or to measure on; look at f1_macro; or"
            " misspelt",
        )
    if most > 0.8 * part.rows and len(counts) > 1 and part.source.problem_type != MULTI:
        yield Finding(
            NOTE,
            f"{100 * most / part.rows:.3g} % of {name} have the label {shorten(first)}",
            meaning="always saying this reaches that accuracy; look at f1_macro:"
            " --metric_for_best_model f1_macro",
        )
