"""Many rows on both sides stop a run before anything is written; few are told of."""

from __future__ import annotations

import re

import pytest
import recipe_process as process
import tiny

TRAIN = tiny.sentences(24)


def write(folder, name, texts):
    rows = [f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts)]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["text,label", *rows, ""]))


NEW = tiny.sentences(199, 1)


def test_leakage(tmp_path, tiny_bert):
    folder = tmp_path / "own"
    write(folder, "train.csv", TRAIN)
    write(folder, "new.csv", [*map(str.upper, TRAIN[4:7]), *tiny.sentences(7, 2)])
    write(folder, "few.csv", [*NEW, TRAIN[9].upper()])
    flags = (
        *process.QUICK,
        *("--model_name_or_path", tiny_bert, "--do_train", "--max_steps", 1),
        *("--train_file", "train.csv", "--validation_file", "new.csv"),
        *("--test_file", "few.csv", "--do_eval", "--do_predict"),
    )
    stopped = process.run("classify", *flags, cwd=folder)
    assert stopped.returncode == 3
    assert stopped.stderr == (
        "llmft: warning: 1 of 200 rows of test are in train too, 0 of them to the"
        " letter: few.csv:201 = train.csv:11; metrics on test look better than they"
        " are\n"
        "llmft: LeakageError: 3 of 10 rows of validation are in train too, 0 of them to"
        " the letter: new.csv:2 = train.csv:6, new.csv:3 = train.csv:7, new.csv:4 ="
        " train.csv:8; expected rows that training does not see; take them out on one"
        " side; --allow leakage goes on all the same\n"
    )
    names = {path.name for path in folder.iterdir()}
    assert names == {"train.csv", "new.csv", "few.csv"}
    allowed = process.run("classify", *flags, "--allow", "leakage", cwd=folder)
    assert allowed.returncode == 0, allowed.stderr
    said = "llmft: warning: 3 of 10 rows of validation are in train too"
    assert said in allowed.stderr
    run = process.only_run(folder, "classify")
    record = process.read_json(run / "run.json")
    assert record["data"]["validation"]["audit"] == {
        "also_in": {"train": {"rows": 3, "exact": 0}}
    }
    found = process.read_json(run / "metrics.json")
    assert found["shared_with_train"] == {"validation": 3, "test": 1}
    counts = {
        part: {entry["n"] for entry in entries.values()}
        for part, entries in found.items()
        if part.startswith(("eval", "test"))
    }
    assert counts == {
        **{"eval": {10}, "eval_without_shared": {7}},
        **{"test": {200}, "test_without_shared": {199}},
    }
    assert found["test_without_shared"].keys() == found["test"].keys()


def test_few_shared_rows_are_shown_beside_and_a_rare_class_is_named(
    tmp_path, tiny_bert
):
    folder = tmp_path / "own"
    write(folder, "train.csv", TRAIN)
    with open(folder / "train.csv", "a") as rows:
        rows.write("one,rare\nanother,rare\n")
    write(folder, "few.csv", [*NEW, TRAIN[4]])
    said = process.run_well(
        "classify",
        *process.QUICK,
        *("--model_name_or_path", tiny_bert, "--do_train", "--max_steps", 1),
        *("--train_file", "train.csv", "--validation_file", "few.csv"),
        cwd=folder,
    )
    run = process.only_run(folder, "classify")
    found = process.read_json(run / "metrics.json")
    rows = process.read_jsonl(run / "predictions.jsonl")
    right = [row["label"] == row["prediction"] for row in rows]
    for part, shown in (("eval", right), ("eval_without_shared", right[:-1])):
        wanted = sum(shown) / len(shown)
        assert found[part]["accuracy"]["value"] == pytest.approx(wanted)
    beside = r"\n  validation +accuracy +\S+ +\S+ +200 +\S+ +\S+ +199\n"
    assert re.search(beside, said)
    weak = found["weak_classes"]
    assert weak["few_training_rows"] == {"rare": 2}
    named = (
        "\n  fewer than 5 training rows: 'rare' (2)\n  what helps: more rows of them"
    )
    assert named in said
    assert "\n  rows of validation that are in train, too: 1\n" in said
