"""Metrics of predicted numbers, with n and standard errors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from llmft.metrics.standard_errors import (
    F64,
    F64S,
    Measure,
    Metric,
    members,
)

# Whether greater is better.
METRICS = {
    "loss": False,
    "mse": False,
    "mae": False,
    "r2": True,
    "pearson": True,
    "spearman": True,
}
_NO_SPREAD = 1e-12  # of numbers whose variance is 1: what rounding leaves of equal ones


class Regression(Metric):
    """Mean squared and absolute error, R2, and the correlations of two rows of numbers.

    R2 is 0 where all labels are the same number, a correlation also where all
    predictions are.
    """

    columns: ClassVar = {"predictions": F64S, "references": F64}

    def measure(self, predictions: Any, references: Any) -> Measure:
        """Return the metrics as functions of how often each text counts."""
        guesses = np.asarray(predictions, np.float64)[:, 0]  # of shape (n, 1)
        return _measure(guesses, np.asarray(references, np.float64))

    def _compute(self, **columns: Any) -> dict[str, float]:
        found = super()._compute(**columns)
        if math.isnan(found["mse"]):
            return found
        return {name: 0.0 if math.isnan(x) else x for name, x in found.items()}


def _measure(guesses: np.ndarray, labels: np.ndarray) -> Measure:
    """Return the metrics as functions of how often each text counts."""
    n, squares, sizes = len(labels), (guesses - labels) ** 2, np.abs(guesses - labels)
    x, y = _standard(guesses), _standard(labels)
    scale = float(labels.var()) or 1.0

    def covariance(counts: np.ndarray, one: np.ndarray, other: np.ndarray) -> Any:
        return (one * other) @ counts / n - (one @ counts) * (other @ counts) / n**2

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        mse, spread = squares @ counts / n, covariance(counts, y, y)
        u, v = _shares(guesses, counts), _shares(labels, counts)
        of_ranks = [
            12 * ((counts * one * other).sum(0) / n - 0.25)
            for one, other in ((u, v), (u, u), (v, v))
        ]
        r2 = 1 - mse / (scale * np.maximum(spread, _NO_SPREAD))
        return {
            "loss": mse,
            "mse": mse,
            "mae": sizes @ counts / n,
            "r2": np.where(spread > _NO_SPREAD, r2, np.nan),
            "pearson": _correlation(
                covariance(counts, x, y), covariance(counts, x, x), spread
            ),
            "spearman": _correlation(*of_ranks),
        }

    return measure


def _standard(values: np.ndarray) -> np.ndarray:
    """Return values around 0 with variance 1; all 0 where they are the same number."""
    if not np.ptp(values):
        return np.zeros_like(values)
    return (values - values.mean()) / values.std()


def _correlation(joint: Any, one: Any, other: Any) -> np.ndarray:
    """Return joint / sqrt(one * other), NaN where one of these has no spread."""
    product = np.where(np.minimum(one, other) > _NO_SPREAD, one * other, np.nan)
    return joint / np.sqrt(product)


def _shares(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the share of texts below each, (rows, draws); ties count by half."""
    _, groups = np.unique(values, return_inverse=True)
    sizes = members(groups, groups.max() + 1) @ counts
    return ((sizes.cumsum(0) - sizes / 2) / len(values))[groups]
