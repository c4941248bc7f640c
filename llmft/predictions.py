"""What a classifier said about each text: rows, per-class table, worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.trainer_utils import PredictionOutput

from llmft import metrics
from llmft.console import cut, table, terminal_columns
from llmft.errors import escape


def rows(
    texts: Sequence[str], predicted: PredictionOutput, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return one row a text: text, label (None where unknown), prediction, probability.

    ``probabilities`` holds all classes in the order of ``names``.
    """
    probabilities = np.exp(
        metrics.log_softmax(np.asarray(predicted.predictions, float))
    )
    labels = predicted.label_ids
    found = []
    for i, (text, p) in enumerate(zip(texts, probabilities, strict=True)):
        best = int(p.argmax())
        found.append(
            {
                "row": i,
                "text": text,
                "label": None if labels is None else names[int(labels[i])],
                "prediction": names[best],
                "probability": round(float(p[best]), 6),
                "probabilities": [round(float(x), 6) for x in p],
            }
        )
    return found


def class_table(predicted: PredictionOutput, names: tuple[str, ...], split: str) -> str:
    """Return precision, recall, F1 and number of each class of ``split`` as a table."""
    if predicted.label_ids is None:
        return ""
    guesses = np.asarray(predicted.predictions).argmax(-1)
    found = metrics.per_class(np.asarray(predicted.label_ids), guesses, list(names))
    shown = [(n, *(f"{x:.3f}" for x in scores), k) for n, *scores, k in found]
    header = ["class", "precision", "recall", "f1", "n"]
    return f"\nclasses, on {split}\n" + table(shown, header)


def mistakes(found: list[dict[str, Any]], count: int) -> str:
    """Return the ``count`` mistakes that the model was surest of."""
    wrong = [
        r for r in found if r["label"] is not None and r["label"] != r["prediction"]
    ]
    wrong.sort(key=lambda r: -r["probability"])
    if not wrong or not count:
        return ""
    columns = terminal_columns()
    lines = [
        cut(
            f"  {r['probability']:.3f} {cut(escape(r['prediction']), 40)},"
            f" was {cut(escape(r['label']), 40)}: {escape(r['text'], 100)}",
            columns,
        )
        for r in wrong[:count]
    ]
    shown = f"{min(count, len(wrong))} of {len(wrong):,}"
    return "\n".join([f"\nmost confident mistakes, {shown}", *lines])
