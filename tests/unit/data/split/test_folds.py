"""Folds of a cross-validation: every row once, and nothing on both sides."""

import numpy as np
import pytest
from datasets import Dataset

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.read.store import Source
from llmft.data.split.folds import folds_of, hold_out
from llmft.errors import DataError

COUNT = 60


def source(kind=SINGLE, labels=None, **columns):
    if labels is None:
        labels = [f"c{i % 3}" for i in range(COUNT)]
    texts = columns.pop("text", [f"text {i}" for i in range(len(labels))])
    data = Dataset.from_dict({"text": texts, "label": labels, **columns})
    return Source(data, "a.csv", problem_type=kind)


@pytest.mark.parametrize(
    "rows",
    [
        source(),
        source(REGRESSION, [f"{i / 7}" for i in range(COUNT)]),
        source(MULTI, ['["a"]', '["b"]', '["a", "b"]', "[]"] * 15),
    ],
)
def test_each_row_is_held_out_once(rows):
    of_rows = folds_of(rows, 5, seed=1)
    assert np.bincount(of_rows).tolist() == [COUNT // 5] * 5
    assert (of_rows == folds_of(rows, 5, seed=1)).all()
    assert (of_rows != folds_of(rows, 5, seed=2)).any()
    held_out = []
    for fold in range(5):
        parts = hold_out(rows, fold, 5, seed=1)
        held_out += parts["test"].dataset["text"][:]
        both = [*parts["train"].dataset["text"], *parts["test"].dataset["text"]]
        assert sorted(both) == sorted(rows.dataset["text"])
    assert sorted(held_out) == sorted(rows.dataset["text"])


def test_classes_keep_their_shares():
    labels = ["rare"] * 10 + ["often"] * 50
    of_rows = folds_of(source(labels=labels), 5, seed=1)
    assert np.bincount(of_rows[:10]).tolist() == [2] * 5


def test_what_belongs_together_stays_together():
    texts = [f"text {i % 20}" for i in range(COUNT)]
    of_rows = folds_of(source(text=texts), 4, seed=1)
    assert all(len(set(of_rows[i::20])) == 1 for i in range(20))
    groups = [f"who {i % 7}" for i in range(COUNT)]
    of_rows = folds_of(source(group=groups), 4, seed=1)
    assert all(len(set(of_rows[i::7])) == 1 for i in range(7))


@pytest.mark.parametrize(
    ("kind", "labels", "alone"),
    [
        (SINGLE, ["x", *["a", "b"] * 20], [0]),
        (MULTI, ['["a", "x"]', *['["a"]', '["b"]'] * 20], [0]),
    ],
)
def test_a_label_of_one_fold_is_always_learnt(kind, labels, alone):
    of_rows = folds_of(source(kind, labels), 4, seed=1)
    assert np.flatnonzero(of_rows < 0).tolist() == alone
    train = hold_out(source(kind, labels), 2, 4, seed=1)["train"]
    assert labels[0] in train.dataset["label"]


def test_classes_of_fewer_rows_than_folds():
    labels = [f"c{i // 4}" for i in range(40)]
    of_rows = folds_of(source(labels=labels), 5, seed=1)
    assert np.bincount(of_rows).tolist() == [8] * 5


def test_a_fold_without_a_row():
    """Each label in a group of its own: all rows are always learnt."""
    labels = [f"c{i % 3}" for i in range(COUNT)]
    with pytest.raises(DataError, match="k_folds 3 leaves a fold without a row"):
        folds_of(source(labels=labels, group=labels), 3, seed=1)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["same"] * COUNT}, "1 different texts are too few for k_folds 3"),
        ({"group": ["x", "y"] * 30}, "2 groups are too few for k_folds 3"),
    ],
)
def test_too_few_to_fold(columns, said):
    with pytest.raises(DataError, match=said):
        folds_of(source(**columns), 3, seed=1)
