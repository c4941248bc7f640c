"""Rungs of a ladder: frequencies, and differences on the same texts."""

import numpy as np
import pytest

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.metrics.classes import Classification
from llmft.metrics.intervals import clearly
from llmft.metrics.ladder import PROBE, Rung, climbed, lines, majority

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("kind", "train", "names", "wanted"),
    [
        (SINGLE, np.array([0, 1, 1]), ("a", "b", "c"), np.log([1.5, 2.5, 0.5])),
        (
            MULTI,
            np.array([[1, 0], [1, 1], [1, 0]]),
            ("a", "b"),
            np.log([3.5 / 0.5, 1.5 / 2.5]),
        ),
        (REGRESSION, np.array([1.0, 2.0, 6.0]), ("LABEL_0",), [3.0]),
    ],
)
def test_frequencies(kind, train, names, wanted):
    rung = majority(train, 4, LabelNames(names, kind))
    np.testing.assert_allclose(rung.scores, np.tile(wanted, (4, 1)))


def scores(labels, right):
    """Return scores whose largest is the label for the rows ``right``."""
    guesses = np.where(right, labels, 1 - labels)
    return np.eye(2)[guesses]


def test_differences_are_paired(monkeypatch):
    """Two that fail on the same texts differ by little, with a small error."""
    labels = RNG.integers(0, 2, 400)
    right = np.arange(400) % 5 > 0
    also = right & (np.arange(400) % 200 != 1)
    rungs = [
        Rung("coin", scores(labels, RNG.integers(0, 2, 400) > 0)),
        Rung("near", scores(labels, also), 3.21),
        Rung("best", scores(labels, right), 60.0),
    ]
    found = climbed(rungs, labels, Classification(), "accuracy", "best")
    _coin, near, best = found["rungs"]
    assert (best["value"], near["value"]) == (0.8, also.mean())
    below = right.astype(float) - also
    assert near["below"]["value"] == pytest.approx(below.mean())
    wanted = below.std() / np.sqrt(400)  # of a mean of differences
    assert near["below"]["stderr"] == pytest.approx(wanted, rel=0.1)
    # McNemar's test: two texts that only one has right are a chance of 1 in 2.
    assert near["below"]["sure"] == pytest.approx(0.5, abs=0.05)
    assert "below" not in best
    assert near["seconds"] == 3.2
    text, said = lines(found, "test")
    assert said == (
        "  no clear difference (less than 95 % sure) to near, which costs less"
    )
    assert "ladder, on test, n 400" in text
    assert "saved" in text
    others = [*rungs[1:], rungs[0]]
    worse = climbed(others, labels, Classification(), "accuracy", "coin")
    assert "near, best reached more here" in lines(worse, "test")[1]
    alone = climbed(rungs, labels, Classification(), "accuracy", "coin")
    (sure,) = lines(alone, "test")[1:]  # what stands above cost more
    assert sure == (
        f"  it is surer than it may be: log_loss {alone['log_loss']:.3g}, of guessing"
        " 0.693; a training with --calibrate true (not with --k_folds) may help"
    )


@pytest.mark.parametrize(
    ("more", "wider", "told"),
    [(4, 1.0, 0), (5, 1.0, 0), (6, 1.0, 1), (6, 1.5, 0), (12, 1.5, 1)],
)
def test_of_few_texts_the_test_of_compare_decides(more, wider, told):
    """Four texts of 34 are two standard errors, and 1 chance in 8."""
    labels = RNG.integers(0, 2, 34)
    few, many = np.arange(34) >= more + 1, np.arange(34) > 0
    rungs = [Rung(n, scores(labels, x)) for n, x in (("few", few), ("many", many))]
    for saved, sign in (("many", 1), ("few", -1)):
        found = climbed(rungs, labels, Classification(), "accuracy", saved, wider)
        (other,) = (rung for rung in found["rungs"] if "below" in rung)
        assert clearly(other["below"]) == sign * told
        if wider == 1:
            assert other["below"]["value"] == pytest.approx(sign * more / 34)
            assert other["below"]["sure"] == pytest.approx(1 - 2 * 0.5**more, abs=0.03)


def test_the_error_of_a_perfect_score_is_that_of_its_interval():
    labels = RNG.integers(0, 2, 40)
    rungs = [Rung("fine-tuned", scores(labels, labels >= 0))]
    found = climbed(rungs, labels, Classification(), "accuracy", "fine-tuned")
    table, said = lines(found, "test")
    assert said.startswith(
        "  all 40 are right, and its losses may be 0: they are too easy"
    )
    assert table.splitlines()[-1].split()[:3] == ["fine-tuned", "1.0000", "0.022"]


def test_a_training_that_made_it_worse_is_not_to_be_longer():
    labels = RNG.integers(0, 2, 400)
    rows = np.arange(400)
    rungs = [
        Rung("TF-IDF", scores(labels, rows % 10 > 0)),
        Rung(PROBE, scores(labels, rows % 5 > 0)),
        Rung("fine-tuned", scores(labels, rows % 2 > 0)),
    ]
    found = climbed(rungs, labels, Classification(), "accuracy", PROBE)
    assert lines(found, "test")[1:] == [
        "  fine-tuned is worse: try a lower --learning_rate",
        "  TF-IDF reached more here; what may help: mended labels or more rows, a"
        " model that was made for this language and subject",
    ]


def test_what_is_calibrated_is_not_to_be_calibrated():
    labels = RNG.integers(0, 2, 40)
    rungs = [Rung("fine-tuned", scores(labels, np.arange(40) % 2 > 0))]
    found = climbed(rungs, labels, Classification(), "accuracy", "fine-tuned")
    for calibrated in (False, True):
        (said,) = lines(found | {"calibrated": calibrated}, "test")[1:]
        assert ("--calibrate true" in said) is not calibrated
