"""Metrics of language models, over all predicted tokens."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from llmft.errors import DataError
from llmft.metrics.standard_errors import F64S, Metric

# What is measured on an evaluation set, and whether greater is better.
MASKED_LM = {"loss": False, "perplexity": False, "masked_accuracy": True}
CAUSAL_LM = {"loss": False, "perplexity": False, "token_accuracy": True}


class TokenPrediction(Metric):
    """Loss, perplexity and accuracy over all predicted tokens.

    ``predictions`` has one row an example: the sum of its negative log-likelihoods
    (nats), its predicted tokens, and how many of them were right. Perplexity is exp of
    the total loss over all tokens, never a mean of batch means. The standard errors
    are those of a ratio estimator with the example as the unit, since tokens of a
    text are not independent (Cochran, Sampling Techniques, 1977, section 6.4).
    ``loss`` replaces the mean of batch means that Trainer would report.
    """

    columns: ClassVar = {"predictions": F64S}

    def __init__(self, accuracy_name: str) -> None:
        super().__init__()
        self.accuracy_name = accuracy_name

    def _compute(self, **columns: Any) -> dict[str, float]:
        nll, tokens, right = np.asarray(columns["predictions"], dtype=np.float64).T
        total = tokens.sum()
        if not total:
            raise DataError(
                "no token to predict in the evaluation data", hint="give more text"
            )
        loss, loss_error = _ratio(nll, tokens)
        accuracy, accuracy_error = _ratio(right, tokens)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {
            "loss": loss,
            "loss_stderr": loss_error,
            "perplexity": perplexity,
            "perplexity_stderr": perplexity * loss_error,  # delta method
            self.accuracy_name: accuracy,
            f"{self.accuracy_name}_stderr": accuracy_error,
            "n": int(total),
        }


def _ratio(parts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return sum(parts) / sum(sizes) and the standard error of that ratio."""
    total, n = sizes.sum(), len(parts)
    ratio = parts.sum() / total
    if n < 2:
        return float(ratio), math.nan  # one example does not differ from others
    squares = ((parts - ratio * sizes) ** 2).sum()
    return float(ratio), float(math.sqrt(squares * n / (n - 1)) / total)
