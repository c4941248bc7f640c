"""How much each class counts in the loss of training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from llmft.config.choice import Choice
from llmft.config.parse import read_json
from llmft.data.read.labels import MULTI, LabelNames
from llmft.errors import ConfigError, listed, nearest, shorten

_FORMULA = {
    MULTI: "examples without the label / with it, as pos_weight",
    "": "examples / (classes * examples of the class)",
}


def class_weights(
    given: list[str], labels: LabelNames, train: Dataset | None
) -> list[float] | None:
    """Return the weight of each class in the order of ``labels``; None weighs none.

    Args:
        given: ``none``; ``balanced``; NAME=NUMBER for each class; or a JSON file that
            holds an object of them, in whose place they stand then.
        train: the training examples, with ``labels``.

    Raises:
        ConfigError: a class without weight, an unknown one, or no positive number.
    """
    if given == ["none"] or train is None:
        return None
    if given == ["balanced"]:
        return _balanced(labels, np.asarray(train["labels"][:]))
    if len(given) == 1 and "=" not in given[0]:
        values, problems = read_json(Path(given[0]).expanduser(), labels.names)
    else:
        values, problems = _from_words(given, labels.names)
    problems += [
        f"the weight of {shorten(name)} is {shorten(value)}, expected a number above 0"
        for name, value in values.items()
        if isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= sys.float_info.max
    ]
    if missing := [name for name in labels.names if name not in values]:
        problems.append(f"no weight for {listed(missing)}")
    if problems:
        raise ConfigError(*(f"class_weights: {problem}" for problem in problems))
    # A resume compares the numbers of a file, not its name.
    given[:] = [f"{name}={float(values[name])}" for name in labels.names]
    return [float(values[name]) for name in labels.names]


def _balanced(labels: LabelNames, targets: np.ndarray) -> list[float]:
    """Return the weights with which classes count alike, as sklearn has them.

    Of several labels a text, each is a question by itself, whose yes and no then count
    alike; a label that all rows have keeps 1.
    """
    rows = len(targets)
    if labels.problem_type == MULTI:
        having = targets.sum(0)
        weights = np.where(having < rows, (rows - having) / np.maximum(having, 1), 1.0)
    else:
        counts = np.bincount(targets, minlength=len(labels.names))
        weights = rows / (len(counts) * np.maximum(counts, 1))
    return [float(weight) for weight in weights]


def _from_words(
    words: list[str], names: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems = []
    for word in words:
        name, equals, number = word.rpartition("=")
        if not equals:
            said = "expected none, balanced, a JSON file, or NAME=NUMBER for each class"
            problems.append(f"{shorten(word)}, {said}")
        elif name not in names:
            problems.append(f"unknown class {shorten(name)}{nearest(name, names)}")
        elif name in values:
            problems.append(f"{shorten(name)} stands there twice")
        else:
            try:
                values[name] = float(number)
            except ValueError:
                values[name] = number
    return values, problems


def weights_choice(
    given: list[str], weights: list[float] | None, labels: LabelNames
) -> list[Choice]:
    """Return what to say of the weights in the plan, if there are any."""
    if weights is None:
        return []
    pairs = list(zip(labels.names, weights, strict=True))
    shown = ", ".join(f"{shorten(name)} {weight:.4g}" for name, weight in pairs[:10])
    more = f" and {len(pairs) - 10:,} more" if len(pairs) > 10 else ""
    why = "was given"
    if given == ["balanced"]:
        why = _FORMULA.get(labels.problem_type, _FORMULA[""])
    reason = f"{why}; in the loss of training only, not in metrics"
    return [Choice("weights", shown + more, reason)]
