"""Metrics of several labels a text: those of sklearn, with errors as resampled."""

import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from transformers import EvalPrediction
from unit.metrics.test_calibration import plain
from unit.metrics.test_standard_errors import RESAMPLED

from llmft.metrics.classes import MultiLabel
from llmft.metrics.measures import LABELS as METRICS


def scored(n=400, classes=5, absent=None, seed=0):
    draw = np.random.default_rng(seed)
    rates = np.linspace(0.05, 0.6, classes)
    labels = (draw.random((n, classes)) < rates).astype(np.float32)
    logits = draw.normal(0, 1, (n, classes)) + 2.5 * labels - 1.2
    if absent is not None:
        labels[:, absent], logits[:, absent] = 0, -20
    return logits, labels


def values(logits, labels, threshold=0.5):
    return MultiLabel(threshold)(EvalPrediction(logits, labels))


def independent(logits, labels, threshold=0.5):
    p = 1 / (1 + np.exp(-logits))
    guesses = p >= threshold
    macro = {"average": "macro", "zero_division": np.nan}
    losses = [sk.log_loss(labels[:, i], p[:, i], labels=[0, 1]) for i in range(5)]
    return {
        "f1_micro": sk.f1_score(labels, guesses, average="micro"),
        "f1_macro": sk.f1_score(labels, guesses, **macro),
        "subset_accuracy": sk.accuracy_score(labels, guesses),
        "log_loss": np.mean(losses),
        "loss": np.mean(losses),
        "calibration_error": plain(p.ravel(), labels.ravel()),
        "n": len(labels),
    }


@pytest.mark.parametrize("threshold", [0.5, 0.2])
@pytest.mark.parametrize("absent", [None, 2])
def test_they_equal_sklearn(absent, threshold):
    logits, labels = scored(absent=absent)
    found = values(logits, labels, threshold)
    wanted = independent(logits, labels, threshold)
    assert {k: v for k, v in found.items() if "stderr" not in k} == pytest.approx(
        wanted
    )
    assert found.keys() - {"n"} == METRICS.keys() | {f"{m}_stderr" for m in METRICS}


def test_standard_errors_are_those_of_resampled_texts():
    logits, labels = scored()
    found = values(logits, labels)
    draw = np.random.default_rng(5)
    rows = draw.integers(0, 400, (400, 400))
    samples = [independent(logits[i], labels[i]) for i in rows]
    for name in METRICS:
        spread = np.std([sample[name] for sample in samples])
        assert found[f"{name}_stderr"] == pytest.approx(spread, rel=RESAMPLED)


def test_edges():
    none = values(np.full((3, 2), -5.0), np.zeros((3, 2)))
    assert none["f1_micro"] == none["f1_macro"] == 0
    assert none["subset_accuracy"] == 1
    assert not any(none[f"f1_{kind}_stderr"] for kind in ("micro", "macro"))
    one = values([[800.0, -800.0]], [[0.0, 1.0]])
    assert one["log_loss"] == 800
    assert one["log_loss_stderr"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = expit([[800.0, -800.0, 0.0, 1.0]])
    assert p[0] == pytest.approx([1, 0, 0.5, 1 / (1 + np.exp(-1))])
