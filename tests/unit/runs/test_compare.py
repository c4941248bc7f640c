"""Comparing runs: what differs, the verdict in words, the page."""

import json
import re

import numpy as np
import pytest
from unit.runs.test_record import make

from llmft.runs.compare import compare, decimals
from llmft.runs.compare_page import as_html, as_text
from llmft.runs.record import read_run

ROWS = 200


def classifier(folder, accuracy, seed, data="h", rows=ROWS, **record):
    """A run whose predictions are right for that share of the rows."""
    draw = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        label = "ab"[row % 2]
        guess = label if draw.random() < accuracy else "ab"[1 - row % 2]
        found = {"split": "test", "row": row, "line": row + 1, "text": f"<b>{row}"}
        parts = {"a": 0.2, "b": 0.2} | {guess: 0.8}
        found |= {"label": label, "prediction": guess, "probabilities": parts}
        lines.append(json.dumps(found) + "\n")
    test = {"source": "t.jsonl", "rows": rows, "sha256": data}
    arguments = {"seed": {"value": seed, "from": "flag"}}
    arguments["output_dir"] = {"value": str(folder), "from": "flag"}
    record = {"recipe": "classify", "arguments": arguments} | record
    make(folder, data={"test": test}, **record)
    (folder / "predictions.jsonl").write_text("".join(lines))
    return read_run(folder)


def language_model(folder, loss, stderr=0.01, n=1000, data="h", tokenizer="t", **more):
    entry = {"value": loss, "n": n, "stderr": stderr, "split": "validation"}
    parts = {"validation": {"source": "v.txt", "rows": 9, "sha256": data}}
    model = {"name": "m", "tokenizer": tokenizer}
    make(folder, recipe="generate", data=parts, model=model, **more)
    found = {"eval": {"loss": entry}, "run": {"wall_seconds": 3.0}}
    (folder / "metrics.json").write_text(json.dumps(found))
    return read_run(folder)


def test_a_better_run_is_named_with_how_much_and_how_sure(tmp_path):
    runs = [
        classifier(tmp_path / n, a, s) for n, a, s in (("x", 0.6, 1), ("y", 0.9, 2))
    ]
    for order, better in ((runs, "B"), (runs[::-1], "A")):
        found = compare(order)
        (pair,) = found["pairs"]
        said = r"accuracy \+\d\d\.\d\d \+- \d\.\d\d points \(99\.9 % sure\)"
        assert re.fullmatch(f"{better} is better: {said}", pair["verdict"])
    asked = {**found["arguments"], **found["followed"]}
    assert asked == {"seed": [2, 1]}  # no output_dir
    right = pair["right"]
    assert sum(right.values()) == ROWS
    differ = pair["differ"]
    assert differ["count"] == right["only_a"] + right["only_b"]
    assert len(differ["rows"]) == 50
    first = differ["rows"][0]
    assert first["place"] == f"t.jsonl:{int(first['text'][3:]) + 1}"
    assert {first["a"], first["b"]} == {"a", "b"}


def test_the_verdict_is_of_one_metric_and_the_others_are_beside_it(tmp_path):
    """The same answers, of a surer model: only the log loss tells them apart.

    A verdict by whichever metric differs would find one by chance too often.
    """
    one, other = (classifier(tmp_path / n, 0.9, 1) for n in "xy")
    path = other.folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        best = row["prediction"]
        row["probabilities"] = {n: 0.9 if n == best else 0.1 for n in "ab"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,) = compare([one, other])["pairs"]
    assert pair["verdict"] == (
        "no difference that could be told: B has accuracy +0.00 +- 0.00 points"
    )
    assert pair["metrics"]["log_loss"]["sure"] > 0.9


def test_equal_runs_show_no_difference(tmp_path):
    runs = [classifier(tmp_path / str(seed), 0.8, seed) for seed in (1, 2)]
    (pair,) = compare(runs)["pairs"]
    wanted = "no difference that could be told: B has accuracy "
    assert pair["verdict"].startswith(wanted)
    assert "only the seed differs: so far apart are runs of one job" in pair["notes"]


def test_of_three_runs_a_difference_has_to_be_clearer(tmp_path):
    runs = [classifier(tmp_path / str(seed), 0.8, seed) for seed in (1, 2, 3)]
    found = compare(runs)
    assert [(p["a"], p["b"]) for p in found["pairs"]] == [
        *map(tuple, "AB AC BC".split())
    ]
    assert found["clear"] == pytest.approx(1 - 0.05 / 3)
    assert "of the first metric, and one from 98.33 % sure on" in as_text(found)


def test_rows_that_only_one_has_or_with_another_label_are_counted(tmp_path):
    one = classifier(tmp_path / "x", 0.6, 1)
    other = classifier(tmp_path / "y", 0.9, 2, data="other", rows=150)
    path = other.folder / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["label"], lines[1]["label"], lines[2]["text"] = "b", None, "changed"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (pair,) = compare([one, other])["pairs"]
    wanted = {"both": 149, "only_a": 51, "only_b": 1, "other_label_or_none": 2}
    assert pair["rows"] == wanted
    assert "the test data are not the same" in pair["notes"]
    assert sum(pair["right"].values()) == 147
    said = "rows: 147 compared, 2 in both without the same label, 51 only in A, 1 only"
    assert said in as_text(compare([one, other]))


def test_other_texts_are_not_paired(tmp_path):
    one = classifier(tmp_path / "x", 0.8, 1)
    other = classifier(tmp_path / "y", 0.8, 1, status="failed")
    path = other.folder / "predictions.jsonl"
    path.write_text(path.read_text().replace("<b>", "<i>"))
    (pair,) = compare([one, other])["pairs"]
    assert pair["verdict"] == "no verdict"
    assert pair["notes"] == [
        "B is failed",
        "no paired test: 0 rows are in both; give both runs one --validation_file",
    ]


@pytest.mark.parametrize(
    ("change", "verdict", "note"),
    [
        (
            {"loss": 1.0},
            "B is better: loss -1.0000 +- 0.0141 (99.9 % sure)",
            "unpaired",
        ),
        ({"loss": 2.01}, "no difference that could be told: B has loss", "unpaired"),
        ({"loss": 1.0, "tokenizer": "u"}, "no verdict", "their tokenizers differ"),
        ({"loss": 1.0, "n": 999}, "no verdict", "predicted: 1,000 there, 999"),
        ({"loss": 1.0, "n": None}, "no verdict", "1,000 there, unknown here"),
        ({"loss": 1.0, "data": "i"}, "no verdict", "validation data are not the same"),
        ({"loss": 1.0, "stderr": None}, "no verdict", "unpaired"),
    ],
)
def test_language_models_are_compared_unpaired(tmp_path, change, verdict, note):
    runs = [
        language_model(tmp_path / "x", 2.0),
        language_model(tmp_path / "y", **change),
    ]
    (pair,) = compare(runs)["pairs"]
    assert pair["verdict"].startswith(verdict)
    assert any(note in said for said in pair["notes"])


def test_without_knowing_of_which_rows_there_is_no_verdict(tmp_path):
    runs = [language_model(tmp_path / n, x, data=None) for n, x in (("x", 1), ("y", 2))]
    (pair,) = compare(runs)["pairs"]
    assert pair["verdict"] == "no verdict"
    assert "no verdict on eval: of which rows is not known" in pair["notes"]


def test_more_runs_than_letters(tmp_path):
    runs = [language_model(tmp_path / str(i), 2.0) for i in range(28)]
    assert [run["name"] for run in compare(runs)["runs"]][24:] == ["Y", "Z", "AA", "AB"]


def test_both_forms_show_what_is_there_and_the_page_has_no_script(tmp_path):
    runs = [classifier(tmp_path / n, 0.7, s) for n, s in (("x", 1), ("<y>", 2))]
    found = compare(runs)
    json.dumps(found, allow_nan=False)
    text, page = as_text(found), as_html(found)
    for said in (found["pairs"][0]["verdict"], "only A", "f1_macro", "t.jsonl:"):
        assert said in text
        assert said in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "&lt;y&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_row_that_one_held_out_in_a_fold_is_the_same_row(tmp_path):
    one, other = (classifier(tmp_path / n, 0.8, s) for s, n in enumerate("xy"))
    path = other.folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"split": "train", "row": row["row"] + 7} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,) = compare([one, other])["pairs"]
    assert pair["rows"]["both"] == ROWS


def test_rows_are_known_by_their_text_where_one_above_was_taken_out(tmp_path):
    """All that follow have another line then; a text twice is told by its order."""
    one, other = (classifier(tmp_path / n, 0.8, 1) for n in "xy")
    rows = [json.loads(x) for x in (one.folder / "predictions.jsonl").open()]
    rows[4]["text"] = rows[5]["text"] = "twice"
    for run, first in ((one, 0), (other, 1)):
        lines = [row | {"line": row["line"] - first} for row in rows[first:]]
        path = run.folder / "predictions.jsonl"  # in another order, as of folds
        path.write_text("".join(json.dumps(row) + "\n" for row in lines[::-1]))
    (pair,) = compare([one, other])["pairs"]
    wanted = {"both": 199, "only_a": 1, "only_b": 0, "other_label_or_none": 0}
    assert pair["rows"] == wanted
    assert pair["differ"]["count"] == 0  # each is compared with itself


@pytest.mark.parametrize(
    ("limit", "steps", "told"),
    [("4m", (29, 14), True), ("4m", (29, 28), False), (None, (29, 14), False)],
)
def test_a_time_that_was_enough_for_more_steps_is_told(tmp_path, limit, steps, told):
    runs = []
    for name, made in zip("xy", steps, strict=True):
        asked = {"time_limit": {"value": limit, "from": "flag"}}
        classifier(tmp_path / name, 0.8, 1, arguments=asked)
        found = {"run": {"steps": made}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(found))
        runs.append(read_run(tmp_path / name))
    (pair,) = compare(runs)["pairs"]
    said = [note for note in pair["notes"] if "time limit" in note]
    assert said == told * [
        "A learnt for 29 steps, B for 14: a time limit is enough for more on a machine"
        " that is less busy"
    ]


def test_a_cut_file_of_predictions_and_another_task_are_told(tmp_path):
    one, other = (classifier(tmp_path / n, 0.8, s) for s, n in enumerate("xy"))
    path = other.folder / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:150]))
    (pair,) = compare([one, other])["pairs"]
    assert "B: predictions.jsonl has 150 of 200 rows of test" in pair["notes"]
    rows = [json.loads(line) | {"prediction": ["a"], "label": ["a"]} for line in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,) = compare([one, other])["pairs"]
    assert "no paired test: classes here, something else there" in pair["notes"]


def test_epochs_that_steps_or_a_time_overrule_are_none(tmp_path):
    values = [("epochs", None, -1), ("time", "2m", -1), ("steps", None, 9)]
    runs = []
    for epochs, (name, limit, steps) in enumerate(values, 1):
        given = {"num_train_epochs": epochs, "time_limit": limit, "max_steps": steps}
        asked = {n: {"value": v, "from": "flag"} for n, v in given.items()}
        runs.append(classifier(tmp_path / name, 0.8, 1, arguments=asked))
    assert compare(runs)["arguments"] == {
        "num_train_epochs": [1, None, None],
        "time_limit": [None, "2m", None],
        "max_steps": [-1, -1, 9],
    }


def test_what_nobody_gave_stands_apart(tmp_path):
    runs = []
    for value, origin in ((1, "flag"), (2, "default")):
        asked = {"seed": {"value": value, "from": origin}}
        asked["num_train_epochs"] = {"value": value, "from": "auto: of the rows"}
        runs.append(classifier(tmp_path / origin, 0.8, 1, arguments=asked))
    found = compare(runs)
    assert found["arguments"] == {"seed": [1, 2]}
    assert found["followed"] == {"num_train_epochs": [1, 2]}
    assert "though nobody gave them\n" in as_text(found)


def test_what_a_cross_validation_sets_itself_is_no_difference(tmp_path):
    def asked(origin, value):
        given = {"value": value, "from": origin}
        return {"seed": {"value": 1, "from": "flag"}, "precision": given}

    runs = [
        classifier(tmp_path / n, 0.8, 1, arguments=asked(*how))
        for n, how in (("x", ("default", "auto")), ("y", ("k_folds: as in", "bf16")))
    ]
    assert compare(runs)["arguments"] == {}


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.12345, 4, "0.1235"),
        (-0.00003684, 4, "-3.7e-05"),
        (0.0, 4, "0.0000"),
        (0.0001, 4, "0.0001"),
        (0.004, 2, "0.004"),
        (12.5, 2, "12.50"),
    ],
)
def test_a_tiny_number_keeps_two_digits(value, digits, shown):
    assert decimals(value, digits) == shown


def test_rows_of_several_files_are_named_by_theirs(tmp_path):
    one, other = (classifier(tmp_path / x, 0.8, i) for i, x in enumerate("xy"))
    path = one.folder / "predictions.jsonl"
    lines = [json.loads(line) | {"path": "b.csv"} for line in path.open()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (pair,) = compare([one, other])["pairs"]
    assert {row["place"].split(":")[0] for row in pair["differ"]["rows"]} == {"b.csv"}
    (pair,) = compare([other, one])["pairs"]
    assert {row["place"].split(":")[0] for row in pair["differ"]["rows"]} == {"t.jsonl"}


def test_several_labels_have_no_order(tmp_path):
    """Each model has its classes in its own."""
    runs = []
    for name, both in (("x", ["a", "b"]), ("y", ["b", "a"])):
        folder = classifier(tmp_path / name, 0.8, 1).folder
        path = folder / "predictions.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            right = line["prediction"] == line["label"]
            line |= {"label": both, "prediction": both if right else ["a"]}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(read_run(folder))
    (pair,) = compare(runs)["pairs"]
    assert (pair["rows"]["other_label_or_none"], pair["differ"]["count"]) == (0, 0)
    assert 0.7 * ROWS < pair["right"]["both"] < 0.9 * ROWS
