"""What a classifier got right and wrong, and where."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from llmft.errors import counted
from llmft.metrics.intervals import NORMAL, percent_sure, wilson
from llmft.metrics.measures import per_class
from llmft.runs.record import RunRecord
from llmft.runs.report import charts
from llmft.runs.report.answers import MULTI, REGRESSION, SINGLE, Answers, places_of
from llmft.runs.report.parts import (
    Cells,
    Section,
    Table,
    between,
    brief_name,
    named,
    number,
    shown_of,
)
from llmft.runs.report.segments import FEWEST, Segment, standard_errors, weak
from llmft.runs.report.verdict import difference

CLASSES = 40  # of a table of classes
_GRID = 16  # classes whose confusion matrix is a table
_DOTS = 300  # cells that are drawn of a larger one
_PAIRS, _MISTAKES, _WEAK = 20, 20, 12
_BINS = 10
_POINTS = 300  # of numbers, that are drawn
_RANGES = 5  # of numbers, with about as many rows each


def ladder(run: RunRecord) -> Section:
    """Return what simpler methods reached on the same rows."""
    found = Section("Simpler methods")
    folds = run.metrics.get("k_folds", {}).get("ladder")
    for what, of in (("held out", run.metrics.get("ladder")), ("of all folds", folds)):
        if not of:
            continue
        rows = []
        for rung in of["rungs"]:
            saved, by, sure = "saved", "", ""
            if "below" in rung:
                above, error = difference(rung)
                saved, by = f"{above:+.4f}", f"± {number(NORMAL * error)}"
                sure = percent_sure(rung["below"]["sure"])
            seconds = f"{rung['seconds']:.1f}" if rung["seconds"] else "-"
            value = number(rung["value"])
            rows.append((named(rung["name"]), value, saved, by, sure, seconds))
        if run.arguments.get("freeze_backbone"):
            found.said = ["Fine-tuned is here the head alone: freeze_backbone."]
        name = of["metric"]
        header = ["method", name, "saved is above by", "95 %", "sure", "seconds"]
        caption = f"The ladder: {name} on {of['n']:,} rows {what}"
        found.blocks.append(Table(caption, header, rows))
    return found


def answers_section(answers: Answers) -> Section:
    """Return how the answers and the labels go together."""
    on = f"{len(answers):,} labelled rows of {answers.split}"
    if answers.split == "train":
        on += ", each held out in one fold"
    found = Section("Answers", [f"On {on}."])
    if answers.rest:
        said = counted(answers.rest, "rows have no label and are left out here")
        found.said.append(f"{said}.")
    if answers.kind == REGRESSION:
        found.blocks += regression(answers)
        return found
    if answers.kind == SINGLE:
        found.blocks += confusion(answers)
    found.blocks.append(by_class(answers))
    found.blocks += [calibration(answers), thresholds(answers)]
    return found


def confusion(answers: Answers) -> list[Any]:
    """Return the confusion matrix: a table, or drawn beside a list of its pairs."""
    names, size = answers.names, len(answers.names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (answers.given, answers.said), 1)
    totals = counts.sum(1)
    pairs = confused(counts)
    header = ["labelled", "said instead", "rows", "of the label's rows", "95 %"]
    rows = [
        (
            named(names[i]),
            named(names[j]),
            int(counts[i, j]),
            f"{counts[i, j] / totals[i]:.1%}",
            between(wilson(int(counts[i, j]), int(totals[i]))),
        )
        for i, j in pairs[:_PAIRS]
    ]
    note = shown_of(len(rows), len(pairs), "pairs")
    listed = Table("The most confused pairs", header, rows, note)
    if size <= _GRID:
        used = [(named(names[i]), _shades(counts[i])) for i in range(size)]
        caption = "Confusion matrix: rows are the labels, columns what was said"
        grid = Cells(caption, ["", *map(brief_name, names)], used)
        return [grid, listed] if size > 2 and rows else [grid]
    where = np.argwhere(counts)
    wrong = where[where[:, 0] != where[:, 1]]
    wrong = np.random.default_rng(0).permutation(wrong)  # of equal ones, any
    order = np.argsort(-counts[tuple(wrong.T)], kind="stable")
    diagonal = where[where[:, 0] == where[:, 1]]
    places = np.concatenate([diagonal, wrong[order][:_DOTS]])
    shares = counts[tuple(places.T)] / totals[places[:, 0]]
    said = (
        f"{size} classes in the order of their names; on the diagonal what was right,"
        f" {int(np.trace(counts)):,} of {int(counts.sum()):,}; beside it"
        f" {min(len(wrong), _DOTS):,} of {len(wrong):,} pairs of classes that were"
        " confused. The darker, the larger the share of the label's rows."
    )
    below = Table("", [], [], "The pairs are in the table below.")
    return [charts.heat("confusion matrix", places, shares, size, said, below), listed]


def confused(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return row and column of what is not on the diagonal, the most frequent first."""
    found = np.argwhere(counts * ~np.eye(len(counts), dtype=bool))
    order = np.argsort(-counts[tuple(found.T)], kind="stable")
    return [(int(i), int(j)) for i, j in found[order]]


def _shades(row: np.ndarray) -> list[tuple[int, str]]:
    share = row / max(1, row.sum())
    return [
        (int(np.ceil(s * 5)) if n else 0, f"{n:,}")
        for s, n in zip(share, row.tolist(), strict=True)
    ]


def by_class(answers: Answers) -> Table:
    """Return the table of classes, the weakest first where there are many."""
    scores = [
        row for row in per_class(answers.given, answers.said, answers.names) if row[4]
    ]
    unseen = len(answers.names) - len(scores)
    notes = [f"{unseen:,} classes have no row"] if unseen else []
    if len(scores) > CLASSES:
        notes.insert(0, f"{CLASSES} of {len(scores):,}, those of the lowest F1")
        scores = sorted(scores, key=lambda row: row[3])[:CLASSES]
    others = _recalls(answers)
    rows = [
        (
            *(named(name), f"{precision:.3f}", f"{recall:.3f}"),
            *(between(wilson(both, n)), f"{f1:.3f}", n),
            *(f"{of[name]:.3f}" for of in others.values()),
        )
        for name, precision, recall, f1, n, both in scores
    ]
    note = "; ".join(notes)
    header = ["class", "precision", "recall", "95 % of recall", "F1", "rows"]
    header += [f"recall of {name}" for name in others]
    what = "labels" if answers.kind == MULTI else "classes"
    return Table(f"By {what}", header, rows, note)


def _recalls(answers: Answers) -> dict[str, dict[str, float]]:
    """Return, of each simpler method, the share of each class that it had right."""
    if answers.kind != SINGLE:
        return {}
    found = dict[str, dict[str, float]]()
    for label, places in places_of(answers.column("label")).items():
        for name in answers.rows[0].get("rungs", {}):
            said = [answers.rows[i]["rungs"][name]["prediction"] for i in places]
            found.setdefault(name, {})[label] = said.count(label) / len(said)
    return found


def calibration(answers: Answers) -> Any:
    """Return how often answers were right, by the probability that they stated."""
    if answers.kind == MULTI:
        p, right = answers.probabilities.ravel(), answers.given.ravel().astype(float)
        what = "labels"
    else:
        p, right = np.array(answers.column("probability")), answers.right.astype(float)
        what = "answers"
    bins = np.ceil(p * _BINS).astype(int).clip(1, _BINS) - 1
    sizes = np.bincount(bins, minlength=_BINS)
    there = sizes > 0
    stated = np.bincount(bins, p, _BINS)[there] / sizes[there]
    found = np.bincount(bins, right, _BINS)[there] / sizes[there]
    error = float((np.abs(stated - found) * sizes[there]).sum() / len(p))
    rows = [
        (f"{s:.3f}", f"{f:.3f}", between(wilson(f * n, n)), int(n))
        for s, f, n in zip(stated, found, sizes[there], strict=True)
    ]
    header = ["probability stated", "share right", "95 %", what]
    said = (
        f"Mean distance of probability and share that was right: {error:.3f}"
        f" over {len(p):,} {what} in {int(there.sum())} bins; on the dashed line both"
        " are the same."
    )
    title = "calibration" if what == "answers" else "calibration of all labels"
    table = Table("Calibration: numbers", header, rows)
    return charts.calibration(title, stated, found, sizes[there], said, table)


def thresholds(answers: Answers) -> Any:
    """Return what answering only the surest rows would bring; of several labels F1."""
    if answers.kind == MULTI:
        cuts = np.arange(0.05, 1, 0.05)
        scores = [f1_at(answers, cut) for cut in cuts]
        return charts.curve(
            "F1 (micro) by threshold",
            {"F1": (cuts.tolist(), scores)},
            "probability from which a label is given",
        )
    p = np.array(answers.column("probability"))
    order = np.argsort(-p, kind="stable")
    right = np.cumsum(answers.right[order]) / np.arange(1, len(p) + 1)
    ends = np.unique(np.linspace(0, len(p) - 1, 41).round().astype(int))
    last = np.append(p[order][1:] != p[order][:-1], True)  # no cut among equals
    ends = np.array([e for e in ends if last[e]] or [len(p) - 1])
    line = (((ends + 1) / len(p)).tolist(), right[ends].tolist())
    return charts.curve(
        "accuracy of the surest answers", {"accuracy": line}, "share answered"
    )


def f1_at(answers: Answers, cut: float) -> float:
    """Return the micro F1 of several labels with a threshold."""
    said = answers.probabilities >= cut
    both = float((said & answers.given.astype(bool)).sum())
    return 2 * both / max(1.0, float(said.sum() + answers.given.sum()))


def weak_section(found: list[Segment], kind: str) -> Section:
    """Return the groups of rows that are answered worse than the rest."""
    shares = kind != REGRESSION
    clear, what = weak(found), "mistakes" if shares else "mean absolute error"
    section = Section("Weak segments")
    if not found:
        return section
    errors = f"{standard_errors(found):.1f} standard errors"
    kinds = Counter(segment.what.partition(" of ")[0] for segment in found)
    kinds["lines of the file"] = kinds.pop("lines", 0)
    by = "; ".join(f"{count} by {kind}" for kind, count in kinds.items() if count)
    groups = f"{counted(len(found), 'groups')} of {FEWEST} rows or more"
    looked = f"{groups} were looked at ({by}); one is weak where"
    section.said.append(
        f"{looked} its share of mistakes is above that of all other rows by more than"
        f" chance gives one of so many ({errors}, tested exactly)."
        if shares
        else f"{looked} its error is above that of all others by more than {errors}."
    )
    if not clear:
        section.said.append("None is clearly weaker than the rest.")
        return section
    style = (lambda v: f"{v:.1%}") if shares else number
    rows = [
        (
            f"{segment.what}: {named(segment.name)}",
            segment.n,
            style(segment.value),
            " to ".join(map(style, segment.limits)),
            style(segment.rest),
        )
        for segment in clear[:_WEAK]
    ]
    header = ["group", "rows", what, "95 %", "all other rows"]
    note = shown_of(len(rows), len(clear), "weak groups")
    section.blocks.append(Table("Groups that are clearly weaker", header, rows, note))
    return section


def mistakes(answers: Answers) -> Section:
    """Return the mistakes that the model was surest of, or the largest errors."""
    section = Section("Mistakes")
    if answers.kind == REGRESSION:
        off = answers.said - answers.given
        order = np.argsort(-np.abs(off), kind="stable")[:_MISTAKES]
        sizes, title = [f"{off[i]:+.3f}" for i in order], "The largest errors"
        first, wrong = "error", len(off)
    else:
        places = np.flatnonzero(~answers.right)
        surest = np.array([_sureness(answers, int(i)) for i in places])
        chosen = np.argsort(-surest, kind="stable")[:_MISTAKES]
        order, wrong = places[chosen], len(places)
        sizes = [f"{surest[i]:.3f}" for i in chosen]
        first, title = "probability", "The most confident mistakes"
    if not wrong:
        return Section("Mistakes", ["No row was answered wrongly."])
    rows = [
        (
            *(size, named(row["label"]), named(row["prediction"])),
            *(answers.text(row), answers.place(row)),
        )
        for size, row in zip(sizes, (answers.rows[i] for i in order), strict=True)
    ]
    header = [first, "labelled", "said", "text", "where"]
    what = "rows" if answers.kind == REGRESSION else "mistakes"
    section.blocks.append(Table(title, header, rows, shown_of(len(rows), wrong, what)))
    return section


def _sureness(answers: Answers, i: int) -> float:
    if answers.kind == SINGLE:
        return float(answers.rows[i]["probability"])
    differ = answers.given[i] != answers.said[i]
    return float(np.abs(answers.given[i] - answers.probabilities[i])[differ].max())


def regression(answers: Answers) -> list[Any]:
    """Return predicted against labelled, the errors, and both by size."""
    true, said = answers.given, answers.said
    some = np.arange(len(true))
    if len(true) > _POINTS:
        draw = np.random.default_rng(0)
        some = np.sort(draw.choice(len(true), _POINTS, replace=False))
    spread = min(true.std(), said.std())
    r = f"{np.corrcoef(true, said)[0, 1]:.3f}" if spread else "not defined"
    scatter = charts.points(
        "predicted against labelled",
        *(true[some], said[some]),
        ("as labelled", "predicted"),
        f"Correlation {r} over {len(true):,} rows; on the dashed line is no error.",
        Table("", [], [], shown_of(len(some), len(true), "rows are drawn, by chance")),
    )
    off = said - true
    counts, ends = np.histogram(off, bins=int(np.clip(np.sqrt(len(off)), 5, 24)))
    names = [f"{(a + b) / 2:.2g}" for a, b in pairwise(ends)]
    bars = charts.bars("predicted less labelled", names, counts, "rows")
    return [scatter, bars, by_size(true, off)]


def by_size(true: np.ndarray, off: np.ndarray) -> Table:
    """Return the errors in ranges of the number as labelled, each about as many."""
    rows = []
    limits = np.unique(np.quantile(true, np.linspace(0, 1, _RANGES + 1)))
    for low, high in pairwise(limits):
        part = (true >= low) & ((true < high) | (high == limits[-1]))
        if n := int(part.sum()):
            errors = off[part]
            values = (errors.mean(), np.abs(errors).mean(), errors.std())
            shown = [number(float(value)) for value in values]
            rows.append((f"{low:.4g} to {high:.4g}", n, *shown))
    header = ["as labelled", "rows", "mean error", "mean absolute error", "deviation"]
    return Table("Errors by the number as labelled", header, rows)
