"""Metrics of numbers: those of sklearn and scipy, with errors as resampled."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from transformers import EvalPrediction
from unit.metrics.test_standard_errors import RESAMPLED

from llmft.metrics.classes import Regression
from llmft.metrics.measures import NUMBERS as METRICS


def values(guesses, labels):
    return Regression()(EvalPrediction(np.asarray(guesses)[:, None], labels))


def numbers(ties, n=400):
    """Labels and guesses that are skewed and, with ``ties``, a few whole numbers."""
    draw = np.random.default_rng(1)
    labels = draw.gamma(2.0, 2.0, n)
    guesses = 0.6 * labels + draw.normal(1, 1.5, n) + 0.02 * labels**2
    if ties:
        labels, guesses = np.clip(labels, 0, 5).round(), np.clip(guesses, 0, 4).round()
    return guesses, labels.astype(np.float32)


def independent(guesses, labels):
    return {
        "mse": sk.mean_squared_error(labels, guesses),
        "loss": sk.mean_squared_error(labels, guesses),
        "mae": sk.mean_absolute_error(labels, guesses),
        "r2": sk.r2_score(labels, guesses),
        "pearson": stats.pearsonr(labels, guesses).statistic,
        "spearman": stats.spearmanr(labels, guesses).statistic,
        "n": len(labels),
    }


@pytest.mark.parametrize("ties", [False, True])
def test_they_equal_sklearn_and_scipy(ties):
    guesses, labels = numbers(ties)
    found, wanted = values(guesses, labels), independent(guesses, labels)
    assert {k: v for k, v in found.items() if "stderr" not in k} == pytest.approx(
        wanted
    )
    assert found.keys() - {"n"} == METRICS.keys() | {f"{m}_stderr" for m in METRICS}


@pytest.mark.parametrize("ties", [False, True])
def test_standard_errors_are_those_of_resampled_texts(ties):
    guesses, labels = numbers(ties)
    found = values(guesses, labels)
    rows = np.random.default_rng(2).integers(0, 400, (500, 400))
    samples = [independent(guesses[i], labels[i]) for i in rows]
    for name in METRICS:
        spread = np.std([sample[name] for sample in samples])
        assert found[f"{name}_stderr"] == pytest.approx(spread, rel=RESAMPLED), name


def test_edges():
    found = values([3.0, 3.0, 3.0], np.array([1.0, 2.0, 6.0]))
    assert found["pearson"] == found["spearman"] == found["pearson_stderr"] == 0
    assert found["r2"] == 0  # the mean of the labels
    same = values([1.0, 2.0, 3.0], np.full(3, 0.1))
    assert same["pearson"] == same["spearman"] == same["r2"] == same["r2_stderr"] == 0
    spoiled = values([1.0, np.nan, 3.0], np.array([1.0, 2.0, 3.0]))
    assert np.isnan([spoiled[name] for name in ("loss", "mae", "r2", "pearson")]).all()
    one = values([1.5], np.array([1.0]))
    assert (one["mse"], one["r2"], one["n"]) == (0.25, 0.0, 1)
    assert not any(one[f"{name}_stderr"] for name in METRICS)
    perfect = values([1.0, 2.0, 4.0], np.array([1.0, 2.0, 4.0]))
    assert perfect["spearman"] == pytest.approx(1)
    assert perfect["spearman_stderr"] == pytest.approx(0, abs=1e-12)
