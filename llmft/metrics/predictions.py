"""What a classifier said about each text: rows, per-class table, worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import expit, log_softmax
from transformers.trainer_utils import PredictionOutput

from llmft.config.fields import ClassificationDataArguments
from llmft.console import cut, say, table, terminal_columns
from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.errors import escape, listed, shorten
from llmft.metrics.ladder import Rung
from llmft.metrics.measures import per_class

FEW = 5  # training rows; a class of fewer is hardly learnt


def rows(
    data: Dataset,
    predicted: PredictionOutput,
    labels: LabelNames,
    args: ClassificationDataArguments,
    rungs: Sequence[Rung] = (),
    files: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return one row a text: line, text, label (None where unknown), prediction.

    Where the data are of several ``files`` also the ``path`` of its own.

    Of classes also the ``probability`` of the predicted one, and ``probabilities`` of
    all by name; where a text has several labels, ``label`` and ``prediction`` are lists
    of names, and the latter has those of at least ``multi_label_threshold``. Under
    ``rungs`` stands what each of these says instead, by its short name: its
    ``prediction`` and, of a class, the ``probability`` and, where that is another one
    than the label, the ``label_probability``.
    """
    names = ["line", *(n for n in ("text", "text_pair") if n in data.column_names)]
    if "file" in data.column_names and max(data["file"][:], default=0):
        names.append("file")
    scores, known = _probabilities(predicted.predictions, labels), predicted.label_ids
    wanted = [None] * len(scores) if known is None else list(known)
    if known is None and "label" in data.column_names:  # only some rows have one
        given = data["label"][:]
        there = [place for place, label in enumerate(given) if label is not None]
        some = [given[place] for place in there]
        targets = labels.targets(some, "the rows") if some else ()
        for place, target in zip(there, targets, strict=True):
            wanted[place] = target
    columns = [data[name][:] for name in names]
    least = args.multi_label_threshold
    found: list[dict[str, Any]] = []
    for *values, p, label in zip(*columns, scores, wanted, strict=True):
        row = {"row": len(found), **dict(zip(names, values, strict=True))}
        if "file" in row:
            row["path"] = str(files[row.pop("file")])
        found.append(row | _described(p, label, labels, least))
    for rung in rungs:
        others = _probabilities(rung.scores, labels)
        for row, p in zip(found, others, strict=True):
            said = _described(p, None, labels, least)
            kept: dict[str, Any] = {
                n: said[n] for n in ("prediction", "probability") if n in said
            }
            if "probability" in said and row["label"] not in (None, said["prediction"]):
                kept["label_probability"] = said["probabilities"][row["label"]]
            row.setdefault("rungs", {})[rung.short] = kept
    return found


def said(scores: Any, labels: LabelNames, threshold: float) -> list[dict[str, Any]]:
    """Return the prediction of each text as ``rows`` has it, without a label."""
    found = [
        _described(p, None, labels, threshold) for p in _probabilities(scores, labels)
    ]
    return [{n: x for n, x in row.items() if n != "label"} for row in found]


def _probabilities(scores: Any, labels: LabelNames) -> np.ndarray:
    """Return what logits say as probabilities; of a regression, the numbers."""
    scores = np.asarray(scores, float)
    if labels.problem_type == MULTI:
        return np.asarray(expit(scores))
    if labels.problem_type == REGRESSION:
        return scores
    return np.exp(log_softmax(scores, axis=-1))


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
    weak: dict[str, Any],
) -> None:
    """Print ``class_table``, weak classes and the worst ``mistakes`` of ``rows``."""
    by_class = class_table(predicted, labels, split, args.multi_label_threshold)
    worst = mistakes(found, args.num_mistakes, labels)
    for shown in (by_class, weak_lines(weak), worst):
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
    found = per_class(wanted, guesses, names)
    shown = [(n, *(f"{x:.3f}" for x in scores), k) for n, *scores, k, _ in found]
    header = ["class", "precision", "recall", "f1", "n"]
    return f"\nclasses, on {split}\n" + table(shown, header)


def weak_classes(
    predicted: PredictionOutput,
    labels: LabelNames,
    parts: Mapping[str, Dataset],
    args: ClassificationDataArguments,
) -> dict[str, Any]:
    """Return the classes that the model hardly knows, for ``metrics.json``.

    ``never_predicted`` are those that occur in what was predicted, and no text was
    given; ``few_training_rows`` those with fewer than ``FEW``. Both have the training
    rows by name, None where ``parts``, the rows by split, have no train. ``what_helps``
    says what to try. Empty where no class is weak.
    """
    train = parts.get("train")
    if predicted.label_ids is None or labels.problem_type == REGRESSION:
        return {}
    several, count = labels.problem_type == MULTI, len(labels.names)

    def counted(ids: np.ndarray) -> np.ndarray:
        return ids.sum(0) if several else np.bincount(ids, minlength=count)

    scores = np.asarray(predicted.predictions)
    least = args.multi_label_threshold
    guessed = counted(expit(scores) >= least if several else scores.argmax(-1))
    never = (counted(np.asarray(predicted.label_ids)) > 0) & (guessed == 0)
    rows, few = np.zeros(count, int), np.zeros(count, bool)
    if train is not None:
        rows = counted(labels.targets(train["label"][:], "train")).astype(int)
        few = rows < FEW

    def named(which: np.ndarray) -> dict[str, int | None]:
        order = [i for i in np.argsort(rows, kind="stable") if which[i]]
        known = train is not None
        return {labels.names[i]: int(rows[i]) if known else None for i in order}

    rare = (never | few) & (rows < rows.mean())
    helps = {
        "more rows of them": train is None or (rare | few).any(),
        "--class_weights balanced": rare.any() and args.class_weights == ["none"],
        "more --num_train_epochs": train is not None and (never & ~few).any(),
        "a lower --multi_label_threshold": several and never.any(),
    }
    if not (never | few).any():
        return {}
    return {
        "never_predicted": named(never),
        "few_training_rows": named(few),
        "what_helps": [what for what, applies in helps.items() if applies],
    }


def weak_lines(weak: dict[str, Any]) -> str:
    """Return what ``weak_classes`` found, for a terminal; "" where it is nothing."""

    def shown(rows: dict[str, int | None]) -> str:
        known = (
            shorten(n) + ("" if k is None else f" ({k:,})") for n, k in rows.items()
        )
        return listed(known, 5, str)

    titles = {
        "never_predicted": "  never predicted (training rows): ",
        "few_training_rows": f"  fewer than {FEW} training rows: ",
    }
    lines = [title + shown(weak[n]) for n, title in titles.items() if weak.get(n)]
    if lines:
        lines.append(f"  what helps: {'; '.join(weak['what_helps'])}")
    return "\n".join(lines)


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
