"""Whether one of two models is better, from what both say of the same texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logit, ndtr, ndtri

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.files import finite
from llmft.metrics import measures
from llmft.metrics.bootstrap import Measure, drawn, spread, swapped

# What is compared, the first of each decides. Whether greater is better.
COMPARED = {
    SINGLE: {n: measures.CLASSES[n] for n in ("accuracy", "f1_macro", "log_loss")},
    MULTI: {n: measures.LABELS[n] for n in ("f1_micro", "f1_macro", "log_loss")},
    REGRESSION: {n: measures.NUMBERS[n] for n in ("r2", "mae")},
}
_LEAST = 5e-7  # a probability: below, the six digits of predictions.jsonl are 0
_SAME = 1e-12  # what rounding leaves of equal differences
Row = Mapping[str, Any]  # of predictions.jsonl


def kind_of(row: Row) -> str:
    """Return the problem type of a row of predictions."""
    answer = row["prediction"]
    if isinstance(answer, list):
        return MULTI
    return SINGLE if isinstance(answer, str) else REGRESSION


def compare_rows(one: Sequence[Row], other: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return each metric of two models, by how much the other is above, and how sure.

    ``stderr`` is of the difference, by draws of rows that are the same for both.
    ``sure`` is 1 - p of a test that swaps what both say of a row; of accuracy, it is
    McNemar's, by draws.

    Args:
        one, other: their rows with labels, of the same texts in the same order.
    """
    kind, n = kind_of(one[0]), len(one)
    measure = _measure([*one, *other], kind)

    difference = _difference(measure, n, COMPARED[kind])

    def with_rows(counts: np.ndarray) -> dict[str, np.ndarray]:
        return difference(np.concatenate([2 * counts, np.zeros_like(counts)]))

    alone = np.repeat([[2.0], [0.0]], n, axis=0)
    values = measure(np.hstack([alone, np.roll(alone, n, axis=0)]))
    draws, swaps = drawn(with_rows, n), swapped(difference, n)
    found = {}
    for name, greater_is_better in COMPARED[kind].items():
        a, b = (float(x) for x in values[name])
        found[name] = {
            "a": finite(a),
            "b": finite(b),
            "difference": finite(b - a),
            "stderr": finite(spread(draws[name])),
            "sure": _sure(b - a, swaps[name]),
            "greater_is_better": greater_is_better,
        }
    return found


def how_sure(measure: Measure, n: int, name: str, wider: float = 1.0) -> float:
    """Return 1 - p of the test of ``compare_rows``, of the metric ``name``.

    Args:
        measure: of n rows with what one model says, and then the same n with what the
            other says. wider: by how much the error is above that of draws of rows.
    """
    difference = _difference(measure, n, [name])
    alone = np.repeat([[2.0], [0.0]], n, axis=0)
    sure = _sure(float(difference(alone)[name][0]), swapped(difference, n)[name])
    return float(2 * ndtr(ndtri((1 + sure) / 2) / wider) - 1)


def _difference(measure: Measure, n: int, names: Iterable[str]) -> Measure:
    """Return what swapping answers as counts say makes of the difference."""

    def difference(counts: np.ndarray) -> dict[str, np.ndarray]:
        first, second = measure(counts), measure(np.roll(counts, n, axis=0))
        return {name: second[name] - first[name] for name in names}

    return difference


def _sure(difference: float, swaps: np.ndarray) -> float:
    if not math.isfinite(difference):
        return 0.0
    swaps = swaps[~np.isnan(swaps)]
    beyond = (np.abs(swaps) - abs(difference) > -_SAME).sum()
    chance = (beyond + 1) / (len(swaps) + 1)  # what is there is one of the draws, too
    if not beyond and len(swaps) > 1 and swaps.std() > 0:
        # Beyond all draws: their number says no more, the tail of a normal one does.
        chance = min(chance, 2 * ndtr(-abs(difference) / swaps.std()))
    return float(1 - chance)


def _measure(rows: Sequence[Row], kind: str) -> Measure:
    """Return the metrics of rows that have labels."""
    wanted, given = ([row[name] for row in rows] for name in ("label", "prediction"))
    if kind == REGRESSION:
        return measures.of_numbers(np.array(given, float), np.array(wanted, float))
    parts = [row["probabilities"] for row in rows]
    single = kind == SINGLE
    names = {name for p in parts for name in p}
    for answer in (*wanted, *given):
        names |= {answer} if single else {*answer}
    ids = {name: i for i, name in enumerate(sorted(names))}
    p = np.zeros((len(rows), len(ids)))
    for row, by_name in enumerate(parts):
        p[row, [ids[name] for name in by_name]] = [*by_name.values()]
    p = p.clip(_LEAST, 1 - _LEAST)
    if single:
        labels, guesses = (np.array([ids[name] for name in x]) for x in (wanted, given))
        return measures.of_classes(np.log(p), labels, guesses)
    of_rows, of_guesses = (
        np.array([[name in answer for name in ids] for answer in x], float)
        for x in (wanted, given)
    )
    return measures.of_labels(logit(p), of_rows, of_guesses)
