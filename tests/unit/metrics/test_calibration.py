"""Calibration against plain loops over bins, and over a grid of temperatures."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from transformers import EvalPrediction
from unit.metrics.test_standard_errors import RESAMPLED

from llmft.data.read.labels import MULTI, SINGLE
from llmft.metrics.calibration import BINS, calibration_error, fit_temperature
from llmft.metrics.classes import Classification, MultiLabel

RNG = np.random.default_rng(0)
SCALE = 2.5  # how much too large the logits are
TRUE = RNG.normal(0, 1.5, (400, 3))
LABELS = np.array([RNG.choice(3, p=p) for p in softmax(TRUE, 1)])
SEVERAL = (RNG.random(TRUE.shape) < expit(TRUE)).astype(np.float64)


def plain(p, right):
    """The expected calibration error, bin by bin."""
    total = 0.0
    for i in range(BINS):
        inside = (p > i / BINS) & (p <= (i + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    return total


def tops(logits, labels):
    p = softmax(logits, 1)
    return p.max(1), (p.argmax(1) == labels).astype(float)


def pairs(logits, labels):
    return expit(logits).ravel(), labels.ravel()


@pytest.mark.parametrize(
    ("metric", "labels", "facts"),
    [(Classification(), LABELS, tops), (MultiLabel(), SEVERAL, pairs)],
    ids=[SINGLE, MULTI],
)
def test_the_error_and_its_standard_error(metric, labels, facts):
    logits = SCALE * TRUE
    found = metric(EvalPrediction(logits, labels))
    assert found["calibration_error"] == pytest.approx(plain(*facts(logits, labels)))
    assert found["calibration_error"] > 0.1
    draw = np.random.default_rng(5)
    picks = draw.integers(0, 400, (500, 400))
    resampled = [plain(*facts(logits[pick], labels[pick])) for pick in picks]
    wanted = pytest.approx(np.std(resampled), rel=RESAMPLED)
    assert found["calibration_error_stderr"] == wanted


def test_the_ends_of_the_bins():
    p, right = np.array([0.0, 1.0, 1e-9, 1 - 1e-9]), np.array([0.0, 1, 0, 0])
    once = np.ones((4, 1))
    assert calibration_error(p, right)(once) == pytest.approx(0.25)
    sure = Classification()(EvalPrediction(np.array([[0.0, 1e4]]), np.array([1])))
    assert (sure["calibration_error"], sure["calibration_error_stderr"]) == (0, 0)


def nll(logits, labels, kind):
    if kind == MULTI:
        return -np.log(expit(np.where(labels > 0, logits, -logits))).mean()
    return -log_softmax(logits, 1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize(("kind", "labels"), [(SINGLE, LABELS), (MULTI, SEVERAL)])
@pytest.mark.parametrize("scale", [0.3, SCALE])
def test_the_temperature_is_the_best_of_a_grid(kind, labels, scale):
    logits = (scale * TRUE).astype(np.float32)
    found = fit_temperature(logits, labels, kind)
    grid = np.geomspace(0.05, 20, 4001)  # steps of 0.15 %
    losses = [nll(logits.astype(float) / t, labels, kind) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert found == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize(
    ("kind", "labels"), [(SINGLE, TRUE.argmax(1)), (SINGLE, TRUE.argmin(1)),
                         (MULTI, TRUE > 0), (MULTI, TRUE < 0)],
)  # fmt: skip
def test_rows_that_are_all_right_or_all_wrong_have_no_temperature(kind, labels):
    assert fit_temperature(TRUE * 3, labels, kind) is None
