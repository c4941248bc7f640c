"""Each fact of the report, on data whose facts are known."""

import numpy as np
import pytest
import tiny
from datasets import Dataset

from llmft.data.look.findings import ERROR, NOTE, WARNING
from llmft.data.look.report import examine
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.read.store import Source


def source(texts, labels=None, name="a.csv", kind=None, notes=()):
    columns = {"text": texts, "file": [0] * len(texts)}
    columns |= {"line": list(range(2, 2 + len(texts)))}
    columns |= {"label": labels} if labels is not None else {}
    return Source(Dataset.from_dict(columns), name, list(notes), (name,), kind)


def section(report, title):
    (found,) = [s for s in report.sections if s.title.startswith(title)]
    return [list(row) for row in found.rows]


def findings(report, level):
    return [(f.what, f.where) for f in report.findings if f.level == level]


def test_rows_and_lengths():
    texts = ["a" * n for n in range(1, 101)] + ["", " "]
    report = examine({"train": source(texts, notes=["read as latin-1"])})
    assert section(report, "rows") == [["train", "102", "5,051", "read as latin-1"]]
    values = ["0", "1", "25", "50", "75", "95", "99", "100"]
    assert section(report, "train: characters") == [values]
    bins = ["0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127"]
    counts = [1, 2, 2, 4, 8, 16, 32, 37]
    rows = [list(row) for row in zip(bins, map(str, counts), strict=True)]
    assert section(report, "train: rows by") == rows
    assert report.sections[2].bars == counts
    assert ("rows without text in train: 2", "a.csv:102, a.csv:103") in findings(
        report, WARNING
    )


def test_tokens_are_counted_and_compared_with_the_limit(wordpiece):
    texts = ["a film " * n for n in (1, 2, 5, 10)]
    report = examine({"train": source(texts)}, wordpiece, 8)
    # [CLS] and [SEP] count.
    assert section(report, "rows")[0][3] == "44"
    assert section(report, "train: tokens")[0][0] == "4"
    assert findings(report, WARNING) == [
        ("rows of more than 8 tokens in train: 2", "a.csv:4, a.csv:5")
    ]
    (found,) = [f for f in report.findings if f.level == WARNING]
    assert f"leaves out {100 * 18 / 44:.2g} % of all tokens" in found.meaning
    assert "--max_seq_length 22 holds 99 %" in found.meaning


def test_tokens_that_the_model_does_not_know_are_counted(wordpiece):
    report = examine({"a.csv": source(["the film 🎬", "🎬 🍿 movie"])}, wordpiece)
    (found,) = [f for f in report.findings if "unknown" in f.what]
    assert found.what.startswith("unknown tokens in a.csv: 3 of ")
    plain = examine({"a.csv": source(["the film"])}, wordpiece)
    assert not [f for f in plain.findings if "unknown" in f.what]


def test_what_is_there_twice():
    texts = tiny.sentences(50, words=20)
    train = [*texts[:40], texts[3], texts[4].upper(), texts[5] + " again"]
    labels = [*"ab" * 20, "a", "b", "b"]
    test = [*texts[40:], texts[0], texts[1] + " ", texts[2] + "!"]
    report = examine(
        {
            "train": source(train, labels, "a.csv"),
            "test": source(test, [*"ab" * 5, "a", "b", "a"], "t.csv"),
        }
    )
    assert section(report, "twice") == [
        ["train", "train", 2, 1, 1],
        ["test", "test", 0, 0, 0],
        ["test", "train", 2, 1, 1],
    ]
    assert findings(report, ERROR) == [
        (
            "2 of 13 rows of test are in train too, 1 of them to the letter",
            "t.csv:12 = a.csv:2, t.csv:13 = a.csv:3",
        )
    ]
    assert findings(report, WARNING) == [
        ("train: texts with more than one label: 1", "a.csv:42 / a.csv:5"),
        (
            "train: 2 of 43 rows (4.7 %) repeat an earlier one, 1 of them to the"
            " letter",
            "a.csv:42 = a.csv:5, a.csv:43 = a.csv:6",
        ),
        ("rows of test that are near one of train: 1", "t.csv:14 = a.csv:4"),
    ]
    found = findings(report, NOTE)
    assert ("rows of train that are near another: 1", "a.csv:44 = a.csv:7") in found
    alike = "train: texts that are alike, with more than one label: 1"
    assert (alike, "a.csv:43 / a.csv:6") in found


def test_texts_too_short_to_be_near_are_not_counted_as_none():
    for length, wanted in ((31, "-"), (32, "0")):
        texts = [f"{i}".rjust(length, "x") for i in range(3)]
        report = examine({"train": source(texts)})
        assert str(section(report, "twice")[0][-1]) == wanted


@pytest.mark.parametrize(
    ("labels", "level", "what", "where"),
    [
        (["a"] * 30, ERROR, "a single label in train: 'a'", ""),
        (
            [*map(str, range(30))],
            WARNING,
            "30 rows of train have 30 different labels",
            "",
        ),
        (["a"] * 27 + ["b"] * 3, NOTE, "90 % of train have the label 'a'", ""),
        (
            ["a"] * 28 + ["b"] * 2,
            NOTE,
            "labels with fewer than 10 rows in train: 1 ('b')",
            "a.csv:30, a.csv:31",
        ),
        (
            ["a"] * 22 + [*"bcdd"] + ["f"] * 4,
            NOTE,
            "labels with fewer than 10 rows in train: 4 ('c', 'b', 'd', ...)",
            "a.csv:24, a.csv:25, a.csv:26, ...",
        ),
    ],
)
def test_odd_labels(labels, level, what, where):
    texts = [f"text {i}x" for i in range(30)]
    report = examine({"train": source(texts, labels)})
    assert (what, where) in findings(report, level)


def test_only_of_train_are_labels_that_look_like_ids_refused():
    """150 classes, each once in a test part, are nothing to mend."""
    texts = [f"text {i}x" for i in range(150)]
    parts = {n: source(texts, texts, kind=SINGLE) for n in ("train", "test")}
    report = examine(parts)
    (refused,) = [what for what, _ in findings(report, ERROR) if "different" in what]
    assert refused == "150 rows of train have 150 different labels"


def test_numbers_that_are_all_the_same_are_told():
    parts = {"train": source(["a b c", "d e f"], ["1.5"] * 2, kind=REGRESSION)}
    assert ("a single label in train: '1.5'", "") in findings(examine(parts), ERROR)


@pytest.mark.parametrize(
    ("labels", "kind", "where"),
    [
        (["yes", "Yes"] * 15, None, "a.csv:2, a.csv:4, a.csv:6, ..."),
        (["b", "b", *["a"] * 14, "A", *["a"] * 12, "B"], None, "a.csv:18, a.csv:31"),
        ([*['["a"]', '["b"]'] * 14, '["b", "A"]', '["b"]'], MULTI, "a.csv:30"),
    ],
)
def test_the_rarer_of_labels_that_look_like_one_are_placed(labels, kind, where):
    texts = [f"text {i}x" for i in range(30)]
    report = examine({"train": source(texts, labels, kind=kind)})
    (found,) = [at for what, at in findings(report, ERROR) if "look like one" in what]
    assert found == where


def test_balance_is_shown_and_fine_labels_are_not_remarked():
    texts = [f"text {i}x" for i in range(40)]
    report = examine({"train": source(texts, [*"aab" * 13, "a"])})
    assert section(report, "train: labels, 2") == [
        ["a", "27", "67.5 %"],
        ["b", "13", "32.5 %"],
    ]
    assert report.findings == []


def test_scores_and_lists_of_labels():
    draw = np.random.default_rng(0).normal(size=41)
    texts = [f"text {i}x" for i in range(41)]
    scores = [repr(float(value)) for value in draw]
    report = examine({"train": source(texts, scores, kind=REGRESSION)})
    values = [f"{np.sort(draw)[at]:.4g}" for at in (0, 20, 40)]
    assert [section(report, "train: scores")[0][i] for i in (0, 3, 7)] == values
    several = ['["a","b"]'] * 30 + ['["a"]'] * 11
    report = examine({"train": source(texts, several, kind=MULTI)})
    assert section(report, "train: labels, 2, several in a row") == [
        ["a", "41", "100 %"],
        ["b", "30", "73.2 %"],
    ]


def test_several_labels_are_the_same_in_any_order():
    """Counted by label; a text with others is a conflict, and so is one with more."""
    labels = ['["a","b"]', '["b","a"]', '["a","b","a"]', '["b"]', "[]"]
    texts = ["one text", "one text", "one text", "another text", "another text"]
    report = examine({"train": source(texts, labels, kind=MULTI)})
    one = examine({"train": source(texts, ['["a"]'] * 4 + ["[]"], kind=MULTI)})
    assert findings(one, ERROR) == []  # some rows are without it
    counts = [row[:2] for row in section(report, "train: labels, 2")]
    assert counts == [["b", "4"], ["a", "3"]]
    conflicts = [f for f in findings(report, WARNING) if "more than one label" in f[0]]
    assert conflicts == [
        ("train: texts with more than one label: 1", "a.csv:6 / a.csv:5")
    ]


def test_classes_of_other_parts():
    texts = [f"text {i}x" for i in range(30)]
    train, test = (source(texts, [*"abc"] * 10), source(["q", "r"], ["a", "d"]))
    report = examine({"train": train, "test": test})
    assert ("classes of test that train has no row of: 1", "'d'") in findings(
        report, ERROR
    )
    absent = ("classes of train that test has no row of: 2", "'b', 'c'")
    assert absent in findings(report, WARNING)


def test_validation_and_test_may_share_rows_at_less_cost():
    parts = {"validation": source(["one", "two"], ["a", "b"])}
    parts["test"] = source(["Two"], ["b"], "t.csv")
    report = examine(parts)
    assert findings(report, ERROR) == []
    said = "1 of 1 rows of test are in validation too, 0 of them to the letter"
    shared = (said, "t.csv:2 = a.csv:3")
    assert shared in findings(report, WARNING)
