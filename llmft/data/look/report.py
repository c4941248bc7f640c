"""All that can be told about data before training: tables, and what follows from them.

``llmft/tasks/data_report.py`` shows it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmft.data.look.findings import (
    ERROR,
    NOTE,
    WARNING,
    Finding,
    Part,
    contradictions,
    odd_classes,
    other_classes,
    pairs_at,
    repeats,
    shared,
)
from llmft.data.look.near import PIECE, THRESHOLD, near_duplicates
from llmft.data.look.profile import DAMAGE, SIGNS
from llmft.data.read.labels import MULTI, REGRESSION
from llmft.data.read.messages import MESSAGES, TEXT
from llmft.data.read.store import Source
from llmft.data.split.duplicates import SHORT, Overlap, duplicates, overlap
from llmft.data.tokens.chat import Layout
from llmft.data.tokens.encode import Encoded, encode
from llmft.data.tokens.examples import unknown_tokens
from llmft.errors import escape

_SHARES = (0, 1, 25, 50, 75, 95, 99, 100)
_CLASSES = 30  # shown

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Section:
    """A table with a title; ``bars`` adds to each row a bar, as long as its number."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    bars: Sequence[float] = ()


@dataclass
class Report:
    """All that was found, in the order in which it is shown."""

    sections: list[Section] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


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
    report, parts = Report(), []
    for name, source in sources.items():
        encoded = _encoded(name, source, tokenizer)
        parts.append(Part(name, source, encoded.lengths if encoded else None))
        if (
            encoded
            and tokenizer
            and (unknown := unknown_tokens(encoded.tokens, tokenizer))
        ):
            what = f"unknown tokens in {name}: {unknown:,} of {len(encoded.tokens):,}"
            meaning = "the model cannot tell them apart, as emoji or another script"
            helps = "choose a model that knows them where they matter"
            report.findings.append(Finding(NOTE, what, "", meaning, helps))
    if tokenizer and any(part.tokens is None for part in parts):
        what = "tokens of conversations are not counted"
        meaning = "the model has no chat template: name one that has"
        report.findings.append(Finding(NOTE, what, "", meaning))
    _rows(parts, report)
    for part in parts:
        _lengths(part, max_seq_length, report)
    for part in parts:
        _turns(part, report)
        _labels(part, report)
    for part in parts[1:]:  # the first may be train
        if parts[0].name not in ("validation", "test"):
            report.findings += other_classes(part, parts[0])
    _twice(parts, report)
    _scripts(parts, report)
    for part in parts:
        for sign, rows in part.profile.signs.items():
            level = WARNING if sign in DAMAGE else NOTE
            report.findings.append(part.shows(level, sign, rows, SIGNS[sign][1]))
    order = (ERROR, WARNING, NOTE)
    report.findings.sort(key=lambda finding: order.index(finding.level))
    return report


def _encoded(
    name: str, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> Encoded | None:
    """Return the tokens of all rows; None where that cannot be said."""
    talks = source.format == MESSAGES
    if tokenizer is None or (talks and not tokenizer.chat_template):
        return None
    layout = Layout(tokenizer, source.format)
    given = None if source.format == TEXT else layout
    return encode(source.dataset, tokenizer, name, layout=given)


def _rows(parts: Sequence[Part], report: Report) -> None:
    counted, rows = any(part.tokens is not None for part in parts), []
    for part in parts:
        blank, row = part.profile.blank, [part.name, f"{part.rows:,}"]
        row.append(f"{part.profile.lengths.sum():,}")
        if counted:
            row.append("" if part.tokens is None else f"{part.tokens.sum():,}")
        rows.append([*row, "; ".join(part.source.notes)])
        if len(blank):
            meaning = (
                "nothing to learn from: take them out; a classification refuses them"
                " unless --allow empty_text"
            )
            found = part.shows(WARNING, "rows without text", blank, meaning)
            report.findings.append(found)
    header = ["", "rows", "characters", *(["tokens"] if counted else []), "as read"]
    report.sections.append(Section("rows", header, rows))


def _spread(title: str, values: np.ndarray, ends: str, report: Report) -> list[Any]:
    """Show the least, some percentiles and the greatest of values; return them."""
    whole = values.dtype.kind == "i"
    method: Any = "higher" if whole else "linear"
    found = np.percentile(values, _SHARES, method=method).tolist()
    least, greatest = ends.split()
    header = [least, *(f"{share} %" for share in _SHARES[1:-1]), greatest]
    row = [f"{value:,}" if whole else f"{value:.4g}" for value in found]
    report.sections.append(Section(title, header, [row]))
    return found


def _lengths(part: Part, max_seq_length: int, report: Report) -> None:
    """Show percentiles and a histogram by powers of two; find what is too long."""
    lengths, unit = part.profile.lengths, "characters"
    if part.tokens is not None:
        lengths, unit = part.tokens, "tokens"
    title = f"{part.name}: {unit} of a row"
    values = _spread(title, lengths, "shortest longest", report)
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
        what = f"rows of more than {max_seq_length:,} tokens"
        plain = part.source.format == TEXT
        who = "a classification that cuts them" if plain else "a training"
        goes_on = "; by itself it splits long texts, up to 20,000 examples in all,"
        goes_on += " and language models go on in the next block"
        goes_on *= plain
        meaning = (
            f"{who} leaves out {share:.2g} % of all tokens{goes_on}; --max_seq_length"
            f" {values[-2]:,} holds 99 % of the rows, within what the model can take"
        )
        report.findings.append(part.shows(WARNING, what, long, meaning))


def _turns(part: Part, report: Report) -> None:
    """Show how many turns conversations have, and who speaks how much."""
    if part.source.format != MESSAGES:
        return
    turns, characters, counts = Counter[str](), Counter[str](), []
    for messages in map(json.loads, part.source.dataset["text"]):
        counts.append(len(messages))
        for message in messages:
            turns[message["role"]] += 1
            characters[message["role"]] += len(message["content"])
    title = f"{part.name}: turns of a conversation"
    _spread(title, np.array(counts), "shortest longest", report)
    rows = [[role, f"{n:,}", f"{characters[role]:,}"] for role, n in turns.items()]
    bars = [float(n) for n in turns.values()]
    title = f"{part.name}: turns by role"
    report.sections.append(Section(title, ["role", "turns", "characters"], rows, bars))


def _labels(part: Part, report: Report) -> None:
    if part.source.problem_type == REGRESSION and part.labels:
        values = np.array([float(name) for name in part.labels])[part.of_rows]
        _spread(f"{part.name}: scores", values, "lowest highest", report)
    report.findings += odd_classes(part)
    counts = part.classes()
    if not counts:
        return
    rows = [
        [escape(name, 60), f"{n:,}", f"{100 * n / part.rows:.3g} %"]
        for name, n in [*counts.items()][:_CLASSES]
    ]
    several = ", several in a row" if part.source.problem_type == MULTI else ""
    more = f", the {_CLASSES} most frequent" if len(counts) > _CLASSES else ""
    title = f"{part.name}: labels, {len(counts):,}{several}{more}"
    bars = [float(n) for n in counts.values()][:_CLASSES]
    report.sections.append(Section(title, ["label", "rows", "share"], rows, bars))


def _twice(parts: Sequence[Part], report: Report) -> None:
    """Show duplicates and overlap: exact, normalised and near."""
    found = near_duplicates([p.source for p in parts], [p.prints for p in parts])
    near: dict[tuple[int, int], Pairs] = defaultdict(list)
    for (i, row), (j, other_row) in found:
        near[i, j].append((row, other_row))
    rows = []

    def show(one: Part, other: Part, same: Overlap, near: Pairs, *finding: str) -> None:
        long = (one.profile.lengths >= SHORT).any()
        of_near = len(near) if long else "-"
        rows.append([one.name, other.name, same.rows, same.exact, of_near])
        if near:
            level, what, meaning = finding
            what, where = f"{what}: {len(near):,}", pairs_at(np.array(near), one, other)
            report.findings.append(Finding(level, what, meaning=meaning, **where))

    for i, part in enumerate(parts):
        report.findings += [*contradictions(part, alike=True), *repeats(part)]
        what = f"rows of {part.name} that are near another"
        meaning = (
            "as duplicates, they weigh more than others; where one is held out and the"
            " other learnt, metrics look better than they are: --split_group_column"
            " keeps together what belongs together, also in folds"
        )
        show(part, part, duplicates(part.prints), near[i, i], NOTE, what, meaning)
    for (i, one), (j, two) in combinations(enumerate(parts), 2):
        report.findings += shared(two, one)
        what = f"rows of {two.name} that are near one of {one.name}"
        meaning = (
            "a run takes no notice; --split_group_column keeps together what belongs"
            " together"
        )
        same = overlap(two.prints, one.prints)
        show(two, one, same, near[j, i], WARNING, what, meaning)
    header = ["rows of", "that are in", "alike", "to the letter", "near"]
    rule = (
        f"alike: case and white space aside; near: {THRESHOLD:.0%} of the pieces"
        f" of {PIECE} characters in common, an estimate; rows of fewer than {SHORT}"
        " characters are not looked at for it"
    )
    if not all(part.labels for part in parts):
        rule += ", nor at all where there are no labels"
    report.sections.append(Section(f"twice ({rule})", header, rows))


def _scripts(parts: Sequence[Part], report: Report) -> None:
    rows = []
    for part in parts:
        scripts = part.profile.scripts
        total = sum(scripts.values())
        for script, n in [*scripts.items()][:8]:
            share = f"{100 * n / total:.3g} %"
            rows.append([part.name, script, f"{n:,}", share])
    header = ["", "script", "letters", "share"]
    report.sections.append(Section("scripts", header, rows))
