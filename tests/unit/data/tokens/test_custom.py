"""Texts that a program holds: the same examples and faults as out of a file."""

import json

import numpy as np
import pandas
import pytest
import tiny
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from llmft.data.tokens.custom import CustomTextDataset
from llmft.errors import LlmftError

TEXTS = tiny.sentences(6)
LABELS = ["b", "a", "b", "c", "a", "b"]


def test_what_it_holds(wordpiece, capsys):
    found = CustomTextDataset(TEXTS, LABELS, wordpiece, max_length=10)
    assert isinstance(found, Dataset)
    assert found.label_names.names == ("a", "b", "c")
    assert found["labels"][:] == [1, 0, 1, 2, 0, 1]
    alone = [wordpiece(text, truncation=True, max_length=10) for text in TEXTS]
    assert found["input_ids"][:] == [one["input_ids"] for one in alone]
    assert "6 texts cut to 10 tokens" in capsys.readouterr().out


def test_text_stays_as_it_is(wordpiece, tmp_path):
    """In memory, and by a file."""
    texts = ["007", "NA", "1e5", "null", "true", "a,b", 'a "b"', "x\r\ny"]
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    given = CustomTextDataset(texts, [r["label"] for r in rows], wordpiece)
    read = CustomTextDataset.from_json(tmp_path / "a.json", wordpiece)
    assert given["input_ids"][:] == read["input_ids"][:]
    assert given["input_ids"][:] == [wordpiece(t)["input_ids"] for t in texts]
    assert given["labels"][:] == read["labels"][:] == [0, 1] * 4
    assert given.label_names == read.label_names


@pytest.mark.parametrize(
    ("labels", "kind", "first"),
    [
        (np.array([0, 1, 0, 1, 2, 1]), "single_label_classification", 0),
        (torch.tensor([3, 1, 3, 1, 3, 1]), "single_label_classification", 1),
        ([True, False] * 3, "single_label_classification", 1),
        ([0.5, 1.0, 2.0, 3.0, 4.0, 5.0], "regression", 0.5),
        (list(np.linspace(0.5, 2, 6)), "regression", 0.5),
        (iter(np.array([4, 1] * 3)), "single_label_classification", 1),
        ([["x"], [], ["y"], ["x", "y"], [], []], "multi_label_classification", [1, 0]),
    ],
)
def test_kinds_of_labels(wordpiece, labels, kind, first):
    found = CustomTextDataset(iter(TEXTS), labels, wordpiece)
    assert found.label_names.problem_type == kind
    assert found["labels"][0] == first


def test_pairs_and_no_labels(wordpiece):
    found = CustomTextDataset(TEXTS, None, wordpiece, text_pairs=TEXTS[::-1])
    assert found.label_names is None
    assert "labels" not in found.column_names
    assert found[0]["input_ids"] == wordpiece(TEXTS[0], TEXTS[-1])["input_ids"]


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        (["a", 5], ["x", "y"], "texts:1: 'text' is 5 (int); expected text in every ro"),
        (["a", " "], ["x", "y"], "texts:1: 'text' is empty; expected a text to classi"),
        (["a", "b"], ["x", None], "texts:1: 'label' is None; expected a label: text"),
        (
            ["a", "b"],
            ["x", 1],
            "texts: labels of different kinds: 'x' at texts:0, 1 at",
        ),
        (["a", "b"], ["x"], "2 of text, 1 of label; expected as many of each"),
        ([], [], "0 of text, 0 of label; expected as many of each, and at least one"),
        (["a", "b"], ["x", "x"], "all 2 training rows have the label 'x'"),
        (["a\0", "b"], ["x", "y"], "texts:0: 'text' holds a NUL byte"),
        (["a"], [["x\0"]], "texts:0: a label of 'label' holds a NUL byte"),
        (["a"], [["\ud800"]], "texts:0: a label of 'label' holds half of a character"),
        (None, ["x"], "text is None (NoneType); expected a list, or a single column"),
        (["a"], 5, "label is 5 (int); expected a list, or a single column"),
        (["a"], torch.tensor(1), "label is tensor(1) (Tensor); expected a list"),
        (
            ["a", "b"],
            np.array([[1, 0, 1], [0, 1, 1]]),
            "texts: each label is a list of 3 values that are 0 or 1; expected ",
        ),
    ],
)
def test_what_is_refused(wordpiece, texts, labels, said):
    with pytest.raises(LlmftError) as caught:
        CustomTextDataset(texts, labels, wordpiece)
    assert said in str(caught.value)


def test_whole_numbers_can_be_scores(wordpiece):
    scores = [float(i) for i in range(6)]
    with pytest.raises(LlmftError, match=r"labels such as 1\.0 taken for the class"):
        CustomTextDataset(TEXTS, scores, wordpiece)
    found = CustomTextDataset(TEXTS, scores, wordpiece, problem_type="regression")
    assert found["labels"][:] == scores


def test_columns_of_pandas(wordpiece):
    table = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    found = CustomTextDataset(table["text"], table["label"], wordpiece)
    assert found["labels"][:] == [1, 0, 1, 2, 0, 1]
    with pytest.raises(LlmftError, match=r"\(DataFrame\); expected a list, or a singl"):
        CustomTextDataset(table[["text"]], None, wordpiece)


def test_a_label_column_that_is_named_must_be_there(wordpiece, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "a film", "other": 1}\n')
    names = CustomTextDataset(TEXTS, LABELS, wordpiece).label_names
    given = {"label_column_name": "lable", "label_names": names}
    with pytest.raises(LlmftError, match="no column 'lable'; it has 'text', 'other'"):
        CustomTextDataset.from_json(tmp_path / "a.jsonl", wordpiece, **given)
    CustomTextDataset.from_json(tmp_path / "a.jsonl", wordpiece, label_names=names)
    assert "columns not used: 'other'" in capsys.readouterr().out


def test_arguments_that_are_none(wordpiece):
    with pytest.raises(LlmftError, match=r"text is 'a b' \(str\); expected a list"):
        CustomTextDataset("a b", ["x"] * 3, wordpiece)
    with pytest.raises(LlmftError, match="max_length is 4, expected at least 8"):
        CustomTextDataset(TEXTS, LABELS, wordpiece, max_length=4)
    with pytest.raises(LlmftError, match="max_length is None, expected at least 8"):
        CustomTextDataset(TEXTS, LABELS, wordpiece, max_length=None)
    with pytest.raises(LlmftError, match="problem_type is 'x', expected one of single"):
        CustomTextDataset(TEXTS, LABELS, wordpiece, problem_type="x")


def test_labels_that_are_arrays(wordpiece):
    labels = [np.array(["x", "y"]), torch.tensor([3]), []]
    found = CustomTextDataset(["a", "b", "c"], labels, wordpiece)
    assert found.label_names.names == ("3", "x", "y")
    assert found["labels"][:] == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_a_second_set_has_the_classes_of_the_first(wordpiece, tmp_path):
    train = CustomTextDataset(TEXTS, LABELS, wordpiece)
    names = train.label_names
    test = CustomTextDataset(TEXTS[:2], ["c", "c"], wordpiece, label_names=names)
    assert test["labels"][:] == [2, 2]
    with pytest.raises(LlmftError, match="texts:1: texts has labels that train has no"):
        CustomTextDataset(TEXTS[:2], ["c", "d"], wordpiece, label_names=names)
    (tmp_path / "new.jsonl").write_text('{"text": "a film"}\n')
    new = CustomTextDataset.from_json(
        tmp_path / "new.jsonl", wordpiece, label_names=names
    )
    assert new.column_names == ["input_ids", "length"]


def test_a_plain_trainer_takes_it(wordpiece, tmp_path):
    train = CustomTextDataset(TEXTS, LABELS, wordpiece)
    trainer = Trainer(
        tiny.model("bert", "classification", len(wordpiece), num_labels=3),
        TrainingArguments(
            *(str(tmp_path / "run"),), max_steps=2, use_cpu=True, report_to=[]
        ),
        train_dataset=train,
        eval_dataset=train.select([0, 1]),
        data_collator=DataCollatorWithPadding(wordpiece),
    )
    assert trainer.train().training_loss < 5
    assert trainer.evaluate()["eval_loss"] < 5


def test_faults_to_pass_over(wordpiece, tmp_path):
    labels = ["NA", "DE", "NA", "DE", "NA", "DE"]
    texts = [f"{TEXTS[0]}\0", *TEXTS[1:]]
    rows = [
        {"text": text, "label": label}
        for text, label in zip(texts, labels, strict=True)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    allow = ["na_labels", "nul"]
    for made in (
        CustomTextDataset(texts, labels, wordpiece, allow=allow),
        CustomTextDataset.from_json(tmp_path / "a.json", wordpiece, allow=allow),
    ):
        assert made.label_names.names == ("DE", "NA")
    with pytest.raises(LlmftError, match="--allow na_labels"):
        CustomTextDataset(TEXTS, labels, wordpiece)
    with pytest.raises(LlmftError, match="NUL"):
        CustomTextDataset(texts, labels, wordpiece, allow=["na_labels"])
