"""Metrics of texts by the kind of their labels, with n and standard errors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import datasets
import numpy as np
from scipy.special import expit, log_softmax

from llmft.metrics.bootstrap import Measure
from llmft.metrics.measures import of_classes, of_labels, of_numbers
from llmft.metrics.standard_errors import F64, F64S, Metric


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


class MultiLabel(Metric):
    """Micro and macro F1, subset accuracy, log loss and calibration error.

    ``predictions`` are logits of shape (n, labels), ``references`` 1 for each label
    that a text has and else 0. A text is given the labels whose probability is at least
    ``threshold``. Macro F1 is the mean over the labels that occur in either; subset
    accuracy the share of texts with exactly their labels; log loss the mean over texts
    and labels, calibration error the expected one of all their probabilities.
    """

    columns: ClassVar = {"predictions": F64S, "references": F64S}

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def measure(self, predictions: Any, references: Any) -> Measure:
        """Return the metrics as functions of how often each text counts."""
        logits = np.asarray(predictions, np.float64)
        labels = np.asarray(references, np.float64)
        guesses = (expit(logits) >= self.threshold).astype(np.float64)
        return of_labels(logits, labels, guesses)


class Regression(Metric):
    """Mean squared and absolute error, R2, and the correlations of two rows of numbers.

    R2 is 0 where all labels are the same number, a correlation also where all
    predictions are.
    """

    columns: ClassVar = {"predictions": F64S, "references": F64}

    def measure(self, predictions: Any, references: Any) -> Measure:
        """Return the metrics as functions of how often each text counts."""
        guesses = np.asarray(predictions, np.float64)[:, 0]  # of shape (n, 1)
        return of_numbers(guesses, np.asarray(references, np.float64))

    def _compute(self, **columns: Any) -> dict[str, float]:
        found = super()._compute(**columns)
        if math.isnan(found["mse"]):
            return found
        return {name: 0.0 if math.isnan(x) else x for name, x in found.items()}
