"""What a classifier said about each text: rows, per-class table, worst mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import expit, log_softmax
from transformers.trainer_utils import PredictionOutput

from llmft.config.fields import ClassificationDataArguments
from llmft.console import cut, say, table, terminal_columns
from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.errors import escape
from llmft.metrics import classes


def rows(
    data: Dataset,
    predicted: PredictionOutput,
    labels: LabelNames,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Return one row a text: line, text, label (None where unknown), prediction.

    Of classes also the ``probability`` of the predicted one, and ``probabilities`` of
    all by name; where a text has several labels, ``label`` and ``prediction`` are lists
    of names, and the latter has those of at least ``threshold``.
    """
    names = ["line", *(n for n in ("text", "text_pair") if n in data.column_names)]
    scores, known = np.asarray(predicted.predictions, float), predicted.label_ids
    if labels.problem_type == MULTI:
        scores = expit(scores)
    elif labels.problem_type != REGRESSION:
        scores = np.exp(log_softmax(scores, axis=-1))
    wanted = [None] * len(scores) if known is None else list(known)
    columns = [data[name][:] for name in names]
    found: list[dict[str, Any]] = []
    for *values, p, label in zip(*columns, scores, wanted, strict=True):
        row = {"row": len(found), **dict(zip(names, values, strict=True))}
        found.append(row | _described(p, label, labels, threshold))
    return found


def _described(
    scores: np.ndarray, label: Any, labels: LabelNames, threshold: float
) -> dict[str, Any]:
    """Return label and prediction of a text and, of classes, the probabilities."""
    names, known = labels.names, label is not None
    if labels.problem_type == REGRESSION:
        # The shortest text that gives a float32 back: 0.1, not 0.10000000149011612.
        prediction = float(str(np.float32(scores[0])))
        label = float(str(np.float32(label))) if known else None
        return {"label": label, "prediction": prediction}
    by_name = {name: round(float(p), 6) for name, p in zip(names, scores, strict=True)}
    if labels.problem_type == MULTI:
        return {
            "label": [names[i] for i in label.nonzero()[0]] if known else None,
            "prediction": [names[i] for i in (scores >= threshold).nonzero()[0]],
            "probabilities": by_name,
        }
    best = int(scores.argmax())
    return {
        "label": names[int(label)] if known else None,
        "prediction": names[best],
        "probability": round(float(scores[best]), 6),
        "probabilities": by_name,
    }


def show(
    found: list[dict[str, Any]],
    predicted: PredictionOutput,
    labels: LabelNames,
    split: str,
    args: ClassificationDataArguments,
) -> None:
    """Print ``class_table`` and the worst ``mistakes`` of what ``rows`` gave."""
    by_class = class_table(predicted, labels, split, args.multi_label_threshold)
    for shown in (by_class, mistakes(found, args.num_mistakes, labels)):
        if shown:
            say(shown)


def class_table(
    predicted: PredictionOutput, labels: LabelNames, split: str, threshold: float = 0.5
) -> str:
    """Return precision, recall, F1 and number of each class of ``split`` as a table."""
    if predicted.label_ids is None or labels.problem_type == REGRESSION:
        return ""
    scores = np.asarray(predicted.predictions)
    guesses = scores.argmax(-1)
    if labels.problem_type == MULTI:
        guesses = expit(scores) >= threshold
    names, wanted = list(labels.names), np.asarray(predicted.label_ids)
    found = classes.per_class(wanted, guesses, names)
    shown = [(n, *(f"{x:.3f}" for x in scores), k) for n, *scores, k in found]
    header = ["class", "precision", "recall", "f1", "n"]
    return f"\nclasses, on {split}\n" + table(shown, header)


def mistakes(found: list[dict[str, Any]], count: int, labels: LabelNames) -> str:
    """Return the mistakes the model was surest of, or the largest errors of numbers."""
    wrong = [
        (_size(row, labels), row)
        for row in found
        if row["label"] is not None and row["label"] != row["prediction"]
    ]
    wrong.sort(key=lambda pair: -abs(pair[0]))
    if not wrong or not count:
        return ""
    columns = terminal_columns()
    sign = "+" if labels.problem_type == REGRESSION else ""
    lines = []
    for size, row in wrong[:count]:
        said, was = _shown(row["prediction"]), _shown(row["label"])
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        text = escape(" / ".join(texts), 100)
        lines.append(cut(f"  {size:{sign}.3f} {said}, was {was}: {text}", columns))
    shown = f"{min(count, len(wrong))} of {len(wrong):,}"
    what = "largest errors" if sign else "most confident mistakes"
    return "\n".join([f"\n{what}, {shown}", *lines])


def _size(row: dict[str, Any], labels: LabelNames) -> float:
    """Return how wrong a row is: how likely the wrong seemed, or the error."""
    if labels.problem_type == REGRESSION:
        return float(row["prediction"] - row["label"])
    if labels.problem_type == MULTI:
        p, given = row["probabilities"], row["label"]
        return max(abs((n in given) - p[n]) for n in {*given} ^ {*row["prediction"]})
    return float(row["probability"])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(value) or "none"
    return cut(escape(f"{value:.6g}" if isinstance(value, float) else value), 40)
