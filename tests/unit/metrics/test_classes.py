"""Every number against an independent computation, every error against resampling."""

import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from transformers import EvalPrediction

from llmft.errors import DataError
from llmft.metrics import classes as metrics
from llmft.metrics.classes import classification_metrics, per_class, token_metrics

ROOT = Path(__file__).parents[3]
# 1,000 draws here, and as many there: each standard error is known to 2-3 %.
RESAMPLED = 0.12


def token_values(rows):
    prediction = EvalPrediction(predictions=np.asarray(rows, float), label_ids=None)
    return token_metrics("masked_accuracy")(prediction)


def class_values(logits, labels):
    return classification_metrics(EvalPrediction(np.asarray(logits), np.array(labels)))


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
    assert one["loss_stderr"] == one["perplexity_stderr"] == 0
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
    assert found["log_loss_stderr"] == pytest.approx(nll.std(ddof=1) / 300**0.5)
    accuracy = wanted["accuracy"]
    binomial = (accuracy * (1 - accuracy) / 299) ** 0.5
    assert found["accuracy_stderr"] == pytest.approx(binomial)
    draw = np.random.default_rng(11)
    f1, matthews = [], []
    for _ in range(500):
        pick = draw.integers(0, 300, 300)
        f1.append(sk.f1_score(labels[pick], guesses[pick], average="macro"))
        matthews.append(sk.matthews_corrcoef(labels[pick], guesses[pick]))
    for name, values in (("f1_macro", f1), ("matthews_correlation", matthews)):
        found_error = found[f"{name}_stderr"]
        assert found_error == pytest.approx(np.std(values), rel=RESAMPLED), name


def by_examples(labels, guesses, draws=300):
    """Standard errors of macro F1 and Matthews correlation, the long way."""
    draw, values = np.random.default_rng(5), []
    for _ in range(draws):
        pick = draw.integers(0, len(labels), len(labels))
        f1 = sk.f1_score(labels[pick], guesses[pick], average="macro")
        values.append((f1, sk.matthews_corrcoef(labels[pick], guesses[pick])))
    return np.std(values, axis=0)


@pytest.mark.parametrize(("classes", "n"), [(3, 40), (60, 500)])
def test_bootstrap_in_chunks_and_with_fewer_draws(monkeypatch, classes, n):
    """The size of a chunk changes nothing, and 300 draws are near to 1,000."""
    logits, labels = scored(classes, n)
    guesses = logits.argmax(1)
    matrix = metrics.confusion(labels, guesses, classes)
    whole = metrics._bootstrap(matrix)
    assert whole == pytest.approx(by_examples(labels, guesses), rel=RESAMPLED)
    monkeypatch.setattr(metrics, "_CHUNK", 3000)
    assert metrics._bootstrap(matrix) == whole
    monkeypatch.setattr(metrics, "_BOOTSTRAPS", metrics._FEWEST_BOOTSTRAPS)
    assert metrics._bootstrap(matrix) == pytest.approx(whole, rel=RESAMPLED)


def test_many_classes_take_little_time_and_memory():
    """All cells of the matrix at once would take 1.3 GB and 37 s."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 400, 2000)
    guesses = np.where(draw.random(2000) < 0.6, labels, draw.integers(0, 400, 2000))
    matrix = metrics.confusion(labels, guesses, 400)
    tracemalloc.start()
    started = time.process_time()
    errors = metrics._bootstrap(matrix)
    took = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < errors[1] < errors[0] < 0.02
    assert peak < 150e6
    assert took < 5


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
    found = metrics.log_softmax(logits)
    np.testing.assert_allclose(found[0], [0, -1e4, -2e4])
    np.testing.assert_allclose(np.exp(found[1]), [1 / 3] * 3)
    wrong = class_values(logits[:1], [2])
    assert wrong["log_loss"] == pytest.approx(2e4)


def test_confusion_and_per_class():
    labels, guesses = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 1])
    matrix = metrics.confusion(labels, guesses, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0, 1, 0, 0]]
    by_sklearn = sk.confusion_matrix(labels, guesses, labels=range(4))
    assert np.array_equal(matrix, by_sklearn)
    rows = per_class(labels, guesses, ["a", "b", "never", "d"])
    assert rows[0] == ("a", pytest.approx(2 / 3), pytest.approx(2 / 3), 2 / 3, 3)
    assert rows[1] == ("b", pytest.approx(1 / 3), 0.5, pytest.approx(0.4), 2)
    assert rows[2] == ("never", 0, 0, 0, 0)
    assert rows[3] == ("d", 0, 0, 0, 1)


_PROBE = """
import json, os, sys
seen = []
def watch(event, args):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
        seen.append([event, repr(args)])
    if event == "open" and isinstance(args[0], (str, bytes)):
        if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(["write", os.path.abspath(os.fsdecode(args[0]))])
    if event == "os.mkdir":
        seen.append(["write", os.path.abspath(os.fsdecode(args[0]))])
import numpy as np
from transformers import EvalPrediction
from llmft.metrics.classes import classification_metrics, token_metrics
sys.addaudithook(watch)
token_metrics("a")(EvalPrediction(np.array([[1.0, 2, 1]]), None))
classification_metrics(EvalPrediction(np.eye(2), np.array([0, 1])))
json.dump(seen, sys.stdout)
"""


def test_no_network_and_nothing_written_outside_the_cache(tmp_path):
    home, cache, cwd = (tmp_path / name for name in ("home", "cache", "cwd"))
    for folder in (home, cwd):
        folder.mkdir()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=keep
        | {
            "HOME": str(home),
            "LLMFT_HOME": str(cache),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout)
    outside = [e for e in events if e[0] != "write" or str(cache) not in e[1]]
    assert outside == [["write", os.devnull]] * len(outside)
    assert not list(cwd.iterdir())
