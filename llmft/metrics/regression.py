"""Metrics of predicted numbers, each with n and a standard error."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from llmft.metrics.classes import F64, cache, info, mean_error

# Whether greater is better.
METRICS = {
    "loss": False,
    "mse": False,
    "mae": False,
    "r2": True,
    "pearson": True,
    "spearman": True,
}


def regression_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """``compute_metrics`` of a regression; see ``Regression``."""
    return Regression(keep_in_memory=True, cache_dir=cache()).compute(
        predictions=np.asarray(prediction.predictions)[:, 0],
        references=prediction.label_ids,
    )


class Regression(evaluate.Metric):
    """Mean squared and absolute error, R2, and the correlations of two rows of numbers.

    R2 is 0 where all labels are the same number, a correlation also where all
    predictions are. The standard errors are those of a mean, by the delta method
    for R2 and the correlations: the mean of what each text adds to them.
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.Features({"predictions": F64, "references": F64})
        return info(self.__doc__, columns)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        guesses, labels = (np.asarray(x, np.float64) for x in (predictions, references))
        squares, sizes = (guesses - labels) ** 2, np.abs(guesses - labels)
        mse, mse_error = float(squares.mean()), mean_error(squares)
        r2, r2_error = _r2(squares, labels)
        pearson, pearson_error = _pearson(guesses, labels)
        spearman, spearman_error = _spearman(guesses, labels)
        return {
            "loss": mse,
            "loss_stderr": mse_error,
            "mse": mse,
            "mse_stderr": mse_error,
            "mae": float(sizes.mean()),
            "mae_stderr": mean_error(sizes),
            "r2": r2,
            "r2_stderr": r2_error,
            "pearson": pearson,
            "pearson_stderr": pearson_error,
            "spearman": spearman,
            "spearman_stderr": spearman_error,
            "n": len(labels),
        }


def _r2(squares: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return 1 - mean(squares) / var(labels) and its standard error."""
    spread = _centred(labels) ** 2
    part, total = squares.mean(), spread.mean()
    if not total:
        return 0.0, 0.0
    of_text = (squares - part / total * spread) / total
    return float(1 - part / total), mean_error(of_text)


def _correlation(joint: Any, one: Any, other: Any) -> tuple[float, float]:
    """Return joint / sqrt(one * other) and its standard error.

    Args:
        joint, one, other: covariance and variances, each with what a text adds to it.
    """
    (c, c_of), (a, a_of), (b, b_of) = joint, one, other
    if a <= 0 or b <= 0:
        return 0.0, 0.0
    found = c / np.sqrt(a * b)
    of_text = c_of / np.sqrt(a * b) - found / 2 * (a_of / a + b_of / b)
    return float(found), mean_error(of_text)


def _pearson(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    x, y = (_centred(values) for values in (x, y))
    parts = [(p.mean(), p - p.mean()) for p in (x * y, x * x, y * y)]
    return _correlation(*parts)


def _centred(values: np.ndarray) -> np.ndarray:
    """Return values around 0, exactly 0 where they are all the same number."""
    return values - values.mean() if np.ptp(values) else np.zeros_like(values)


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the correlation of ranks, ties at the middle of theirs.

    A text adds to it by its own ranks, and by moving those of all others.
    """
    ranks = [_Ranks(values) for values in (x, y)]
    u, v = (r.shares for r in ranks)
    parts = []
    for (left, moved_by), (right, other) in (
        ((u, ranks[0]), (v, ranks[1])),
        ((u, ranks[0]), (u, ranks[0])),
        ((v, ranks[1]), (v, ranks[1])),
    ):
        mean = (left * right).mean()
        of_text = left * right + moved_by.above(right) + other.above(left) - 3 * mean
        parts.append((mean - 0.25, of_text))
    return _correlation(*parts)


class _Ranks:
    """The share of texts below each, those of the same number by half."""

    def __init__(self, values: np.ndarray) -> None:
        _, self._group = np.unique(values, return_inverse=True)
        sizes = np.bincount(self._group)
        self.shares = ((np.cumsum(sizes) - sizes / 2) / len(values))[self._group]

    def above(self, weights: np.ndarray) -> np.ndarray:
        """Return the summed weights of all texts above each, over their number."""
        sums = np.bincount(self._group, weights)
        over = np.cumsum(sums[::-1])[::-1] - sums / 2
        return over[self._group] / len(weights)
