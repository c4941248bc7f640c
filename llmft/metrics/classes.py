"""Metrics of texts that have one class each, with n and standard errors."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_fscore_support

from llmft.metrics.calibration import calibration_error
from llmft.metrics.standard_errors import F64S, Measure, Metric, members

# Whether greater is better.
METRICS = {
    "loss": False,
    "accuracy": True,
    "f1_macro": True,
    "matthews_correlation": True,
    "log_loss": False,
    "calibration_error": False,
}


class Classification(Metric):
    """Accuracy, macro F1, Matthews correlation, log loss and calibration error.

    ``predictions`` are logits of shape (n, classes), ``references`` class ids. Macro
    F1 is the mean over the classes that occur in either; the calibration error the
    expected one of the top probability.
    """

    columns: ClassVar = {"predictions": F64S, "references": datasets.Value("int64")}

    def measure(self, predictions: Any, references: Any) -> Measure:
        """Return the metrics as functions of how often each text counts."""
        logits = np.asarray(predictions, dtype=np.float64)
        labels = np.asarray(references)
        return _measure(log_softmax(logits, axis=-1), labels)


def _measure(scores: np.ndarray, labels: np.ndarray) -> Measure:
    """Return the metrics as functions of how often each text counts."""
    n, guesses = len(labels), scores.argmax(-1)
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


def per_class(
    labels: np.ndarray, guesses: np.ndarray, names: list[str]
) -> list[tuple[str, float, float, float, int]]:
    """Return name, precision, recall, F1 and number of examples of each class."""
    columns = precision_recall_fscore_support(
        labels, guesses, labels=range(len(names)), zero_division=0.0
    )
    return [*zip(names, *(column.tolist() for column in columns), strict=True)]
