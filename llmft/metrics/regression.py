"""Metrics of predicted numbers, with n and standard errors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from llmft.metrics.bootstrap import Measure
from llmft.metrics.measures import NUMBERS, of_numbers
from llmft.metrics.standard_errors import F64, F64S, Metric

METRICS = NUMBERS


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
