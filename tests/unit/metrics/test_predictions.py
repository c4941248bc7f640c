"""What a classifier said about each text."""

import json

import numpy as np
import pytest
from datasets import Dataset
from transformers.trainer_utils import PredictionOutput

from llmft import console
from llmft.config.fields import ClassificationDataArguments
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.metrics import predictions
from llmft.metrics.ladder import Rung

NAMES = LabelNames(("bad", "fair", "good"))
ARGS = ClassificationDataArguments()
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
    found = predictions.rows(TEXTS, predicted(), NAMES, ARGS)
    assert [r["row"] for r in found] == list(range(5))
    assert [r["line"] for r in found] == [2, 3, 4, 5, 7]
    assert [r["text"] for r in found] == TEXTS["text"][:]
    assert [r["label"] for r in found] == ["bad", "bad", "fair", "good", "good"]
    assert [r["prediction"] for r in found] == ["bad", "good", "fair", "bad", "bad"]
    assert [r["probability"] for r in found] == [0.7, 0.9, 0.8, 0.4, 0.5]
    assert [*found[3]["probabilities"].values()] == [0.4, 0.25, 0.35]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("kind", "scores", "wanted"),
    [
        (SINGLE, np.log([0.2, 0.5, 0.3]), {"prediction": "fair", "probability": 0.5}),
        (MULTI, np.array([1.0, -1.0, 2.0]), {"prediction": ["bad", "good"]}),
        (REGRESSION, np.array([0.1]), {"prediction": 0.1}),
    ],
)
def test_what_other_methods_say(kind, scores, wanted):
    names = NAMES.names if kind != REGRESSION else ("LABEL_0",)
    result = predicted(None, np.tile(scores, (5, 1)))
    plain = predictions.rows(TEXTS, result, LabelNames(names, kind), ARGS)
    first = np.zeros((5, len(names)))
    first[:, 0] = 3.0
    rungs = [
        Rung("TF-IDF + logistic regression", np.tile(scores, (5, 1))),
        Rung("linear probe", first),
    ]
    found = predictions.rows(TEXTS, result, LabelNames(names, kind), ARGS, rungs)
    for row, without in zip(found, plain, strict=True):
        said = row.pop("rungs")
        assert row == without
        assert list(said) == ["TF-IDF", "linear probe"]
        assert said["TF-IDF"] == wanted
        assert said["linear probe"]["prediction"] in (
            "bad",
            ["bad", "fair", "good"],
            3.0,
        )
    with pytest.raises(ValueError, match="shorter"):
        predictions.rows(TEXTS, result, NAMES, ARGS, [Rung("few", first[:4])])


def test_probabilities_add_up_also_for_huge_logits():
    logits = np.random.default_rng(0).normal(0, 300, (50, 3))
    found = predictions.rows(
        Dataset.from_dict({"text": ["x"] * 50, "line": range(50)}),
        predicted(None, logits),
        NAMES,
        ARGS,
    )
    for row, scores in zip(found, logits, strict=True):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert row["prediction"] == NAMES.names[scores.argmax()]
        assert row["probability"] == max(row["probabilities"].values())


def test_without_labels():
    found = predictions.rows(TEXTS, predicted(None), NAMES, ARGS)
    assert [r["label"] for r in found] == [None] * 5
    assert predictions.mistakes(found, 5, NAMES) == ""
    assert predictions.class_table(predicted(None), NAMES, "test") == ""


def test_each_text_needs_its_scores():
    with pytest.raises(ValueError, match="longer"):
        predictions.rows(TEXTS.select(range(4)), predicted(), NAMES, ARGS)


def test_mistakes_start_with_the_surest():
    found = predictions.rows(TEXTS, predicted(), NAMES, ARGS)
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
        ARGS,
    )
    for line in predictions.mistakes(found, 5, NAMES).split("\n")[2:]:
        assert 58 < console.width(line) <= 60
        assert line.endswith("...")


def one_of_each(*classes):
    """Logits that give each text one of three classes, or of several labels one."""
    return np.eye(3)[list(classes)] * 20.0 - 10.0


MORE, WEIGH = "more rows of them", "--class_weights balanced"
EPOCHS, LOWER = "more --num_train_epochs", "a lower --multi_label_threshold"


@pytest.mark.parametrize(
    ("guesses", "labels", "rows", "flags", "never", "few", "helps"),
    [
        # All are predicted and have enough rows, or a class is in no text.
        ([0, 1, 2], [0, 1, 2], [9, 9, 5], {}, {}, {}, None),
        ([0, 1, 1], [0, 1, 1], [9, 9, 9], {}, {}, {}, None),
        ([0, 1, 1], [0, 1, 2], [9, 9, 4], {}, {"good": 4}, {"good": 4}, [MORE, WEIGH]),
        ([0, 1, 1], [0, 1, 2], [9, 9, 9], {}, {"good": 9}, {}, [EPOCHS]),
        ([0, 1, 1], [0, 1, 2], [30, 30, 6], {"class_weights": ["balanced"]},
         {"good": 6}, {}, [MORE, EPOCHS]),
        ([0, 1, 2], [0, 1, 2], [3, 20, 1], {}, {}, {"good": 1, "bad": 3},
         [MORE, WEIGH]),
        ([0, 1, 2], [0, 1, 2], [4, 4, 4], {}, {}, {"bad": 4, "fair": 4, "good": 4},
         [MORE]),
        ([0, 1, 1], [0, 1, 2], None, {}, {"good": None}, {}, [MORE]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_weak_classes(kind, guesses, labels, rows, flags, never, few, helps):
    names, parts = LabelNames(NAMES.names, kind), {}
    if rows is not None:
        had = [
            n for n, count in zip(names.names, rows, strict=True) for _ in range(count)
        ]
        had = [json.dumps([name]) for name in had] if kind == MULTI else had
        parts["train"] = Dataset.from_dict({"label": had})
    wanted = np.eye(3)[labels] if kind == MULTI else np.array(labels)
    args = ClassificationDataArguments(**flags)
    result = predicted(wanted, one_of_each(*guesses))
    found = predictions.weak_classes(result, names, parts, args)
    if helps is None:
        assert (found, predictions.weak_lines(found)) == ({}, "")
        return
    helps = helps + [LOWER] * bool(never and kind == MULTI)
    keys = ("never_predicted", "few_training_rows", "what_helps")
    assert found == dict(zip(keys, (never, few, helps), strict=True))
    assert list(found["few_training_rows"]) == list(few)  # the fewest first
    said = predictions.weak_lines(found).split("\n")
    assert len(said) == 1 + bool(never) + bool(few)
    assert said[-1] == "  what helps: " + "; ".join(helps)


def test_many_weak_classes_are_counted():
    weak = {"never_predicted": {f"c{i}": None for i in range(9)} | {"x" * 99: 1_234}}
    weak |= {"few_training_rows": {"a\n": 3, "b": 4}, "what_helps": ["this", "that"]}
    assert predictions.weak_lines(weak) == (
        "  never predicted (training rows): 'c0', 'c1', 'c2', 'c3', 'c4' and 5 more"
        "\n  fewer than 5 training rows: 'a\\n' (3), 'b' (4)"
        "\n  what helps: this; that"
    )


PAIRS = Dataset.from_dict(
    {"text": ["one", "two"], "text_pair": ["a", "b\n"], "line": [2, 3]}
)


def test_several_labels():
    labels = LabelNames(("bad", "fair", "good"), MULTI)
    p = np.array([[0.9, 0.2, 0.6], [0.4, 0.45, 0.1]])
    wanted = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
    result = predicted(wanted, np.log(p / (1 - p)))
    found = predictions.rows(PAIRS, result, labels, ARGS)
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
    low = ClassificationDataArguments(multi_label_threshold=0.42)
    lower = predictions.rows(PAIRS, result, labels, low)
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
    found = predictions.rows(PAIRS, unknown, labels, ARGS)
    assert [r["label"] for r in found] == [None, None]
    assert predictions.mistakes(found, 5, labels) == ""
    assert predictions.class_table(unknown, labels, "test") == ""


def test_numbers():
    labels = LabelNames(("LABEL_0",), REGRESSION)
    result = predicted(np.array([0.1, 3.0], np.float32), [[0.3], [1.25]])
    found = predictions.rows(PAIRS, result, labels, ARGS)
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
    found = predictions.rows(PAIRS, predicted(None, [[0.3], [1.25]]), labels, ARGS)
    assert [r["label"] for r in found] == [None, None]
    assert predictions.mistakes(found, 5, labels) == ""


def test_rows_of_several_files_say_which():
    texts, files = TEXTS.add_column("file", [0, 1, 0, 1, 1]), ["a.csv", "b.csv"]
    placed = predictions.rows(texts, predicted(), NAMES, ARGS, files=files)
    assert [row.pop("path") for row in placed] == [files[i] for i in (0, 1, 0, 1, 1)]
    alone = TEXTS.add_column("file", [0] * 5)
    assert placed == predictions.rows(alone, predicted(), NAMES, ARGS, files=["a.csv"])


def test_a_method_that_says_another_class_says_how_probable_the_label_is():
    scores = np.log(np.tile([0.2, 0.7, 0.1], (5, 1)))
    found = predictions.rows(TEXTS, predicted(), NAMES, ARGS, [Rung("few", scores)])
    for row in found:
        said = row["rungs"]["few"]
        if row["label"] == NAMES.names[1]:
            assert "label_probability" not in said
        else:
            p = [0.2, 0.7, 0.1][list(NAMES.names).index(row["label"])]
            assert said["label_probability"] == pytest.approx(p)


def test_labels_of_some_rows_come_in_the_order_of_predictions():
    """Else a text whose labels are all right would be a mistake."""
    labels = ['["good", "bad"]', None, '["fair"]', "[]", '["bad"]']
    names = LabelNames(NAMES.names, MULTI)
    scores = np.tile([1.0, -1.0, 2.0], (5, 1))
    found = predictions.rows(
        TEXTS.add_column("label", labels), predicted(None, scores), names, ARGS
    )
    shown = [row["label"] for row in found]
    assert shown == [["bad", "good"], None, ["fair"], [], ["bad"]]
    assert "most confident mistakes, 3 of 3" in predictions.mistakes(found, 9, names)
    none = Dataset.from_list([*TEXTS.add_column("label", labels)][1:2])  # was drawn
    (row,) = predictions.rows(none, predicted(None, scores[:1]), names, ARGS)
    assert row["label"] is None
    # A class by its number, where the model has names of its own.
    names = LabelNames(("LABEL_0", "LABEL_1", "LABEL_2"))
    labels = ["0", None, "2", "1", "0"]
    data = TEXTS.add_column("label", labels)
    found = predictions.rows(data, predicted(None), names, ARGS)
    shown = [row["label"] for row in found]
    assert shown == [x and f"LABEL_{x}" for x in labels]
