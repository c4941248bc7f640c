"""What a classifier said about each text: rows, per-class table, worst mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from transformers.trainer_utils import PredictionOutput

from llmft.config.fields import ClassificationDataArguments
from llmft.console import cut, say, table, terminal_columns
from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.errors import escape
from llmft.metrics import classes
from llmft.metrics.multilabel import probabilities


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

    Args:
        data: ``text`` and maybe ``text_pair``, and the ``line`` where each begins.
    """
    names = [n for n in ("text", "text_pair") if n in data.column_names]
    texts = zip(*(data[name][:] for name in names), strict=True)
    logits, known = np.asarray(predicted.predictions, float), predicted.label_ids
    wanted = [None] * len(logits) if known is None else list(known)
    lines = data["line"][:]
    describe = {MULTI: _several, REGRESSION: _number}.get(labels.problem_type, _single)
    return [
        {
            "row": i,
            "line": lines[i],
            **dict(zip(names, text, strict=True)),
            **describe(scores, label, labels.names, threshold),
        }
        for i, (text, scores, label) in enumerate(
            zip(texts, logits, wanted, strict=True)
        )
    ]


def _single(
    scores: np.ndarray, label: Any, names: tuple[str, ...], threshold: float
) -> dict[str, Any]:
    p = np.exp(classes.log_softmax(scores))
    best = int(p.argmax())
    return {
        "label": None if label is None else names[int(label)],
        "prediction": names[best],
        "probability": round(float(p[best]), 6),
        "probabilities": _by_name(names, p),
    }


def _several(
    scores: np.ndarray, label: Any, names: tuple[str, ...], threshold: float
) -> dict[str, Any]:
    p = probabilities(scores)
    given = (p >= threshold).nonzero()[0]
    return {
        "label": None if label is None else [names[i] for i in label.nonzero()[0]],
        "prediction": [names[i] for i in given],
        "probabilities": _by_name(names, p),
    }


def _by_name(names: tuple[str, ...], p: np.ndarray) -> dict[str, float]:
    return {name: round(float(x), 6) for name, x in zip(names, p, strict=True)}


def _number(
    scores: np.ndarray, label: Any, names: tuple[str, ...], threshold: float
) -> dict[str, Any]:
    # The shortest text that gives a float32 back: 0.1, not 0.10000000149011612.
    return {
        "label": None if label is None else float(str(np.float32(label))),
        "prediction": float(str(np.float32(scores[0]))),
    }


def show(
    found: list[dict[str, Any]],
    predicted: PredictionOutput,
    labels: LabelNames,
    split: str,
    args: ClassificationDataArguments,
) -> None:
    """Print ``class_table`` and the worst ``mistakes``.

    Args:
        found: as ``rows`` gives them.
    """
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
        guesses = probabilities(scores) >= threshold
    names, wanted = list(labels.names), np.asarray(predicted.label_ids)
    found = classes.per_class(wanted, guesses, names)
    shown = [(n, *(f"{x:.3f}" for x in scores), k) for n, *scores, k in found]
    header = ["class", "precision", "recall", "f1", "n"]
    return f"\nclasses, on {split}\n" + table(shown, header)


def mistakes(found: list[dict[str, Any]], count: int, labels: LabelNames) -> str:
    """Return the ``count`` worst mistakes.

    That is those that the model was surest of, or the largest errors of a regression.
    """
    sizes = [
        (_size(row, labels), row) for row in found if row["label"] != row["prediction"]
    ]
    wrong = [(size, row) for size, row in sizes if row["label"] is not None]
    wrong.sort(key=lambda pair: -abs(pair[0]))
    if not wrong or not count:
        return ""
    columns = terminal_columns()
    sign = "+" if labels.problem_type == REGRESSION else ""
    lines = [
        cut(
            f"  {size:{sign}.3f} {_shown(row['prediction'])},"
            f" was {_shown(row['label'])}: {_text(row)}",
            columns,
        )
        for size, row in wrong[:count]
    ]
    shown = f"{min(count, len(wrong))} of {len(wrong):,}"
    what = "largest errors" if sign else "most confident mistakes"
    return "\n".join([f"\n{what}, {shown}", *lines])


def _size(row: dict[str, Any], labels: LabelNames) -> float:
    """Return how wrong a row is: how likely the wrong seemed, or the error."""
    if row["label"] is None:
        return 0.0
    if labels.problem_type == REGRESSION:
        return float(row["prediction"] - row["label"])
    if labels.problem_type == MULTI:
        named = set(row["label"]) ^ set(row["prediction"])
        pairs = row["probabilities"].items()
        return max(
            (abs((n in row["label"]) - p) for n, p in pairs if n in named), default=0
        )
    return float(row["probability"])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(value) or "none"
    return cut(escape(f"{value:.6g}" if isinstance(value, float) else value), 40)


def _text(row: dict[str, Any]) -> str:
    texts = [row[name] for name in ("text", "text_pair") if name in row]
    return escape(" / ".join(texts), 100)
