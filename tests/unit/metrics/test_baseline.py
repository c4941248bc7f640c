"""The linear model that says what no pretraining reaches, for each kind of label."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.metrics.baseline import _WORD, tfidf

TWO = LabelNames(("no", "yes"))
TRAIN = ["good film here", "a bad film here"] * 10
TEST = ["so good", "very bad", "bad", "good"]


def data(texts, labels, **columns):
    return Dataset.from_dict({"text": texts, "label": labels, **columns})


def vectors():
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return words.fit_transform(TRAIN), words.transform(TEST)


def right(train, test, labels=TWO):
    """Return the share of the test rows whose class the rung says."""
    scores = tfidf(train, test, labels).scores
    guesses = [labels.names[i] for i in scores.argmax(1)]
    return np.mean(np.array(guesses) == np.array(test["label"]))


def test_log_probabilities_of_classes():
    """On the test rows, of which one has a label that no word explains."""
    train = data(TRAIN, ["yes", "no"] * 10)
    test = data(TEST, ["yes", "no", "no", "no"])
    assert right(train, test) == 0.75
    rung = tfidf(train, test, LabelNames(("no", "other", "yes")))
    assert rung.name == "TF-IDF + logistic regression"
    sums = np.exp(rung.scores).sum(1)
    assert np.allclose(sums, 1, atol=1e-5)
    assert (rung.scores[:, 1] < -13).all()


def test_words_of_scripts_without_spaces():
    """A character of Chinese or Thai is one; other words are those of sklearn."""
    found = re.findall(_WORD, "这个很good a ดี it's 3d 不")
    assert found == [*"这个很", "good", *"ดี", "it", "3d", "不"]
    text = "So it's naïve, и да: 10 out_of 7 á"
    assert re.findall(_WORD, text) == re.findall(r"(?u)\b\w\w+\b", text)
    rows = ["这部很好啊", "我觉得不好啊"] * 10
    train = data(rows, ["yes", "no"] * 10)
    test = data(["很好", "不好"], ["yes", "no"])
    assert right(train, test) == 1.0


def test_pairs_are_read_whole():
    others = {"text_pair": ["so it is", "it is not"] * 10}
    train = data(["a film"] * 20, ["yes", "no"] * 10, **others)
    assert right(train, train) == 1.0
    assert right(train.remove_columns("text_pair"), train) == 0.5


def test_log_odds_of_several_labels():
    names = LabelNames(("film", "good"), MULTI)
    having = np.array([[i % 3 > 0, i % 2 == 0] for i in range(20)])
    spelled = [json.dumps(np.array(names.names)[row].tolist()) for row in having]
    x, z = vectors()
    wanted = [
        LogisticRegression(C=10.0, solver="liblinear").fit(x, y).decision_function(z)
        for y in having.T
    ]
    found = tfidf(data(TRAIN, spelled), data(TEST, ["[]"] * 4), names)
    np.testing.assert_allclose(found.scores, np.stack(wanted, 1), atol=1e-6)


def test_numbers():
    labels = LabelNames(("LABEL_0",), REGRESSION)
    numbers = [1.5 + (i % 2) + 0.01 * i for i in range(20)]
    x, z = vectors()
    train = data(TRAIN, list(map(repr, numbers)))
    rung = tfidf(train, data(TEST, ["0"] * 4), labels)
    wanted = Ridge().fit(x, numbers).predict(z)[:, None]
    np.testing.assert_allclose(rung.scores, wanted, rtol=1e-5)
    assert rung.name == "TF-IDF + ridge regression"


@pytest.mark.parametrize(
    ("texts", "labels", "why"),
    [
        (
            ["a", "!"],
            ["x", "y"],
            "empty vocabulary; perhaps the documents only contain",
        ),
        (
            ["good", "bad"],
            ["x", "x"],
            "a single class to learn",
        ),
    ],
)
def test_a_baseline_that_cannot_be(texts, labels, why):
    rows = data(texts, labels)
    with pytest.raises(ValueError, match=why):
        tfidf(rows, rows, LabelNames(("x", "y")))


def test_a_single_label_of_several():
    names = LabelNames(("spam",), MULTI)
    texts = [f"{'buy' if i % 2 else 'see'} it now {i}" for i in range(20)]
    labels = ['["spam"]' if i % 2 else "[]" for i in range(20)]
    data = Dataset.from_dict({"text": texts, "label": labels})
    scores = tfidf(data, data, names).scores
    assert scores.shape == (20, 1)
    assert ((scores[:, 0] > 0) == (np.arange(20) % 2 == 1)).all()
