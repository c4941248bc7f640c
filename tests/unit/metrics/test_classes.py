"""Every number against sklearn, every error against resampling."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn import metrics as sk
from transformers import EvalPrediction
from unit.metrics.test_standard_errors import RESAMPLED

from llmft.metrics.classes import Classification
from llmft.metrics.measures import per_class


def class_values(logits, labels):
    return Classification()(EvalPrediction(np.asarray(logits), np.array(labels)))


def scored(classes, n, absent=None):
    """Logits and labels, right about two times of three; ``absent`` never occurs."""
    draw = np.random.default_rng(classes)
    present = [c for c in range(classes) if c != absent]
    weights = np.arange(1, len(present) + 1)
    labels = draw.choice(present, n, p=weights / weights.sum())
    logits = draw.normal(0, 1, (n, classes))
    logits[np.arange(n), labels] += 1.2
    if absent is not None:
        logits[:, absent] = -20
    return logits, labels


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (5, None), (5, 2)])
def test_classification_equals_sklearn(classes, absent):
    logits, labels = scored(classes, 300, absent)
    found = class_values(logits, labels)
    guesses = logits.argmax(1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = {
        "accuracy": sk.accuracy_score(labels, guesses),
        "f1_macro": sk.f1_score(labels, guesses, average="macro"),
        "matthews_correlation": sk.matthews_corrcoef(labels, guesses),
        "log_loss": sk.log_loss(labels, p, labels=range(classes)),
        "n": 300,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["loss"] == found["log_loss"]
    nll = -np.log(p[np.arange(300), labels])
    of_mean = pytest.approx(nll.std(ddof=1) / 300**0.5, rel=RESAMPLED)
    assert found["log_loss_stderr"] == of_mean
    accuracy = wanted["accuracy"]
    binomial = (accuracy * (1 - accuracy) / 299) ** 0.5
    assert found["accuracy_stderr"] == pytest.approx(binomial, rel=RESAMPLED)
    draw = np.random.default_rng(11)
    f1, matthews = [], []
    for _ in range(500):
        pick = draw.integers(0, 300, 300)
        f1.append(sk.f1_score(labels[pick], guesses[pick], average="macro"))
        matthews.append(sk.matthews_corrcoef(labels[pick], guesses[pick]))
    for name, values in (("f1_macro", f1), ("matthews_correlation", matthews)):
        found_error = found[f"{name}_stderr"]
        assert found_error == pytest.approx(np.std(values), rel=RESAMPLED), name


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_classification_edges():
    one = class_values([[0.0, 2.0]], [1])
    assert (one["accuracy"], one["accuracy_stderr"], one["n"]) == (1, 0, 1)
    assert one["f1_macro_stderr"] == one["matthews_correlation_stderr"] == 0
    always = class_values([[3.0, 0.0]] * 4, [0, 0, 1, 0])
    assert always["matthews_correlation"] == 0
    assert all(math.isfinite(value) for value in always.values())


def test_log_softmax_with_huge_logits():
    logits = np.array([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]])
    found = log_softmax(logits, axis=-1)
    np.testing.assert_allclose(found[0], [0, -1e4, -2e4])
    np.testing.assert_allclose(np.exp(found[1]), [1 / 3] * 3)
    wrong = class_values(logits[:1], [2])
    assert wrong["log_loss"] == pytest.approx(2e4)


def test_per_class():
    labels, guesses = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 1])
    rows = per_class(labels, guesses, ["a", "b", "never", "d"])
    assert rows[0] == ("a", pytest.approx(2 / 3), pytest.approx(2 / 3), 2 / 3, 3, 2)
    assert rows[1] == ("b", pytest.approx(1 / 3), 0.5, pytest.approx(0.4), 2, 1)
    assert rows[2] == ("never", 0, 0, 0, 0, 0)
    assert rows[3] == ("d", 0, 0, 0, 1, 0)
    # A table sets numbers of Python to the right.
    assert {type(cell) for cell in rows[0]} == {str, float, int}


def test_per_class_of_several_labels():
    """Also of a single one, which sklearn would take for two classes."""
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    guesses = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    wanted = [("a", 0.5, 0.5, 0.5, 2, 1), ("b", 0.5, 0.5, 0.5, 2, 1)]
    assert per_class(labels, guesses, ["a", "b"]) == wanted
    assert per_class(labels[:, :1], guesses[:, :1], ["a"]) == wanted[:1]
    assert per_class(labels[:, :1], 0 * guesses[:, :1], ["a"]) == [("a", 0, 0, 0, 2, 0)]
