"""Limits and standard errors that are shown beside metrics."""

import math

import pytest

from llmft.metrics.intervals import limits, standard_error, wilson


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("matthews_correlation", -1, 1),
        ("pearson", -1, 1),
        ("r2", -math.inf, 1),
        *((name, 0, 1) for name in ("f1_macro", "masked_accuracy", "subset_accuracy")),
        ("log_loss", 0, math.inf),
    ],
)
def test_limits_stay_where_the_metric_can_be(name, least, most):
    entry = {"value": 0.0, "stderr": 90.0, "n": 9}
    low, high = limits(name, entry)
    assert (low, high) == (max(least, -90 * 1.96), min(most, 90 * 1.96))


def test_a_cross_validation_knows_accuracy_as_well_as_fewer_rows_would():
    entry = {"value": 0.75, "stderr": 0.1, "n": 90, "wider": 1.5}
    assert limits("accuracy", entry) == wilson(30, 40)
    perfect = {"value": 1.0, "stderr": 0.0, "n": 90}
    plain, wider = (
        standard_error("accuracy", perfect | {"wider": w}) for w in (1.0, 1.5)
    )
    assert 2 * plain < wider < 2.3 * plain  # at 1, the limit goes with 1 / n


@pytest.mark.parametrize("name", ["f1_macro", "f1_micro", "matthews_correlation"])
def test_of_a_perfect_score_nothing_else_is_known(name):
    entry = {"value": 1.0, "stderr": 0.0, "n": 20}
    assert standard_error(name, entry) is None
    assert standard_error(name, entry | {"stderr": 0.1}) == 0.1
