"""Every number of a language model, and its error against resampling."""

import math

import numpy as np
import pytest
from transformers import EvalPrediction
from unit.metrics.test_standard_errors import RESAMPLED

from llmft.errors import DataError
from llmft.metrics.tokens import TokenPrediction


def token_values(rows):
    prediction = EvalPrediction(predictions=np.asarray(rows, float), label_ids=None)
    return TokenPrediction("masked_accuracy")(prediction)


@pytest.fixture(scope="module")
def texts():
    """400 examples of 1 to 60 tokens; the long ones are harder."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 61, 400)
    nll = tokens * (1 + tokens / 30 + draw.normal(0, 0.4, 400))
    right = draw.binomial(tokens, 0.6 - tokens / 150)
    return np.stack([nll, tokens, right], axis=1).astype(float)


def test_token_metrics_are_totals_over_totals(texts):
    found = token_values(texts)
    nll, tokens, right = texts.sum(0)
    assert set(found) == {
        *("loss", "perplexity", "masked_accuracy", "n"),
        *("loss_stderr", "perplexity_stderr", "masked_accuracy_stderr"),
    }
    assert found["loss"] == pytest.approx(nll / tokens)
    assert found["perplexity"] == pytest.approx(math.exp(nll / tokens))
    assert found["masked_accuracy"] == pytest.approx(right / tokens)
    assert found["n"] == tokens
    by_length = texts[texts[:, 1].argsort()]
    batches = [part.sum(0) for part in np.split(by_length, 50)]
    of_means = math.exp(np.mean([b[0] / b[1] for b in batches]))
    mean_of = np.mean([math.exp(b[0] / b[1]) for b in batches])
    for other in (of_means, mean_of):
        assert abs(found["perplexity"] / other - 1) > 0.1
    reordered = token_values(texts[np.random.default_rng(1).permutation(400)])
    assert reordered == pytest.approx(found)


def test_token_standard_errors_are_those_of_resampled_examples(texts):
    draw = np.random.default_rng(7)
    samples = texts[draw.integers(0, 400, (2000, 400))].sum(1)
    losses = samples[:, 0] / samples[:, 1]
    found = token_values(texts)
    for name, values in (
        ("loss", losses),
        ("perplexity", np.exp(losses)),
        ("masked_accuracy", samples[:, 2] / samples[:, 1]),
    ):
        assert found[f"{name}_stderr"] == pytest.approx(values.std(), rel=RESAMPLED)


def test_token_edges():
    one = token_values([[3.0, 4, 2]])
    assert one["loss"] == 0.75
    # Of a single example nobody knows how far another would be from it.
    assert math.isnan(one["loss_stderr"])
    assert math.isnan(one["perplexity_stderr"])
    huge = token_values([[1e6, 2, 0], [1e6, 1, 0]])
    assert huge["perplexity"] == math.inf
    assert huge["loss"] == pytest.approx(2e6 / 3)
    with pytest.raises(DataError) as caught:
        token_values([[0.0, 0, 0], [0.0, 0, 0]])
    assert str(caught.value) == (
        "DataError: no token to predict in the evaluation data; give more text"
    )
    with_empty = token_values([[3.0, 4, 2], [0.0, 0, 0]])
    assert with_empty["loss"] == 0.75
