"""What a classifier said about each text."""

import json

import numpy as np
import pytest
from datasets import Dataset
from transformers.trainer_utils import PredictionOutput

from llmft import console
from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.metrics import predictions

NAMES = LabelNames(("bad", "fair", "good"))
TEXTS = Dataset.from_dict(
    {
        "text": ["one", "two \x1b[2J", "three", "four\nlines", "five"],
        "line": [2, 3, 4, 5, 7],
    }
)
LOGITS = np.log(
    [
        [0.7, 0.2, 0.1],
        [0.05, 0.05, 0.9],
        [0.1, 0.8, 0.1],
        [0.4, 0.25, 0.35],
        [0.5, 0.2, 0.3],
    ]
)
LABELS = np.array([0, 0, 1, 2, 2])


def predicted(labels=LABELS, logits=LOGITS):
    return PredictionOutput(np.asarray(logits, np.float32), labels, {})


def test_rows():
    found = predictions.rows(TEXTS, predicted(), NAMES)
    assert [r["row"] for r in found] == list(range(5))
    assert [r["line"] for r in found] == [2, 3, 4, 5, 7]
    assert [r["text"] for r in found] == TEXTS["text"][:]
    assert [r["label"] for r in found] == ["bad", "bad", "fair", "good", "good"]
    assert [r["prediction"] for r in found] == ["bad", "good", "fair", "bad", "bad"]
    assert [r["probability"] for r in found] == [0.7, 0.9, 0.8, 0.4, 0.5]
    assert [*found[3]["probabilities"].values()] == [0.4, 0.25, 0.35]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_probabilities_add_up_also_for_huge_logits():
    logits = np.random.default_rng(0).normal(0, 300, (50, 3))
    found = predictions.rows(
        Dataset.from_dict({"text": ["x"] * 50, "line": range(50)}),
        predicted(None, logits),
        NAMES,
    )
    for row, scores in zip(found, logits, strict=True):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert row["prediction"] == NAMES.names[scores.argmax()]
        assert row["probability"] == max(row["probabilities"].values())


def test_without_labels():
    found = predictions.rows(TEXTS, predicted(None), NAMES)
    assert [r["label"] for r in found] == [None] * 5
    assert predictions.mistakes(found, 5, NAMES) == ""
    assert predictions.class_table(predicted(None), NAMES, "test") == ""


def test_each_text_needs_its_scores():
    with pytest.raises(ValueError, match="longer"):
        predictions.rows(TEXTS.select(range(4)), predicted(), NAMES)


def test_mistakes_start_with_the_surest():
    found = predictions.rows(TEXTS, predicted(), NAMES)
    lines = [
        "\nmost confident mistakes, 3 of 3",
        "  0.900 good, was bad: two \\x1b[2J",
        "  0.500 bad, was good: five",
        "  0.400 bad, was good: four\\nlines",
    ]
    assert predictions.mistakes(found, 5, NAMES) == "\n".join(lines)
    lines[0] = "\nmost confident mistakes, 1 of 3"
    assert predictions.mistakes(found, 1, NAMES) == "\n".join(lines[:2])
    assert predictions.mistakes(found, 0, NAMES) == ""
    assert predictions.mistakes([found[0], found[2]], 5, NAMES) == ""
    long = [{**found[1], "text": "x" * 500}]
    assert predictions.mistakes(long, 1, NAMES).endswith(": " + "x" * 97 + "...")


def test_class_table():
    assert predictions.class_table(predicted(), NAMES, "test").split("\n") == [
        "",
        "classes, on test",
        "  class  precision  recall  f1     n",
        "  bad    0.333      0.500   0.400  2",
        "  fair   1.000      1.000   1.000  1",
        "  good   0.000      0.000   0.000  2",
    ]


def test_long_and_wide_names_and_texts_fit_the_terminal(monkeypatch):
    monkeypatch.setattr(predictions, "terminal_columns", lambda: 60)
    monkeypatch.setattr(console, "terminal_columns", lambda: 60)
    names = LabelNames(("漢" * 50, "b\x1b[2J", "c" * 200))
    shown = predictions.class_table(predicted(), names, "validation").split("\n")
    assert shown[1] == "classes, on validation"
    assert max(map(console.width, shown)) == 60
    assert len({console.width(line) for line in shown[2:]}) == 1  # columns line up
    assert shown[3].startswith("  漢漢")
    assert "漢..." in shown[3]
    assert shown[4].startswith("  b\\x1b[2J ")
    found = predictions.rows(
        Dataset.from_dict({"text": ["漢" * 90] * 5, "line": range(5)}),
        predicted(),
        names,
    )
    for line in predictions.mistakes(found, 5, NAMES).split("\n")[2:]:
        assert 58 < console.width(line) <= 60
        assert line.endswith("...")


PAIRS = Dataset.from_dict(
    {"text": ["one", "two"], "text_pair": ["a", "b\n"], "line": [2, 3]}
)


def test_several_labels():
    labels = LabelNames(("bad", "fair", "good"), MULTI)
    p = np.array([[0.9, 0.2, 0.6], [0.4, 0.45, 0.1]])
    wanted = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
    result = predicted(wanted, np.log(p / (1 - p)))
    found = predictions.rows(PAIRS, result, labels)
    assert found[0] == {
        "row": 0,
        "line": 2,
        "text": "one",
        "text_pair": "a",
        "label": ["bad", "fair"],
        "prediction": ["bad", "good"],
        "probabilities": {"bad": 0.9, "fair": 0.2, "good": 0.6},
    }
    assert (found[1]["label"], found[1]["prediction"]) == ([], [])
    assert predictions.mistakes(found, 5, labels) == (
        "\nmost confident mistakes, 1 of 1\n  0.800 bad, good, was bad, fair: one / a"
    )
    lower = predictions.rows(PAIRS, result, labels, 0.42)
    assert lower[1]["prediction"] == ["fair"]
    shown = predictions.mistakes(lower, 5, labels).split("\n")
    assert shown[3:] == ["  0.450 fair, was none: two / b\\n"]
    assert predictions.class_table(result, labels, "test").split("\n")[2:] == [
        "  class  precision  recall  f1     n",
        "  bad    1.000      1.000   1.000  1",
        "  fair   0.000      0.000   0.000  1",
        "  good   0.000      0.000   0.000  0",
    ]
    unknown = predicted(None, result.predictions)
    found = predictions.rows(PAIRS, unknown, labels)
    assert [r["label"] for r in found] == [None, None]
    assert predictions.mistakes(found, 5, labels) == ""
    assert predictions.class_table(unknown, labels, "test") == ""


def test_numbers():
    labels = LabelNames(("LABEL_0",), REGRESSION)
    result = predicted(np.array([0.1, 3.0], np.float32), [[0.3], [1.25]])
    found = predictions.rows(PAIRS, result, labels)
    assert found[0] == {
        "row": 0,
        "line": 2,
        "text": "one",
        "text_pair": "a",
        "label": 0.1,
        "prediction": 0.3,
    }
    assert predictions.mistakes(found, 5, labels) == (
        "\nlargest errors, 2 of 2\n"
        "  -1.750 1.25, was 3: two / b\\n\n"
        "  +0.200 0.3, was 0.1: one / a"
    )
    assert predictions.class_table(result, labels, "test") == ""
    found = predictions.rows(PAIRS, predicted(None, [[0.3], [1.25]]), labels)
    assert [r["label"] for r in found] == [None, None]
    assert predictions.mistakes(found, 5, labels) == ""
