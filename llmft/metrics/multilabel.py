"""Metrics of texts that have several labels, with n and standard errors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from llmft.metrics.bootstrap import Measure
from llmft.metrics.measures import LABELS, of_labels
from llmft.metrics.standard_errors import F64S, Metric

METRICS = LABELS


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
