"""Whether probabilities are as frequent as they say, and the one number that helps.

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.special import log_softmax

from llmft.data.read.labels import MULTI

BINS = 15  # of equal width, as in the paper
_MOST = 1000.0  # a temperature beyond this, or below 1 / this, has no minimum behind it


def calibration_error(
    probabilities: np.ndarray, right: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the expected calibration error as a function of how often rows count.

    In each of ``BINS`` bins the distance of the mean probability from the share that
    is right, weighed by how many fall into it.

    Args:
        probabilities: of the predicted class, (rows,); or of all, (rows, labels).
        right: 1 where the row has that class or label, else 0; of the same shape.
    """
    rows, bins = len(right), np.ceil(probabilities * BINS).astype(int) - 1
    of_rows = np.repeat(np.arange(rows), right.size // rows)
    places = (bins.clip(0, BINS - 1).ravel(), of_rows)
    gaps = csr_array(((right - probabilities).ravel(), places), shape=(BINS, rows))
    return lambda counts: np.abs(gaps @ counts).sum(0) / right.size


def log_loss(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Return the mean log loss; shapes are those of ``fit_temperature``."""
    if problem_type == MULTI:
        return float((np.logaddexp(0, logits) - labels * logits).mean())
    return -float(log_softmax(logits, -1)[np.arange(len(labels)), labels].mean())


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, problem_type: str
) -> float | None:
    """Return the temperature T whose ``logits / T`` have the lowest log loss.

    None where the loss has no minimum: rows without a mistake are the likelier the
    lower T is, and rows that logits know nothing of the higher it is.

    Args:
        logits: (rows, outputs).
        labels: class ids, (rows,); or 0 and 1, (rows, outputs).
    """
    from scipy.optimize import minimize_scalar  # half a second, for this alone

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)

    def loss(log_t: float) -> float:
        return log_loss(logits / math.exp(log_t), labels, problem_type)

    ends = (-math.log(_MOST), math.log(_MOST))
    found = minimize_scalar(loss, bounds=ends, method="bounded")
    return math.exp(found.x) if found.fun < min(map(loss, ends)) else None
