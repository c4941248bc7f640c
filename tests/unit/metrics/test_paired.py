"""The paired test finds a better model, and seldom one where there is none."""

import math

import numpy as np
import pytest

from llmft.metrics import bootstrap, paired
from llmft.metrics.classes import Classification
from llmft.metrics.paired import compare_rows

CLASSES = ("a", "b", "c")


def rows_of(labels, guesses, sure):
    """Rows of predictions.jsonl whose guess has the probability ``sure``."""
    found = []
    for label, guess, p in zip(labels, guesses, sure, strict=True):
        by_name = {name: round((1 - p) / 2, 6) for name in CLASSES}
        by_name[CLASSES[guess]] = round(p, 6)
        row = {"label": CLASSES[label], "prediction": CLASSES[guess]}
        found.append(row | {"probabilities": by_name})
    return found


def two_models(draw, rows, one, other):
    """What models that are right in these shares of the rows say of the same rows."""
    labels, found = draw.integers(3, size=rows), []
    for accuracy in (one, other):
        wrong = (labels + draw.integers(1, 3, rows)) % 3
        guesses = np.where(draw.random(rows) < accuracy, labels, wrong)
        found.append(rows_of(labels, guesses, draw.uniform(0.4, 0.999, rows)))
    return found


def test_of_equal_models_one_in_twenty_is_called_better(monkeypatch):
    """Also where few rows tell them apart, where a bootstrap alone cries wolf."""
    monkeypatch.setattr(bootstrap, "_DRAWS", 200)
    draw, times = np.random.default_rng(0), 120
    called = {"accuracy": 0, "f1_macro": 0, "log_loss": 0}
    for _ in range(times):
        found = compare_rows(*two_models(draw, 30, 0.9, 0.9))
        for name in called:
            called[name] += found[name]["sure"] >= 0.95
    assert max(called.values()) <= 12, called  # of 120 at 5 %, more are 1 in 100
    assert min(called.values()) > 0  # and not never, either


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 2), (4, 0), (20, 6)])
def test_of_accuracy_it_is_the_test_of_mcnemar(only_a, only_b):
    rows, counts = [[], []], ((only_a, (0, 1)), (only_b, (1, 0)), (30, (0, 0)))
    for count, guesses in counts:
        for model, guess in zip(rows, guesses, strict=True):
            model += rows_of([0] * count, [guess] * count, [0.8] * count)
    n, least = only_a + only_b, min(only_a, only_b)
    p = min(1, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)
    found = compare_rows(*rows)["accuracy"]
    assert found["sure"] == pytest.approx(1 - p, abs=0.02)


def test_a_better_model_is_found_and_how_much_it_is_better():
    one, other = two_models(np.random.default_rng(1), 1000, 0.80, 0.86)
    found = compare_rows(one, other)
    right = [
        np.array([row["label"] == row["prediction"] for row in rows], float)
        for rows in (one, other)
    ]
    steps = right[1] - right[0]
    accuracy = found["accuracy"]
    assert accuracy["a"] == pytest.approx(right[0].mean())
    assert accuracy["b"] == pytest.approx(right[1].mean())
    assert accuracy["difference"] == pytest.approx(steps.mean())
    error = steps.std(ddof=1) / math.sqrt(1000)
    assert accuracy["stderr"] == pytest.approx(error, rel=0.1)
    only = (steps > 0).sum(), (steps < 0).sum()
    z = (only[0] - only[1]) / math.sqrt(sum(only))
    assert accuracy["sure"] == pytest.approx(math.erf(abs(z) / 2**0.5), abs=0.01)
    assert accuracy["greater_is_better"] is True
    assert found["log_loss"]["greater_is_better"] is False
    back = compare_rows(other, one)["accuracy"]
    assert back["difference"] == pytest.approx(-accuracy["difference"])


def test_the_values_are_those_of_the_metrics():
    one, other = two_models(np.random.default_rng(2), 60, 0.7, 0.7)
    found = compare_rows(one, other)
    logits = np.log([[*row["probabilities"].values()] for row in one])
    labels = [CLASSES.index(row["label"]) for row in one]
    wanted = Classification().compute(predictions=logits, references=labels)
    for name, entry in found.items():
        assert entry["a"] == pytest.approx(wanted[name], abs=1e-5)


def test_a_model_and_itself_do_not_differ():
    one, _ = two_models(np.random.default_rng(3), 50, 0.7, 0.7)
    for entry in compare_rows(one, one).values():
        assert [entry["difference"], entry["stderr"]] == pytest.approx([0, 0])
        assert entry["sure"] == 0


def test_several_labels_and_numbers():
    def row(label, given):
        parts = {name: 0.9 if name in given else 0.1 for name in CLASSES}
        return {"label": label, "prediction": given, "probabilities": parts}

    wanted = [["a"], ["a", "b"], [], ["c"]] * 5
    none = [row(label, []) for label in wanted]
    found = compare_rows(none, [row(label, label) for label in wanted])
    assert (found["f1_micro"]["a"], found["f1_micro"]["b"]) == (0, 1)
    assert found["f1_micro"]["sure"] > 0.99
    labels, draw = np.arange(20.0), np.random.default_rng(0)
    near, far = (labels + draw.normal(0, size, 20) for size in (0.1, 3.0))
    one, other = (
        [{"label": x, "prediction": p} for x, p in zip(labels, given, strict=True)]
        for given in (far, near)
    )
    found = compare_rows(one, other)
    assert found["mae"]["b"] == pytest.approx(np.abs(near - labels).mean())
    wanted = 1 - ((far - labels) ** 2).mean() / labels.var()
    assert found["r2"]["a"] == pytest.approx(wanted)
    assert found["r2"]["sure"] > 0.99


def test_what_has_no_value_is_none():
    rows = [{"label": 1.0, "prediction": p} for p in (0.9, 1.2)]
    found = compare_rows(rows, rows[::-1])["r2"]
    assert (found["a"], found["difference"], found["sure"]) == (None, None, 0.0)


def test_many_rows_make_sure_beyond_the_number_of_draws():
    """As a comparison of seven runs asks for: 1 - 0.05 / 21."""
    swaps = np.random.default_rng(1).normal(0, 0.004, 300)
    assert paired._sure(0.8, swaps) > 1 - 1e-9
    assert paired._sure(0.0001, swaps) < 0.3
    assert paired._sure(0.8, np.zeros(300)) == 1 - 1 / 301
