"""What the page counts, against plain computations."""

import json
import re

import numpy as np
import pytest
import report_runs
from scipy.stats import binomtest

from llmft.metrics.intervals import wilson
from llmft.metrics.measures import per_class
from llmft.runs.record import read_run
from llmft.runs.report import charts, classify, lm
from llmft.runs.report.answers import Answers, read_answers
from llmft.runs.report.charts import POINTS, thinned
from llmft.runs.report.label_errors import contradictions, suspects
from llmft.runs.report.parts import number
from llmft.runs.report.segments import segments, standard_errors, weak


@pytest.fixture(scope="module", params=["single", "multi", "regression"])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    report_runs.folder_of(folder, request.param)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    (answers,) = read_answers(read_run(folder)).values()
    return request.param, answers, [json.loads(line) for line in lines]


def single(rows, names=("a", "b", "c")):
    """Answers of (label, prediction, probability of each name, rungs, more)."""
    made, own = [], []
    for i, (label, said, p, rungs, *more) in enumerate(rows):
        row = {"split": "test", "row": i, "line": i + 1, "text": f"text {i}"}
        probability = max(p)
        row |= {"label": label, "prediction": said, "probability": probability}
        made.append(row | {"rungs": rungs} | (more[0] if more else {}))
        own.append(p[names.index(label)])
    return Answers("one label", "test", list(names), made, np.array(own), {})


def test_wilson_is_that_of_scipy():
    for right, n in ((0, 5), (3, 7), (50, 50), (412, 1409)):
        limits = binomtest(right, n).proportion_ci(0.95, "wilson")
        assert wilson(right, n) == pytest.approx(limits, abs=2e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_scores_of_classes_are_counts(found):
    kind, answers, rows = found
    if kind == "regression":
        return
    for name, precision, recall, f1, n, both in per_class(
        answers.given, answers.said, answers.names
    ):
        has = [name in np.atleast_1d(row["label"]) for row in rows]
        said = [name in np.atleast_1d(row["prediction"]) for row in rows]
        right = sum(a and b for a, b in zip(has, said, strict=True))
        assert (n, both) == (sum(has), right)
        assert (precision, recall) == (right / sum(said), right / sum(has))
        assert f1 == pytest.approx(2 / (1 / precision + 1 / recall))


def test_classes_show_what_simpler_methods_had_right(found):
    kind, answers, rows = found
    table = None if kind == "regression" else classify.by_class(answers)
    others = [n for n in table.header if n.startswith("recall of ")] if table else []
    assert len(others) == (kind == "single")
    for name in others:
        column, method = table.header.index(name), name.removeprefix("recall of ")
        for shown in table.rows:
            mine = [row for row in rows if row["label"] == shown[0]]
            said = [row["rungs"][method]["prediction"] == shown[0] for row in mine]
            assert shown[column] == f"{sum(said) / len(mine):.3f}"


def test_the_f1_at_a_threshold_is_that_of_all_labels_together(found):
    kind, answers, rows = found
    if kind != "multi":
        return
    for cut in (0.2, 0.5, 0.8):
        pairs = [
            (name in row["label"], p >= cut)
            for row in rows
            for name, p in row["probabilities"].items()
        ]
        right = sum(a and b for a, b in pairs)
        wanted = 2 * right / (sum(a for a, _ in pairs) + sum(b for _, b in pairs))
        assert classify.f1_at(answers, cut) == pytest.approx(wanted)


def test_calibration_and_coverage_are_shares_of_rows(found):
    kind, answers, rows = found
    if kind != "single":
        return
    for stated, share, _, n in classify.calibration(answers).numbers.rows:
        low = np.floor(float(stated) * 10 - 1e-6) / 10
        inside = [r for r in rows if low < r["probability"] <= low + 0.1]
        right = [r["label"] == r["prediction"] for r in inside]
        assert (int(n), share) == (len(right), f"{np.mean(right):.3f}")
    surest = sorted(rows, key=lambda row: -row["probability"])
    for _, share, accuracy in classify.thresholds(answers).numbers.rows:
        part = surest[: round(float(share) * len(rows))]
        wanted = np.mean([row["label"] == row["prediction"] for row in part])
        assert float(accuracy) == pytest.approx(wanted, abs=5e-4)


def test_errors_of_a_regression_by_size(found):
    kind, _, rows = found
    if kind != "regression":
        return
    true = np.array([row["label"] for row in rows])
    off = np.array([row["prediction"] for row in rows]) - true
    table = classify.by_size(true, off).rows
    assert sum(n for _, n, *_ in table) == len(rows)
    last = true >= np.quantile(true, 0.8)
    assert table[-1][1:4] == (
        int(last.sum()),
        number(float(off[last].mean())),
        number(float(np.abs(off[last]).mean())),
    )


def test_pairs_of_classes_come_with_the_most_frequent_first():
    counts = np.array([[5, 2, 0], [0, 9, 7], [1, 0, 4]])
    assert classify.confused(counts) == [(1, 2), (0, 1), (2, 0)]


def planted(rows=400, weak_rows=40):
    """Answers of which one file, and nothing else, is mostly wrong."""
    draw, made = np.random.default_rng(1), []
    for i in range(rows):
        label = "abc"[draw.integers(3)]
        wrong = draw.random() < (0.7 if i < weak_rows else 0.1)
        said = "abc"[("abc".index(label) + wrong) % 3]
        path = "odd.csv" if i < weak_rows else "rest.csv"
        made.append((label, said, [0.4, 0.3, 0.3], {}, {"path": path, "line": 7}))
    return single(made)


def test_a_weak_segment_is_found_with_its_share_and_the_rest():
    answers = planted()
    groups = segments(answers)
    (worst, *_) = clear = weak(groups)
    assert (worst.what, worst.name, worst.n) == ("file", "odd.csv", 40)
    assert worst.value == np.mean(~answers.right[:40])
    assert worst.rest == np.mean(~answers.right[40:])
    assert {segment.what for segment in clear} <= {"file"}
    assert 2 < standard_errors(groups) < 4


def test_texts_with_unknown_tokens_are_a_segment():
    answers = planted()
    for row in answers.rows[:40]:
        row["unknown_tokens"] = 2
    found = {(s.what, s.name): s for s in weak(segments(answers))}
    assert found["unknown tokens", "1 or more"].n == 40


def test_chance_alone_makes_hardly_any_segment_weak():
    """Of 40 sets of answers without a weak group, about one has a weak one."""
    found = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        rows = [
            ("abc"[draw.integers(3)], "abc"[draw.integers(3)], [0.4, 0.3, 0.3], {})
            for _ in range(200)
        ]
        found += bool(weak(segments(single(rows))))
    assert found <= 4


def test_planted_labels_come_first_and_a_method_that_knows_nothing_counts_nothing():
    draw, rows, bad = np.random.default_rng(2), [], set()
    for i in range(300):
        true = int(draw.integers(3))
        label = "abc"[true]
        if i % 30 == 0:
            bad.add(i)
            label = "abc"[(true + 1) % 3]
        sure = 0.98 if i % 30 == 0 else float(draw.uniform(0.4, 0.8))
        said = true if draw.random() < 0.85 or i % 30 == 0 else (true + 2) % 3
        p = [(1 - sure) / 2] * 3
        p[said] = sure
        rung = {
            "prediction": "abc"[true],
            "probability": 0.9,
            "label_probability": 0.05,
        }
        blind = {"prediction": "a", "probability": 0.99, "label_probability": 1e-6}
        rows.append((label, "abc"[said], p, {"TF-IDF": rung, "blind": blind}))
    found = suspects({"test": single(rows)})
    assert {s.row for s in found[: len(bad)]} == bad
    first = found[0]
    assert first.instead != first.answers.rows[first.row]["label"]
    assert first.chance < 0.03


def test_of_several_labels_the_worst_of_a_row_is_named():
    row = {"split": "test", "row": 0, "text": "t", "label": ["a"], "prediction": ["b"]}
    row["rungs"] = {"TF-IDF": {"prediction": ["a", "b"]}}
    p = np.array([[0.3, 0.9]])
    answers = Answers("several labels", "test", ["a", "b"], [row], p, {})
    (suspect,) = suspects({"test": answers})
    # 1 - 0.9 of the model, and 0 of TF-IDF, which gives b, too.
    assert (suspect.instead, suspect.against) == ("also b", (2, 2))
    assert suspect.chance == pytest.approx(0.05)


def test_a_text_with_two_labels_is_found_whatever_its_case_and_spaces():
    rows = [("a", "a", [1, 0, 0], {}, {"text": "A  film"})]
    rows += [("b", "b", [0, 1, 0], {}, {"text": "a film "})]
    rows += [("a", "a", [1, 0, 0], {}, {"text": "other"})] * 2
    ((_, places),) = contradictions(single(rows))
    assert places == [0, 1]


def test_repetition_is_the_share_of_runs_of_words_that_came_before():
    assert lm.repetition("a b c d e f") == 0.0
    assert lm.repetition("a b c") == 0.0
    # Runs: abab baba abab baba abab: two of five are new.
    assert lm.repetition("a b a b a b a b") == pytest.approx(3 / 5)


def test_long_curves_are_means_of_neighbours():
    x, y = thinned(range(10 * POINTS), np.arange(10 * POINTS) * 2.0)
    assert len(x) == POINTS
    np.testing.assert_allclose(x, np.arange(POINTS) * 10 + 4.5)
    np.testing.assert_allclose(y, 2 * x)
    assert len(thinned(range(POINTS), range(POINTS))[0]) == POINTS


@pytest.mark.parametrize("values", [(0.99, 1.0, 1.0), (0.1, 0.6, 1.0), (1.0, 1.0, 1.0)])
def test_an_axis_of_shares_has_no_tick_above_one(values):
    svg = charts.curve("accuracy", {"a": ((0.1, 0.2, 0.3), values)}, "epoch").svg
    ticks = re.findall(r"<text[^>]*>([\d.]+)<", svg)
    assert "1" in ticks
    assert max(map(float, ticks)) == 1
    svg = charts.curve("loss", {"a": ((0.1, 0.2, 0.3), (0.5, 1.0, 1.1))}, "epoch").svg
    assert max(map(float, re.findall(r"<text[^>]*>([\d.]+)<", svg))) > 1
