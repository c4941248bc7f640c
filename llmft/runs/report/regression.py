"""What a regression predicted, and how far off it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from llmft.runs.report import charts
from llmft.runs.report.answers import Answers
from llmft.runs.report.parts import Table, number, shown_of

_POINTS = 300  # that are drawn
_PARTS = 5  # groups of about equal size


def blocks(answers: Answers) -> list[Any]:
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
    limits = np.unique(np.quantile(true, np.linspace(0, 1, _PARTS + 1)))
    for low, high in pairwise(limits):
        part = (true >= low) & ((true < high) | (high == limits[-1]))
        if n := int(part.sum()):
            errors = off[part]
            values = (errors.mean(), np.abs(errors).mean(), errors.std())
            shown = [number(float(value)) for value in values]
            rows.append((f"{low:.4g} to {high:.4g}", n, *shown))
    header = ["as labelled", "rows", "mean error", "mean absolute error", "deviation"]
    return Table("Errors by the number as labelled", header, rows)
