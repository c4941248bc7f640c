"""All that can be told about data before training: facts, and what follows from them.

``llmft/tasks/inspect.py`` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmft.data.look.near import PIECE, THRESHOLD, near_duplicates
from llmft.data.look.profile import Profile, Seen, profile
from llmft.data.read.labels import MULTI, REGRESSION, similar
from llmft.data.read.store import Source
from llmft.data.split.duplicates import (
    SHORT,
    Prints,
    classes_of,
    conflicts,
    duplicates,
    labels_of,
    overlap,
    places,
    prints,
)
from llmft.data.tokens.encode import encode
from llmft.errors import escape, listed, shorten

_SHARES = (0, 1, 25, 50, 75, 95, 99, 100)
_CLASSES = 30  # shown
ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Section:
    """A table with a title; ``bars`` adds to each row a bar, as long as its number."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    bars: Sequence[float] = ()


@dataclass(frozen=True)
class Finding:
    """Something to know before training: what, where, what it means, what helps."""

    level: str
    what: str
    where: str
    meaning: str


@dataclass
class Report:
    """All that was found, in the order in which it is shown."""

    sections: list[Section] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A source with what was computed of it."""

    name: str
    source: Source
    prints: Prints
    labels: tuple[list[str], np.ndarray]
    profile: Profile
    tokens: np.ndarray | None  # of each row

    @property
    def rows(self) -> int:
        return len(self.prints.exact)

    def at(self, seen: Seen) -> str:
        more = ", ..." if seen.rows > len(seen.first) else ""
        return ", ".join(self.source.place(row) for row in seen.first) + more


def examine(
    sources: Mapping[str, Source],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_seq_length: int = 128,
) -> Report:
    """Look at all rows of the sources, each by itself and in pairs.

    Args:
        sources: by what to call them: train, validation, test, or the file's name.
        tokenizer: counts tokens, to be compared with ``max_seq_length``.
    """
    parts = [
        _Part(
            *(name, source, prints(source), labels_of(source), profile(source)),
            encode(source.dataset, tokenizer, name).lengths if tokenizer else None,
        )
        for name, source in sources.items()
    ]
    report = Report()
    _rows(parts, report)
    for part in parts:
        _lengths(part, max_seq_length, report)
    for part in parts:
        _labels(part, report)
    _classes(parts, report)
    _twice(parts, report)
    _scripts(parts, report)
    for part in parts:
        for sign, seen in part.profile.signs.items():
            level = WARNING if sign.serious else NOTE
            what = f"{sign.what} in {part.name}: {seen.rows:,}"
            report.findings.append(Finding(level, what, part.at(seen), sign.meaning))
    order = (ERROR, WARNING, NOTE)
    report.findings.sort(key=lambda finding: order.index(finding.level))
    return report


def _rows(parts: Sequence[_Part], report: Report) -> None:
    header = ["", "rows", "characters", *(["tokens"] if _counted(parts) else [])]
    rows = []
    for part in parts:
        tokens = [int(part.tokens.sum())] if part.tokens is not None else []
        numbers = [part.rows, int(part.profile.lengths.sum()), *tokens]
        notes = "; ".join(part.source.notes)
        rows.append([part.name, *(f"{n:,}" for n in numbers), notes])
        blank = part.profile.blank
        if blank.rows:
            what = f"rows without text in {part.name}: {blank.rows:,}"
            meaning = (
                "nothing to learn from: take them out; a classification refuses them"
                " unless --allow empty_text"
            )
            report.findings.append(Finding(WARNING, what, part.at(blank), meaning))
    report.sections.append(Section("rows", [*header, "as read"], rows))


def _counted(parts: Sequence[_Part]) -> bool:
    return any(part.tokens is not None for part in parts)


def _lengths(part: _Part, max_seq_length: int, report: Report) -> None:
    """Show percentiles and a histogram by powers of two; find what is too long."""
    lengths, unit = part.profile.lengths, "characters"
    if part.tokens is not None:
        lengths, unit = part.tokens, "tokens"
    values = np.percentile(lengths, _SHARES, method="higher").tolist()
    said = ["shortest", *(f"{share} %" for share in _SHARES[1:-1]), "longest"]
    title = f"{part.name}: {unit} of a row"
    report.sections.append(Section(title, said, [[f"{v:,}" for v in values]]))
    bins = np.frexp(lengths)[1]  # n is in bin b where 2**(b - 1) <= n < 2**b
    counts = np.bincount(bins)
    shown = np.arange(bins.min(), len(counts))
    rows = [
        [f"{2**b // 2:,}-{2**b - 1:,}" if b > 1 else f"{b}", f"{counts[b]:,}"]
        for b in shown
    ]
    title = f"{part.name}: rows by {unit}"
    report.sections.append(Section(title, [unit, "rows"], rows, counts[shown].tolist()))
    long = np.flatnonzero(lengths > max_seq_length)
    if part.tokens is not None and len(long):
        cut = int((lengths[long] - max_seq_length).sum())
        share = 100 * cut / int(lengths.sum())
        seen = Seen(len(long), tuple(long[:3].tolist()))
        what = (
            f"rows of more than {max_seq_length:,} tokens in {part.name}: {seen.rows:,}"
        )
        meaning = (
            f"a classification leaves out {share:.2g} % of all tokens; language models"
            f" go on in the next block; --max_seq_length {values[-2]:,} holds 99 % of"
            " the rows, within what the model can take"
        )
        report.findings.append(Finding(WARNING, what, part.at(seen), meaning))


def _labels(part: _Part, report: Report) -> None:
    names, of_rows = part.labels
    if not names:
        return
    if part.source.problem_type == REGRESSION:
        values = np.array([float(name) for name in names])[of_rows]
        found = np.percentile(values, _SHARES).tolist()
        said = ["lowest", *(f"{share} %" for share in _SHARES[1:-1]), "highest"]
        rows = [[f"{value:.4g}" for value in found]]
        report.sections.append(Section(f"{part.name}: scores", said, rows))
        return
    counts = dict(zip(names, np.bincount(of_rows).tolist(), strict=True))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        [escape(name, 60), f"{n:,}", f"{100 * n / part.rows:.3g} %"]
        for name, n in ordered[:_CLASSES]
    ]
    more = f", the {_CLASSES} most frequent" if len(names) > _CLASSES else ""
    title = f"{part.name}: labels, {len(names):,}{more}"
    bars = [float(n) for _, n in ordered[:_CLASSES]]
    report.sections.append(Section(title, ["label", "rows", "share"], rows, bars))
    if part.source.problem_type != MULTI:
        report.findings += _label_findings(part, ordered)


def _label_findings(part: _Part, counts: Sequence[tuple[str, int]]) -> list[Finding]:
    """Return what is odd about classes, given with their rows, most frequent first."""
    found = []
    if len(counts) > max(20, part.rows / 2):
        what = (
            f"nearly every row of {part.name} has a label of its own: {len(counts):,}"
        )
        meaning = (
            "an id or a text? --label_column_name; a score? --problem_type regression"
        )
        found.append(Finding(WARNING, what, "", meaning))
        return found
    if len(counts) == 1:
        what = f"a single label in {part.name}: {shorten(counts[0][0])}"
        meaning = (
            "nothing to tell apart; a training refuses it unless --allow one_class"
        )
        level = NOTE if part.name in ("validation", "test") else ERROR
        found.append(Finding(level, what, "", meaning))
    if alike := [f"{shorten(a)} and {shorten(b)}" for a, b in similar(dict(counts))]:
        more = f", and {len(alike) - 20:,} more" if len(alike) > 20 else ""
        what = f"labels that look like one in {part.name}: {', '.join(alike[:20])}"
        meaning = "write them alike; if they differ, --allow similar_labels"
        found.append(Finding(ERROR, f"{what}{more}", "", meaning))
    rare = [name for name, n in counts if n < 10]
    if rare:
        what = f"labels with fewer than 10 rows in {part.name}: {len(rare):,}"
        meaning = "too few to learn from or to measure on; look at f1_macro"
        found.append(Finding(NOTE, what, "", meaning))
    if counts[0][1] > 0.8 * part.rows and len(counts) > 1:
        share = 100 * counts[0][1] / part.rows
        what = f"{share:.3g} % of {part.name} have the label {shorten(counts[0][0])}"
        meaning = (
            "always saying this reaches that accuracy; look at f1_macro:"
            " --metric_for_best_model f1_macro"
        )
        found.append(Finding(NOTE, what, "", meaning))
    return found


def _classes(parts: Sequence[_Part], report: Report) -> None:
    """Compare the classes of the first part, which may be train, with the others."""
    first, *others = parts
    known = classes_of(first.source, first.labels[0])
    for part in others:
        found = classes_of(part.source, part.labels[0])
        if not (known and found):
            continue
        if new := sorted(found - known):
            what = f"labels of {part.name} that {first.name} has not: {len(new):,}"
            meaning = "a model that is trained on the first does not know them"
            report.findings.append(Finding(ERROR, what, listed(new, 5), meaning))
        if absent := sorted(known - found):
            what = f"labels of {first.name} that {part.name} has not: {len(absent):,}"
            meaning = "metrics on the second say nothing about them"
            report.findings.append(Finding(WARNING, what, listed(absent, 5), meaning))


def _twice(parts: Sequence[_Part], report: Report) -> None:
    """Show duplicates and overlap: exact, normalised and near."""
    sources = [part.source for part in parts]
    near = near_duplicates(sources, [part.prints for part in parts])
    rows = []
    for i, part in enumerate(parts):
        twice = duplicates(part.prints)
        inside = [(a[1], b[1]) for a, b in near if a[0] == i == b[0]]
        rows.append([part.name, part.name, twice.rows, twice.exact, len(inside)])
        report.findings += _conflicts(part)
        if twice.rows:
            share = 100 * twice.rows / part.rows
            what = f"rows of {part.name} that repeat another: {twice.rows:,}"
            what += f" ({share:.2g} %)"
            where = places(twice.pairs, part.source, part.source)
            meaning = (
                "they weigh more than others; take them out where that is unwanted"
            )
            level = WARNING if share > 1 else NOTE
            report.findings.append(Finding(level, what, where, meaning))
        if inside:
            what = f"rows of {part.name} that are near another: {len(inside):,}"
            where = places(np.array(inside), part.source, part.source)
            report.findings.append(
                Finding(NOTE, what, where, "as duplicates, they weigh more than others")
            )
    for (i, one), (j, two) in combinations(enumerate(parts), 2):
        both = overlap(two.prints, one.prints)
        across = [(a[1], b[1]) for a, b in near if (a[0], b[0]) == (j, i)]
        rows.append([two.name, one.name, both.rows, both.exact, len(across)])
        if both.rows:
            what = f"rows of {two.name} that {one.name} has too: {both.rows:,}"
            where = places(both.pairs, two.source, one.source)
            meaning = (
                "where one is for training and one for testing, results look better"
                " than they are: a run on these files stops, unless --allow leakage"
            )
            evaluated = {one.name, two.name} == {"validation", "test"}
            level = WARNING if evaluated else ERROR
            report.findings.append(Finding(level, what, where, meaning))
        if across:
            what = (
                f"rows of {two.name} that are near one of {one.name}: {len(across):,}"
            )
            where = places(np.array(across), two.source, one.source)
            meaning = (
                "a run takes no notice; --split_group_column keeps together what"
                " belongs together"
            )
            report.findings.append(Finding(WARNING, what, where, meaning))
    header = ["rows of", "that are in", "alike", "to the letter", "near"]
    rule = (
        f"alike: case, spaces, punctuation aside; near: {THRESHOLD:.0%} of the pieces"
        f" of {PIECE} characters in common, from {SHORT} letters on, an estimate"
    )
    report.sections.append(Section(f"twice ({rule})", header, rows))


def _conflicts(part: _Part) -> list[Finding]:
    names, labels = part.labels
    if not names:
        return []
    found = []
    told = np.empty(0, np.int64)
    for exact, how in ((True, "the same text"), (False, "texts alike")):
        pairs = conflicts(part.prints, labels, exact=exact)
        pairs = pairs[~np.isin(pairs[:, 0], told)]
        told = np.append(told, pairs[:, 0])
        texts = len(np.unique(pairs[:, 1]))
        if texts:
            what = f"{how} with different labels in {part.name}: {texts:,}"
            where = places(pairs, part.source, part.source, "/")
            meaning = "no model can get all of them right: decide for one label"
            found.append(Finding(WARNING if exact else NOTE, what, where, meaning))
    return found


def _scripts(parts: Sequence[_Part], report: Report) -> None:
    rows: list[list[Any]] = []
    for part in parts:
        total = sum(part.profile.scripts.values())
        for script, count in list(part.profile.scripts.items())[:8]:
            rows.append(
                [part.name, script, f"{count:,}", f"{100 * count / total:.3g} %"]
            )
    header = ["", "script", "letters", "share"]
    report.sections.append(Section("scripts", header, rows))
