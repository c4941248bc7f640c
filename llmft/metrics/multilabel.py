"""Metrics of texts that have several labels, each with n and a standard error."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction

from llmft.metrics.classes import F64, cache, info, mean_error, ratio

# Whether greater is better.
METRICS = {
    "loss": False,
    "f1_micro": True,
    "f1_macro": True,
    "subset_accuracy": True,
    "log_loss": False,
}


def multi_label_metrics(
    prediction: EvalPrediction, threshold: float = 0.5
) -> dict[str, float]:
    """``compute_metrics`` of a classifier of several labels; see ``MultiLabel``."""
    return MultiLabel(keep_in_memory=True, cache_dir=cache()).compute(
        predictions=prediction.predictions,
        references=prediction.label_ids,
        threshold=threshold,
    )


def probabilities(logits: Any) -> np.ndarray:
    """Return the probability of each label, float64 of the shape of ``logits``."""
    halves = np.tanh(np.asarray(logits, np.float64) / 2)  # never overflows
    return (halves + 1) / 2


class MultiLabel(evaluate.Metric):
    """Micro and macro F1, subset accuracy and log loss of label scores.

    ``predictions`` are logits of shape (n, labels), ``references`` 1 for each label
    that a text has and else 0. A text is given the labels whose probability is at least
    ``threshold``. Macro F1 is the mean over the labels that occur in either; subset
    accuracy the share of texts with exactly their labels; log loss the mean over texts
    and labels. The standard errors have the text as the unit: those of a mean, and for
    F1 those of a ratio estimator (delta method).
    """

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.List(F64)
        columns = datasets.Features({"predictions": rows, "references": rows})
        return info(self.__doc__, columns)

    def _compute(
        self, predictions: Any, references: Any, threshold: float
    ) -> dict[str, float]:
        logits = np.asarray(predictions, np.float64)
        labels = np.asarray(references, np.float64)
        guesses = (probabilities(logits) >= threshold).astype(np.float64)
        # log(1 + exp(z)) - y z, without overflow
        nll = (np.logaddexp(0, logits) - labels * logits).mean(1)
        same = (guesses == labels).all(1).astype(np.float64)
        twice = 2 * labels * guesses  # F1 is this over the labels and guesses
        both = labels + guesses
        micro, micro_error = 0.0, 0.0
        if both.any():
            micro, micro_error = ratio(twice.sum(1), both.sum(1))
        return {
            "loss": float(nll.mean()),
            "loss_stderr": mean_error(nll),
            "f1_micro": micro,
            "f1_micro_stderr": micro_error,
            "f1_macro": _macro(labels, guesses),
            "f1_macro_stderr": _macro_error(twice, both),
            "subset_accuracy": float(accuracy_score(labels, guesses)),
            "subset_accuracy_stderr": mean_error(same),
            "log_loss": float(nll.mean()),
            "log_loss_stderr": mean_error(nll),
            "n": len(labels),
        }


def _macro(labels: np.ndarray, guesses: np.ndarray) -> float:
    found = f1_score(labels, guesses, average="macro", zero_division=np.nan)
    return float(np.nan_to_num(found))


def _macro_error(twice: np.ndarray, both: np.ndarray) -> float:
    """Return the standard error of the mean over labels of sum(twice) / sum(both)."""
    used = both.sum(0) > 0
    if not used.any():
        return 0.0
    twice, both = twice[:, used], both[:, used]
    scores = twice.sum(0) / both.sum(0)
    influence = (twice - scores * both) / both.mean(0)
    return mean_error(influence.mean(1))
