"""Metrics of texts that have several labels, with n and standard errors."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from llmft.metrics.calibration import calibration_error
from llmft.metrics.standard_errors import F64S, Measure, Metric

# Whether greater is better.
METRICS = {
    "loss": False,
    "f1_micro": True,
    "f1_macro": True,
    "subset_accuracy": True,
    "log_loss": False,
    "calibration_error": False,
}


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
        probabilities = expit(logits)
        guesses = (probabilities >= self.threshold).astype(np.float64)
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
