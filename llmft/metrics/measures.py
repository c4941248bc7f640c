"""What metrics are, as functions of how often each text counts. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from llmft.metrics.bootstrap import Measure, members
from llmft.metrics.calibration import calibration_error

# Whether greater is better.
CLASSES = {
    "loss": False,
    "accuracy": True,
    "f1_macro": True,
    "matthews_correlation": True,
    "log_loss": False,
    "calibration_error": False,
}
LABELS = {
    "loss": False,
    "f1_micro": True,
    "f1_macro": True,
    "subset_accuracy": True,
    "log_loss": False,
    "calibration_error": False,
}
NUMBERS = {
    "loss": False,
    "mse": False,
    "mae": False,
    "r2": True,
    "pearson": True,
    "spearman": True,
}
_NO_SPREAD = 1e-12  # of numbers whose variance is 1: what rounding leaves of equal ones


def of_classes(
    scores: np.ndarray, labels: np.ndarray, guesses: np.ndarray | None = None
) -> Measure:
    """Return the metrics of texts that have one class each.

    Args:
        scores: logarithms of probabilities, (rows, classes). labels: class ids.
        guesses: class ids that were given; by default the likeliest.
    """
    n, guesses = len(labels), scores.argmax(-1) if guesses is None else guesses
    right = (guesses == labels).astype(np.float64)
    nll = -scores[np.arange(n), labels]
    calibration = calibration_error(np.exp(scores.max(-1)), right)
    found, groups = np.unique(np.stack([labels, guesses]), return_inverse=True)
    of_label, of_guess = (members(ids, len(found)) for ids in groups.reshape(2, n))

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        true, guessed = of_label @ counts, of_guess @ counts  # (classes, draws)
        hits = of_label @ (counts * right[:, None])
        both = true + guessed
        f1 = 2 * hits / np.maximum(both, 1)
        # Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006
        joint = hits.sum(0) * n - (true * guessed).sum(0)
        spread = (n * n - (guessed**2).sum(0)) * (n * n - (true**2).sum(0))
        loss = nll @ counts / n
        return {
            "loss": loss,
            "accuracy": right @ counts / n,
            "f1_macro": f1.sum(0) / (both > 0).sum(0),
            "matthews_correlation": joint / np.sqrt(np.where(spread > 0, spread, 1)),
            "log_loss": loss,
            "calibration_error": calibration(counts),
        }

    return measure


def of_labels(logits: np.ndarray, labels: np.ndarray, guesses: np.ndarray) -> Measure:
    """Return the metrics of texts that have several labels.

    Args:
        logits: (rows, labels). labels: 1 for each that a text has, else 0.
        guesses: the same for those that it was given.
    """
    probabilities = expit(logits)
    calibration = calibration_error(probabilities, labels)
    # log(1 + exp(z)) - y z, without overflow
    nll = (np.logaddexp(0, logits) - labels * logits).mean(1)
    same = (guesses == labels).all(1).astype(np.float64)
    twice = 2 * labels * guesses  # F1 is this over the labels and guesses
    both, n = labels + guesses, len(labels)

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        parts, sizes = twice.T @ counts, both.T @ counts  # (labels, draws)
        occur = np.maximum((sizes > 0).sum(0), 1)
        loss = nll @ counts / n
        return {
            "loss": loss,
            "f1_micro": parts.sum(0) / np.maximum(sizes.sum(0), 1),
            "f1_macro": (parts / np.maximum(sizes, 1)).sum(0) / occur,
            "subset_accuracy": same @ counts / n,
            "log_loss": loss,
            "calibration_error": calibration(counts),
        }

    return measure


def of_numbers(guesses: np.ndarray, labels: np.ndarray) -> Measure:
    """Return the metrics of predicted numbers."""
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


def per_class(
    labels: np.ndarray, guesses: np.ndarray, names: Sequence[str]
) -> list[tuple[str, float, float, float, int, int]]:
    """Return name, precision, recall, F1, rows and right rows of each class.

    Args:
        labels, guesses: class ids, (rows,); or 1 for each label that a text has, else
            0, (rows, labels).
    """
    if labels.ndim == 2:
        hits, true, said = (x.sum(0) for x in (labels * guesses, labels, guesses))
    else:
        hits, true, said = (
            np.bincount(ids, minlength=len(names))
            for ids in (labels[labels == guesses], labels, guesses)
        )
    shares = hits / np.maximum([said, true, (true + said) / 2], 1)
    counts = (x.astype(int).tolist() for x in (true, hits))
    return [*zip(names, *shares.tolist(), *counts, strict=True)]


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
