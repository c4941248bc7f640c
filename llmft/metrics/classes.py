"""Metrics of texts that have one class each, with n and standard errors."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_fscore_support

from llmft.metrics.bootstrap import Measure
from llmft.metrics.measures import CLASSES, of_classes
from llmft.metrics.standard_errors import F64S, Metric

METRICS = CLASSES


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
        return of_classes(log_softmax(logits, axis=-1), labels)


def per_class(
    labels: np.ndarray, guesses: np.ndarray, names: list[str]
) -> list[tuple[str, float, float, float, int]]:
    """Return name, precision, recall, F1 and number of examples of each class."""
    columns = precision_recall_fscore_support(
        labels, guesses, labels=range(len(names)), zero_division=0.0
    )
    return [*zip(names, *(column.tolist() for column in columns), strict=True)]
