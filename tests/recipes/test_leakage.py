"""Rows on both sides stop a run before anything is written; allowed, they are told."""

from __future__ import annotations

import recipe_process as process
import tiny

TRAIN = tiny.sentences(24)


def write(folder, name, texts):
    rows = [f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts)]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["text,label", *rows, ""]))


def test_leakage(tmp_path, tiny_bert):
    folder = tmp_path / "own"
    write(folder, "train.csv", TRAIN)
    write(folder, "new.csv", [TRAIN[4].upper(), *tiny.sentences(5, seed=1)])
    flags = (
        *process.QUICK,
        *("--model_name_or_path", tiny_bert, "--do_train", "--max_steps", 1),
        *("--train_file", "train.csv", "--validation_file", "new.csv"),
    )
    stopped = process.run("classify", *flags, cwd=folder)
    assert stopped.returncode == 3
    assert stopped.stderr == (
        "llmft: LeakageError: 1 of 6 rows of validation are in train too, 0 of them to"
        " the letter: new.csv:2 = train.csv:6; expected rows that training does not"
        " see; take them out on one side; --allow leakage goes on all the same\n"
    )
    assert {path.name for path in folder.iterdir()} == {"train.csv", "new.csv"}
    allowed = process.run("classify", *flags, "--allow", "leakage", cwd=folder)
    assert allowed.returncode == 0, allowed.stderr
    said = "llmft: warning: 1 of 6 rows of validation are in train too"
    assert said in allowed.stderr
    record = process.read_json(process.only_run(folder, "classify") / "run.json")
    assert record["data"]["validation"]["audit"] == {
        "also_in": {"train": {"rows": 1, "exact": 0}}
    }
