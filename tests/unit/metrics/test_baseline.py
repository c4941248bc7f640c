"""The linear model that says what no pretraining reaches, for each kind of label."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, r2_score

from llmft.data.read.labels import MULTI, REGRESSION, LabelNames
from llmft.metrics.baseline import _WORD, Baseline, tfidf_baseline

TWO = LabelNames(("no", "yes"))
TRAIN = ["good film here", "a bad film here"] * 10
TEST = ["so good", "very bad", "bad", "good"]


def data(texts, labels, **columns):
    return Dataset.from_dict({"text": texts, "label": labels, **columns})


def vectors():
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return words.fit_transform(TRAIN), words.transform(TEST)


def test_accuracy():
    """On the test rows, of which one has a label that no word explains."""
    train = data(TRAIN, ["yes", "no"] * 10)
    test = data(TEST, ["yes", "no", "no", "no"])
    assert tfidf_baseline(train, test, TWO) == ("accuracy", 0.75)
    said = "baseline   TF-IDF + logistic regression, on test: accuracy 0.75"
    assert Baseline.of(train, test, "test", TWO, 0.5).beside({"accuracy": 0.75}) == said
    assert Baseline.of(train, test, "test", TWO, 0.5).beside({"accuracy": 0.7}) == (
        f"{said}, more than the model has; more epochs may help, or a model that was"
        " made for this language and subject"
    )


def test_words_of_scripts_without_spaces():
    """A character of Chinese or Thai is one; other words are those of sklearn."""
    found = re.findall(_WORD, "这个很good a ดี it's 3d 不")
    assert found == [*"这个很", "good", *"ดี", "it", "3d", "不"]
    text = "So it's naïve, и да: 10 out_of 7 á"
    assert re.findall(_WORD, text) == re.findall(r"(?u)\b\w\w+\b", text)
    rows = ["这部很好啊", "我觉得不好啊"] * 10
    train = data(rows, ["yes", "no"] * 10)
    test = data(["很好", "不好"], ["yes", "no"])
    assert tfidf_baseline(train, test, TWO) == ("accuracy", 1.0)


def test_pairs_are_read_whole():
    others = {"text_pair": ["so it is", "it is not"] * 10}
    train = data(["a film"] * 20, ["yes", "no"] * 10, **others)
    assert tfidf_baseline(train, train, TWO) == ("accuracy", 1.0)
    assert tfidf_baseline(train.remove_columns("text_pair"), train, TWO)[1] == 0.5


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_micro_f1_of_several_labels(threshold):
    names = LabelNames(("film", "good"), MULTI)
    having = np.array([[i % 3 > 0, i % 2 == 0] for i in range(20)])
    wanted = np.array([[0, 1], [1, 0], [0, 0], [1, 1]])
    spelled = [
        [json.dumps(np.array(names.names)[row].tolist()) for row in rows.astype(bool)]
        for rows in (having, wanted)
    ]
    train, test = data(TRAIN, spelled[0]), data(TEST, spelled[1])
    x, z = vectors()
    p = np.stack(
        [
            LogisticRegression(C=10.0, max_iter=1000).fit(x, y).predict_proba(z)[:, 1]
            for y in having.T
        ],
        1,
    )
    f1 = f1_score(wanted, p >= threshold, average="micro", zero_division=0.0)
    metric, found = tfidf_baseline(train, test, names, threshold)
    assert (metric, found) == ("f1_micro", pytest.approx(f1))
    assert "TF-IDF + logistic regression of each label, on test: f1_micro" in (
        Baseline.of(train, test, "test", names, threshold).beside({"f1_micro": 1})
    )


def test_r2_of_numbers():
    labels = LabelNames(("LABEL_0",), REGRESSION)
    numbers = [1.5 + (i % 2) + 0.01 * i for i in range(20)]
    wanted = [1.4, 2.5, 2.7, 1.6]
    x, z = vectors()
    r2 = r2_score(wanted, Ridge().fit(x, numbers).predict(z))
    train, test = (
        data(texts, list(map(repr, y)))
        for texts, y in ((TRAIN, numbers), (TEST, wanted))
    )
    assert tfidf_baseline(train, test, labels) == ("r2", pytest.approx(r2))
    assert Baseline.of(train, test, "validation", labels, 0.5).beside({"r2": 1}) == (
        f"baseline   TF-IDF + ridge regression, on validation: r2 {r2:.4g}"
    )


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
            "This solver needs samples of at least 2 classes",
        ),
    ],
)
def test_a_baseline_that_cannot_be(texts, labels, why):
    rows = data(texts, labels)
    said = Baseline.of(rows, rows, "test", LabelNames(("x", "y")), 0.5).beside({})
    assert said.startswith(f"baseline   not computed: {why}")
    assert "\n" not in said
