"""What is there twice is found, with its place; leakage of own files is an error."""

import re

import numpy as np
import pytest
from datasets import Dataset

from llmft.config.fields import ClassificationDataArguments, DataArguments
from llmft.config.fold import Fold
from llmft.data.look.findings import Part
from llmft.data.read import store
from llmft.data.read.labels import MULTI, REGRESSION
from llmft.data.read.prints import normalised
from llmft.data.read.store import Source
from llmft.data.split import splits
from llmft.data.split.duplicates import (
    SHORT,
    conflicts,
    duplicates,
    labels_of,
    overlap,
    prints,
)
from llmft.data.split.sampling import split_off
from llmft.data.split.splits import load_splits
from llmft.errors import DataError, LeakageError

PARTS = ("train", "validation", "test")
LINE = "A line that is long enough to be compared, number"


def source(texts, labels=None, name="a.csv", **more):
    columns = {"text": texts, "file": [0] * len(texts)}
    columns |= {"line": list(range(2, 2 + len(texts)))}
    columns |= {"label": labels} if labels is not None else {}
    return Source(Dataset.from_dict(columns | more), name, [], (name,))


@pytest.mark.parametrize(
    ("one", "other"),
    [("$1.50", "$150"), ("-5", "5"), ("C#", "C"), ("Really?", "Really!"), ("+", "-")],
)
def test_signs_and_punctuation_count(one, other):
    train, test = source([one, one], ["a", "b"]), source([other], ["a"])
    assert overlap(prints(test), prints(train)).rows == 0
    again = source([f" {one.lower()}\t"], ["a"])
    assert overlap(prints(again), prints(train)).rows == 1


@pytest.mark.parametrize("batch", [1, 3, 10_000])
def test_duplicates_and_their_places(batch, monkeypatch):
    monkeypatch.setattr(store, "BATCH", batch)
    texts = ["a b", "A  b", "c", "a b", "", " \u200b", "...", "?", "...", "c", "C"]
    found = prints(source(texts, ["x"] * len(texts)))
    assert found.compared.tolist() == [i not in (4, 5) for i in range(11)]
    twice = duplicates(found)  # empty rows are none
    assert twice.pairs.tolist() == [[1, 0], [3, 0], [8, 6], [9, 2], [10, 2]]
    assert (twice.rows, twice.exact) == (5, 3)


def test_short_lines_count_only_where_they_have_labels():
    just, below = "x" * SHORT, "y" * (SHORT - 1)
    texts = [just, below + "  ", just, below + "  ", just + " "]
    assert duplicates(prints(source(texts))).pairs.tolist() == [[2, 0], [4, 0]]
    assert duplicates(prints(source(texts, list("abcde")))).rows == 3


def test_both_texts_of_a_pair_count():
    data = source(["a", "ab", "a", "A"], list("xxxx"), text_pair=["bc", "c", "d", "BC"])
    assert duplicates(prints(data)).pairs.tolist() == [[3, 0]]


def test_conflicts():
    texts = ["a", "b", "a", "A", "b", "a", "c"]
    data = source(texts, ["x", "x", "y", "z", "x", "x", "y"])
    names, labels = labels_of(data)
    assert (names, labels.tolist()) == (["x", "y", "z"], [0, 0, 1, 2, 0, 0, 1])
    assert conflicts(prints(data), labels).tolist() == [[2, 0]]
    assert conflicts(prints(data), labels, exact=False).tolist() == [[2, 0], [3, 0]]


def test_overlap_of_random_rows_as_plain_sets_find_it():
    draw = np.random.default_rng(0)
    one, two = (
        [f"{'ABab'[draw.integers(4)]} {i}" for i in draw.integers(0, 900, 700)]
        for _ in range(2)
    )
    found = overlap(prints(source(one, one)), prints(source(two, two)))
    keys = ["".join(text.lower().split()) for text in two]
    expected = [
        [i, keys.index(key)]
        for i, key in enumerate("".join(text.lower().split()) for text in one)
        if key in keys
    ]
    assert found.pairs.tolist() == expected
    assert found.rows == len(expected) > 100
    assert found.exact == sum(text in two for text in one) < found.rows


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Write csv files of (text, label) by split; return the flags that name them."""
    monkeypatch.chdir(tmp_path)

    def given(**parts):
        for split, rows in parts.items():
            lines = [f'"{text}",{label}' for text, label in rows]
            text = "\n".join(["text,label", *lines, ""])
            (tmp_path / f"{split}.csv").write_text(text)
        return {f"{split}_file": f"{split}.csv" for split in parts}

    return given


def load(needed=PARTS, labels=True, **flags):
    kind = ClassificationDataArguments if labels else DataArguments
    return load_splits(kind(**flags), 1, {*needed}, needs_label=labels)


TRAIN = [(f"text {i}", "ab"[i % 2]) for i in range(40)]
LEAKED = [("Text  7", "b"), ("new", "a"), ("text 8", "a"), ("text 9", "b"), ("t", "a")]
SAID = (
    "3 of 5 rows of validation are in train too, 2 of them to the letter:"
    " validation.csv:2 = train.csv:9, validation.csv:4 = train.csv:10,"
    " validation.csv:5 = train.csv:11"
)


def test_leakage_of_own_files_is_an_error(given, capsys):
    flags = given(train=TRAIN, validation=LEAKED, test=[("text 3", "b"), ("z", "a")])
    with pytest.raises(LeakageError) as caught:
        load(**flags)
    assert str(caught.value) == (
        f"LeakageError: {SAID}; 1 of 2 rows of test are in train too, 1 of them to the"
        " letter: test.csv:2 = train.csv:5; expected rows that training does not see;"
        " take them out on one side; --allow leakage goes on all the same"
    )
    assert caught.value.exit_code == 3
    assert capsys.readouterr() == ("", "")


def test_allowed_leakage_is_kept_on_record(given, capsys):
    flags = given(train=TRAIN, validation=LEAKED)
    found = load(PARTS[:2], **flags, allow=["leakage"])
    assert found.provenance["validation"]["audit"] == {
        "also_in": {"train": {"rows": 3, "exact": 2}}
    }
    assert found.provenance["train"]["audit"] == {}
    said = capsys.readouterr().err
    more = "metrics on validation look better than they are"
    assert said == f"llmft: warning: {SAID}; {more}\n"


@pytest.mark.parametrize(
    ("leaked", "rows", "stops"),
    [(1, 101, False), (1, 100, True), (9, 901, False), (10, 901, True)],
)
def test_one_row_of_a_hundred_is_too_many(given, capsys, leaked, rows, stops):
    held_out = [*TRAIN[:leaked], *((f"new {i}", "a") for i in range(rows - leaked))]
    flags = given(train=TRAIN, validation=held_out[::-1])
    if stops:
        with pytest.raises(LeakageError, match=f"{leaked} of {rows} rows of valid"):
            load(PARTS[:2], **flags)
    else:
        found = load(PARTS[:2], **flags)
        wanted = [*range(rows - leaked, rows)]
        assert found.in_train["validation"].tolist() == wanted
        assert f"warning: {leaked} of {rows} rows of val" in capsys.readouterr().err


def test_one_file_on_both_sides_is_leakage_however_few_rows_it_shares(given, tmp_path):
    given(train=[(f"text {i}", "ab"[i % 2]) for i in range(300)])
    (tmp_path / "again.csv").symlink_to("train.csv")
    flags = {"train_file": "train.csv", "validation_file": "again.csv"}
    found = load(PARTS[:2], **flags, max_train_samples=2, allow=["leakage"])
    assert len(found.in_train["validation"]) == 2  # of 300
    with pytest.raises(LeakageError):
        load(PARTS[:2], **flags, max_train_samples=2)


def test_test_rows_in_validation_are_a_warning(given, capsys):
    flags = given(train=TRAIN, validation=[("v", "a"), ("w", "b")], test=[("V", "a")])
    found = load(**flags)
    assert found.provenance["test"]["audit"]["also_in"] == {
        "validation": {"rows": 1, "exact": 0}
    }
    said = capsys.readouterr().err
    assert "1 of 1 rows of test are in validation too, 0 of them to the" in said


def test_only_rows_that_are_used_are_compared(given):
    flags = given(train=TRAIN, validation=LEAKED)
    found = load(PARTS[:1], **flags)
    assert list(found.parts) == ["train"]


def test_short_lines_of_plain_text_do_not_leak(given):
    again = [("text 1", ""), (f"{LINE} 50", "")]
    flags = given(train=[*TRAIN, (f"{LINE} 51", "")], validation=again)
    found = load(PARTS[:2], labels=False, **flags)
    assert found.provenance["validation"]["audit"] == {}
    flags = given(train=[*TRAIN, (f"{LINE} 50", "")], validation=again)
    said = "of validation are in train too (rows below 32 characters aside), 1 of"
    with pytest.raises(
        LeakageError, match=re.escape(said) + r".*csv:3 = train\.csv:42"
    ):
        load(PARTS[:2], labels=False, **flags)


def hub(monkeypatch, **parts):
    raw = {
        split: Dataset.from_dict(
            {"text": [r[0] for r in rows], "label": [r[1] for r in rows]}
        )
        for split, rows in parts.items()
    }
    monkeypatch.setattr(splits.hub_data, "load_dataset_dict", lambda *args: (raw, ""))


def test_official_splits_of_the_hub_only_warn(monkeypatch, capsys):
    hub(monkeypatch, train=TRAIN, validation=LEAKED)
    found = load(PARTS[:2], dataset_name="a/b")
    assert found.provenance["validation"]["audit"]["also_in"]["train"]["rows"] == 3
    said = capsys.readouterr().err
    assert "a/b[validation]:1 = a/b[train]:8" in said
    assert "metrics on validation look better" in said


def test_embedded_data_get_a_note(monkeypatch, capsys):
    data = source(
        [text for text, _ in LEAKED * 20],
        ["a", "b"] * 50,
        group=list(map(str, range(100))),
    )
    monkeypatch.setattr(splits, "asset_rows", lambda name, config: None)
    monkeypatch.setattr(splits, "stored", lambda rows: data)
    found = load(dataset_name="pypi:rotten-tomatoes")
    rows = len(found.parts["test"])
    assert f"rows also in train: {rows}" in found.provenance["test"]["notes"]
    assert "look better" not in capsys.readouterr().err


def test_duplicates_are_noted_and_many_warned_of(given, capsys):
    few = [*((f"text {i}", "ab"[i % 2]) for i in range(300)), ("Text 5", "b")]
    found = load(["train"], **given(train=few))
    assert found.provenance["train"]["notes"] == ["duplicates: 1"]
    counts = {"duplicates": {"rows": 1, "exact": 0}}
    assert found.provenance["train"]["audit"] == counts
    captured = capsys.readouterr()
    assert "301 rows of train.csv (duplicates: 1)" in captured.out
    assert captured.err == ""
    load(["train"], **given(train=[*few, *few[:3]]))
    assert capsys.readouterr().err == (
        "llmft: warning: train: 4 of 304 rows (1.3 %) repeat an earlier one, 3 of them"
        " to the letter: train.csv:302 = train.csv:7, train.csv:303 = train.csv:2,"
        " train.csv:304 = train.csv:3, ...; they weigh more than others\n"
    )


def test_folds_do_not_warn_of_it_again(given, capsys):
    """All rows were read before them, and warned of."""
    args = ClassificationDataArguments(**given(train=[*TRAIN, *TRAIN[:3]]))
    for place, warns in ((None, True), (0, False), (1, False)):
        found = load_splits(
            args, 1, {"train"}, needs_label=True, fold=Fold(2, place=place)
        )
        assert ("repeat an earlier one" in capsys.readouterr().err) == warns
        assert any(part["audit"] for part in found.provenance.values())


def test_what_a_measurement_alone_is_not_compared_with(given, capsys):
    flags, note = given(train=TRAIN, test=TRAIN[:3]), "not compared with what the model"
    with pytest.raises(LeakageError):
        load({"train", "test"}, **flags)
    found = load({"test"}, **flags)
    assert note in "".join(found.provenance["test"]["notes"])
    assert note in capsys.readouterr().out
    load({"train"}, **flags)
    assert note not in capsys.readouterr().out


def test_a_text_with_two_labels_is_warned_of(given, capsys):
    rows = [*((f"text {i}", "ab"[i % 2]) for i in range(300)), ("text 0", "b")]
    found = load(["train"], **given(train=rows))
    assert found.provenance["train"]["audit"]["conflicting_texts"] == 1
    assert capsys.readouterr().err == (
        "llmft: warning: train: texts with more than one label: 1: train.csv:302 /"
        " train.csv:2; no model can get all of these rows right\n"
    )


def test_classes_that_are_not_evaluated_are_warned_of(given, capsys):
    flags = given(
        train=[*TRAIN, ("x", "c"), ("y", "d")], validation=[("v", "a"), ("w", "b")]
    )
    load(PARTS[:2], **flags)
    assert capsys.readouterr().err == (
        "llmft: warning: classes of train that validation has no row of: 2: 'c', 'd';"
        " its metrics say nothing about them\n"
    )


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        (None, ["b", "a", "b"], {"a", "b"}),
        (MULTI, ['["a","b"]', "[]", '["c"]'], {"a", "b", "c"}),
        (REGRESSION, ["1.0", "2.5", "0.1"], set()),
    ],
)
def test_classes_of_each_kind_of_label(kind, labels, classes):
    data = source(["x", "y", "z"], labels)
    data = Source(data.dataset, "a.csv", problem_type=kind)
    assert Part("train", data).classes().keys() == classes


@pytest.mark.parametrize("stratify", [False, True])
def test_what_llmft_splits_has_each_text_on_one_side(stratify):
    """The same texts three times over: a plain random draw would leak nearly all."""
    texts = [f"{LINE} {i}" for i in range(100)]
    texts = [*texts, *(text.upper() for text in texts), *texts]
    labels = [["a", "b"][i % 2] for i in range(300)] if stratify else None
    for seed in range(5):
        sides = split_off(source(texts, labels), "test", 10, seed, stratify)
        kept, taken = (set(normalised(side.dataset["text"][:])) for side in sides)
        assert not kept & taken
        assert (len(kept), len(taken)) == (90, 10)
        assert [len(side.dataset) for side in sides] == [270, 30]
        assert sides[1].notes[1:] == [
            "rows that went where an earlier one with their text is: 200"
        ]


def test_headings_are_split_freely():
    """Else all rows of a frequent heading would be on one side."""
    texts = ["= References ="] * 50 + [f"{LINE} {i}" for i in range(50)]
    _, taken = split_off(source(texts), "test", 20, 0, False)
    assert 2 < taken.dataset["text"][:].count(texts[0]) < 18
    assert len(taken.notes) == 1


def test_a_split_loses_no_class_of_train():
    """``rare`` only ever occurs with the text of another label."""
    texts = [f"text {i}" for i in range(20)]
    labels = ["a", "b"] * 10
    for seed in range(30):
        data = source([*texts, "text 4"], [*labels, "rare"])
        kept, taken = split_off(data, "validation", 40, seed, True)
        assert {*taken.dataset["label"]} <= {*kept.dataset["label"]}
        assert "rare" in kept.dataset["label"][:]


def test_a_text_repeated_throughout_cannot_be_split():
    for stratify in (False, True):
        data = source([LINE] * 20, ["a", "b"] * 10 if stratify else None)
        with pytest.raises(DataError, match="too few different texts to set 10 %"):
            split_off(data, "test", 10, 0, stratify)


def test_a_group_wins_over_the_text_and_that_is_said(given, capsys, tmp_path):
    lines = [f"text {i % 10},{'ab'[i % 2]},g{i}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,who", *lines, ""]))
    load(PARTS[:2], train_file="t.csv", split_group_column="who")
    assert "rows of validation are in train too" in capsys.readouterr().err
