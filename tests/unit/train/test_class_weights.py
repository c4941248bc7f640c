"""Weights of classes: those of sklearn, or as given; and given wrong."""

import json

import numpy as np
import pytest
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight

from llmft.data.read.labels import MULTI, LabelNames
from llmft.errors import ConfigError
from llmft.train.class_weights import class_weights, weights_choice

NAMES = LabelNames(("bad", "fair", "a=b"))
TRAIN = Dataset.from_dict({"labels": [0, 0, 0, 0, 0, 1, 1, 2]})
TAGS = Dataset.from_dict({"labels": [[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1.0]]})


def test_balanced_is_that_of_sklearn():
    found = class_weights(["balanced"], NAMES, TRAIN)
    wanted = compute_class_weight(
        "balanced", classes=np.arange(3), y=TRAIN["labels"][:]
    )
    assert found == pytest.approx(list(wanted))
    (choice,) = weights_choice(["balanced"], found, NAMES)
    assert (choice.name, choice.value) == (
        "weights",
        "'bad' 0.5333, 'fair' 1.333, 'a=b' 2.667",
    )
    assert choice.reason == (
        "examples / (classes * examples of the class); in the loss of training only,"
        " not in metrics"
    )


def test_balanced_lets_yes_and_no_of_a_label_count_alike():
    """The ratio of sklearn's weights of the two; a label of all rows keeps 1."""
    names = LabelNames(NAMES.names, MULTI)
    found = class_weights(["balanced"], names, TAGS)
    for i, weight in enumerate(found[:2]):
        column = np.array(TAGS["labels"])[:, i]
        no, yes = compute_class_weight("balanced", classes=np.array([0, 1]), y=column)
        assert weight == pytest.approx(yes / no)
    assert found[2] == 1
    reason = weights_choice(["balanced"], found, names)[0].reason
    assert reason.startswith("examples without the label / with it, as pos_weight; in")


def test_given_weights(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"fair": 2, "bad": 0.5, "a=b": 1}))
    given = [str(path)]
    assert class_weights(given, NAMES, TRAIN) == [0.5, 2, 1]
    # So a resume compares the numbers, not the name of a file that may change.
    wanted = zip(NAMES.names, (0.5, 2.0, 1.0), strict=True)
    assert given == [f"{name}={weight}" for name, weight in wanted]
    words = ["fair=2", "bad=0.5", "a=b=1"]
    assert class_weights(words, NAMES, TRAIN) == [0.5, 2, 1]
    assert weights_choice(words, [0.5, 2, 1], NAMES)[0].reason.startswith("was given;")
    assert class_weights(["none"], NAMES, TRAIN) is None
    assert class_weights(["balanced"], NAMES, None) is None
    assert weights_choice(["none"], None, NAMES) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["bad=1", "fair=2"], "class_weights: no weight for 'a=b'"),
        (["bda=1", "fair=2", "a=b=1"], "unknown class 'bda', did you mean bad?"),
        (["bad=0", "fair=1", "a=b=1"], "the weight of 'bad' is 0.0, expected a number"),
        (["bad=x", "fair=1", "a=b=1"], "the weight of 'bad' is 'x', expected a number"),
        (["bad=inf", "fair=1", "a=b=1"], "the weight of 'bad' is inf, expected a num"),
        (["bad=1", "bad=2", "fair=1", "a=b=1"], "class_weights: 'bad' stands there tw"),
        (["bad=1", "balanced"], "'balanced', expected none, balanced, a JSON file, or"),
        (["nothing.json"], "ConfigError nothing.json: cannot read it: No such file"),
    ],
)
def test_weights_that_are_wrong(given, said):
    with pytest.raises(ConfigError) as caught:
        class_weights(given, NAMES, TRAIN)
    assert said in str(caught.value)


def test_a_file_that_is_wrong(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"fiar": 2, "bad": True, "a=b": 1}))
    with pytest.raises(ConfigError) as caught:
        class_weights([str(path)], NAMES, TRAIN)
    assert str(caught.value) == (
        f"ConfigError: 3 problems: class_weights: {path}: unknown key 'fiar', did you"
        " mean fair?; class_weights: the weight of 'bad' is True, expected a number"
        " above 0; class_weights: no weight for 'fair'"
    )
