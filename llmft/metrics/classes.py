"""Metrics that work offline, each with n and a standard error.

They are ``evaluate.Metric`` classes of this package: ``evaluate.load`` would fetch
its code from the hub. Each value ``x`` comes with ``x_stderr``, and all with ``n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from transformers import EvalPrediction

from llmft.errors import DataError
from llmft.sources import catalog

# What each task measures on its evaluation set, and whether greater is better.
MASKED_LM = {"loss": False, "perplexity": False, "masked_accuracy": True}
CAUSAL_LM = {"loss": False, "perplexity": False, "token_accuracy": True}
CLASSIFICATION = {
    "loss": False,
    "accuracy": True,
    "f1_macro": True,
    "matthews_correlation": True,
    "log_loss": False,
}
_BOOTSTRAPS = 1000
_FEWEST_BOOTSTRAPS = 300  # a standard error is then known to 4 %, with 1,000 to 2 %
_CHUNK = 10**6  # numbers of a chunk of draws


def token_metrics(accuracy_name: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return ``compute_metrics`` of a language model; see ``TokenPrediction``.

    ``loss`` in it replaces the mean of batch means that Trainer would report.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        metric = TokenPrediction(keep_in_memory=True, cache_dir=cache())
        return metric.compute(
            predictions=prediction.predictions, accuracy_name=accuracy_name
        )

    return compute


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """``compute_metrics`` of a classifier; see ``Classification``."""
    return Classification(keep_in_memory=True, cache_dir=cache()).compute(
        predictions=prediction.predictions, references=prediction.label_ids
    )


def cache() -> str:
    """The folder that ``evaluate`` makes for a metric, though this one needs none."""
    return str(catalog.cache_home() / "metrics")


class TokenPrediction(evaluate.Metric):
    """Loss, perplexity and accuracy over all predicted tokens.

    ``predictions`` has one row an example: the sum of its negative log-likelihoods
    (nats), its predicted tokens, and how many of them were right. Perplexity is exp of
    the total loss over all tokens, never a mean of batch means. The standard errors
    are those of a ratio estimator with the example as the unit, since tokens of a
    text are not independent (Cochran, Sampling Techniques, 1977, section 6.4).
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.Features({"predictions": datasets.List(F64)})
        return info(self.__doc__, columns)

    def _compute(self, predictions: Any, accuracy_name: str) -> dict[str, float]:
        nll, tokens, right = np.asarray(predictions, dtype=np.float64).T
        total = tokens.sum()
        if not total:
            raise DataError(
                "no token to predict in the evaluation data", hint="give more text"
            )
        loss, loss_error = ratio(nll, tokens)
        accuracy, accuracy_error = ratio(right, tokens)
        perplexity = _exp(loss)
        return {
            "loss": loss,
            "loss_stderr": loss_error,
            "perplexity": perplexity,
            "perplexity_stderr": perplexity * loss_error,  # delta method
            accuracy_name: accuracy,
            f"{accuracy_name}_stderr": accuracy_error,
            "n": int(total),
        }


class Classification(evaluate.Metric):
    """Accuracy, macro F1, Matthews correlation and log loss of class scores.

    ``predictions`` are logits of shape (n, classes), ``references`` class ids. Macro
    F1 is the mean over the classes that occur in either. The standard errors of
    accuracy and log loss are those of a mean; those of macro F1 and Matthews
    correlation come from 1,000 bootstrap draws of the confusion matrix, or from as
    few as 300 where it has many thousand cells that are not zero.
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.Features(
            {"predictions": datasets.List(F64), "references": datasets.Value("int64")}
        )
        return info(self.__doc__, columns)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        logits = np.asarray(predictions, dtype=np.float64)
        labels = np.asarray(references)
        guesses = logits.argmax(-1)
        nll = -log_softmax(logits)[np.arange(len(labels)), labels]
        right = (guesses == labels).astype(np.float64)
        matrix = confusion(labels, guesses, logits.shape[-1])
        f1_error, matthews_error = _bootstrap(matrix)
        return {
            "loss": float(nll.mean()),
            "loss_stderr": mean_error(nll),
            "accuracy": float(right.mean()),
            "accuracy_stderr": mean_error(right),
            "f1_macro": float(f1_score(labels, guesses, average="macro")),
            "f1_macro_stderr": f1_error,
            "matthews_correlation": float(matthews_corrcoef(labels, guesses)),
            "matthews_correlation_stderr": matthews_error,
            "log_loss": float(nll.mean()),
            "log_loss_stderr": mean_error(nll),
            "n": len(labels),
        }


F64 = datasets.Value("float64")


def info(description: str | None, features: datasets.Features) -> evaluate.MetricInfo:
    """Return what an ``evaluate.Metric`` has to say of itself."""
    return evaluate.MetricInfo(
        description=description or "", citation="", features=features
    )


def per_class(
    labels: np.ndarray, guesses: np.ndarray, names: list[str]
) -> list[tuple[str, float, float, float, int]]:
    """Return name, precision, recall, F1 and number of examples of each class."""
    columns = precision_recall_fscore_support(
        labels, guesses, labels=range(len(names)), zero_division=0.0
    )
    rows = zip(names, *columns, strict=True)
    return [(n, float(p), float(r), float(f), int(k)) for n, p, r, f, k in rows]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def confusion(labels: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """Return counts of shape (classes, classes): true class by row."""
    cells = np.bincount(labels * classes + guesses, minlength=classes * classes)
    return cells.reshape(classes, classes)


def ratio(parts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return sum(parts) / sum(sizes) and the standard error of that ratio."""
    total, n = sizes.sum(), len(parts)
    ratio = parts.sum() / total
    if n < 2:
        return float(ratio), 0.0
    squares = ((parts - ratio * sizes) ** 2).sum()
    return float(ratio), float(math.sqrt(squares * n / (n - 1)) / total)


def mean_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of ``values``, 0 for a single one."""
    return (
        float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _bootstrap(matrix: np.ndarray) -> tuple[float, float]:
    """Return the standard errors of macro F1 and Matthews correlation.

    Both depend on the confusion matrix alone, so that drawing n examples with
    replacement is one multinomial draw of its cells. Cells without an example stay
    so, and are left out; the draws come in chunks of a few MB.
    """
    rows, columns = matrix.nonzero()  # in the order of rows
    counts = matrix[rows, columns]
    draws = int(np.clip(10**7 // len(counts), _FEWEST_BOOTSTRAPS, _BOOTSTRAPS))
    chunk = _CHUNK // (len(counts) + len(matrix)) + 1
    generator = np.random.default_rng(0)
    n = int(counts.sum())
    macro, matthews = [], []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        cells = generator.multinomial(n, counts / n, size).astype(np.float64)
        true, guessed = _sums(cells, rows, matrix), _sums(cells, columns, matrix)
        on_diagonal = rows == columns
        hits = np.zeros_like(true)
        hits[:, rows[on_diagonal]] = cells[:, on_diagonal]
        both = true + guessed
        f1 = 2 * hits / np.maximum(both, 1)
        macro.append(f1.sum(1) / (both > 0).sum(1))
        # Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006
        joint = hits.sum(1) * n - (true * guessed).sum(1)
        spread = (n * n - (guessed**2).sum(1)) * (n * n - (true**2).sum(1))
        spread = np.sqrt(np.maximum(spread, 0))
        matthews.append(np.where(spread > 0, joint / np.maximum(spread, 1e-300), 0.0))
    errors = [float(np.concatenate(x).std(ddof=1)) for x in (macro, matthews)]
    return errors[0], errors[1]


def _sums(cells: np.ndarray, classes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the sums over the cells of each class, (draws, classes)."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(cells), len(matrix)))
    sums[:, present] = np.add.reduceat(cells[:, order], starts, axis=1)
    return sums
