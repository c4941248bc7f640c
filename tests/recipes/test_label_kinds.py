"""Each kind of classification data by flags alone, from the file to a saved model."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_process as process
import tiny
import torch
from scipy import stats
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

FLAGS = (
    *process.QUICK,
    *("--num_train_epochs", 5, "--learning_rate", 5e-3),
    *("--per_device_train_batch_size", 8, "--per_device_eval_batch_size", 5),
)
TAGS = {"praise": "good", "blame": "bad"}  # the word that gives each label


def texts(count: int, seed: int, longest: int = 9) -> list[list[str]]:
    draw = random.Random(seed)
    return [
        draw.choices(tiny.WORDS[1:], k=draw.randint(3, longest)) for _ in range(count)
    ]


def several(count: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for i, words in enumerate(texts(count, seed)):
        words = [w for w in words if w not in TAGS.values()]
        named = [name for k, name in enumerate(TAGS) if i >> k & 1]
        words += [TAGS[name] for name in named]
        rows.append({"text": " ".join(words), "tags": "|".join(named)})
    return rows


def numbers(count: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for i, words in enumerate(texts(count, seed)):
        words = [w for w in words if w not in TAGS.values()]
        words += [["bad"], [], ["good"]][i % 3]
        rows.append({"text": " ".join(words), "stars": f"{i % 3 + 0.5:.1f}"})
    return rows


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """The class is rare and known from the second text alone."""
    rows = []
    for i, words in enumerate(texts(count, seed, 5)):
        words = [w for w in words if w not in TAGS.values()]
        rows.append(
            {
                "question": " ".join(words),
                "answer": "bad" if i % 4 == 0 else "good",
                "label": "yes" if i % 4 == 0 else "no",
            }
        )
    return rows


def write(folder: Path, make: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for seed, (name, count) in enumerate((("train", 160), ("valid", 40), ("new", 40))):
        rows = make(count, seed)
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def without(folder: Path, column: str) -> None:
    """Take a column out of new.csv."""
    path = folder / "new.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    with open(path, "w", encoding="utf-8", newline="") as stream:
        names = [name for name in rows[0] if name != column]
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def train(bert: Path, cwd: Path, *flags: object) -> tuple[Path, str]:
    said = process.run_well(
        "classify",
        *("--model_name_or_path", bert, "--train_file", "train.csv"),
        *("--validation_file", "valid.csv", "--output_dir", "run", *FLAGS, *flags),
        cwd=cwd,
    )
    return cwd / "run", said


def predict(cwd: Path, said: str, name: str) -> list[dict[str, Any]]:
    """Run the command that the training ended with, on new.csv."""
    following = said.splitlines()[-1].removeprefix("next").strip()
    words = [w.replace("NEW.csv", "new.csv") for w in shlex.split(following)[2:]]
    # A busy machine may choose another precision the next time.
    flags = (*process.QUICK, "--output_dir", name)
    process.run_well("classify", *words, *flags, cwd=cwd)
    return process.read_jsonl(cwd / name / "predictions.jsonl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), "bert", "masked-lm")


def test_several_labels(bert: Path, tmp_path: Path) -> None:
    cwd = write(tmp_path / "work", several)
    run, said = train(
        *(bert, cwd, "--label_column_name", "tags", "--label_delimiter", "|"),
        *("--class_weights", "balanced", "--multi_label_threshold", 0.4),
        *("--num_train_epochs", 24, "--learning_rate", 2e-3),
        *("--early_stopping_patience", "none"),
    )
    assert (
        "  labels     multi_label_classification, 2 labels (1 an example, 40 examples"
        " have none)\n"
    ) in said
    assert "  weights    'blame' 1, 'praise' 1 (examples without the label /" in said
    assert re.search(
        r"ladder, on vali.*\n.* f1_micro (.|\n)*TF-IDF \+ logistic regression ", said
    )
    config = process.read_json(run / "model" / "config.json")
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "blame", "1": "praise"}
    card = (run / "model" / "README.md").read_text("utf-8")
    assert "# Multi-label text classifier for blame, praise" in card
    found = process.read_json(run / "metrics.json")["eval"]
    assert found["f1_micro"]["value"] > 0.9
    assert {m["n"] for m in found.values()} == {40}
    rows = process.read_jsonl(run / "predictions.jsonl")
    wanted, guesses = (
        np.array([[name in r[key] for name in ("blame", "praise")] for r in rows])
        for key in ("label", "prediction")
    )
    p = np.array([list(r["probabilities"].values()) for r in rows])
    assert np.array_equal(guesses, p >= 0.4)
    for name, value in (
        ("f1_micro", sk.f1_score(wanted, guesses, average="micro")),
        ("f1_macro", sk.f1_score(wanted, guesses, average="macro")),
        ("subset_accuracy", sk.accuracy_score(wanted, guesses)),
    ):
        assert found[name]["value"] == pytest.approx(value)
    classify = pipeline("text-classification", str(run / "model"), device="cpu")
    scores = classify(rows[3]["text"], top_k=None)
    assert {s["label"]: s["score"] for s in scores} == pytest.approx(
        rows[3]["probabilities"], abs=1e-5
    )
    rows = predict(cwd, said, "second")
    assert rows[3]["label"] == rows[3]["prediction"] == ["blame", "praise"]
    second = process.read_json(cwd / "second" / "metrics.json")["test"]
    assert second["f1_micro"]["value"] > 0.9
    without(cwd, "tags")
    third = predict(cwd, said, "third")
    assert third == [{**row, "label": None} for row in rows]
    assert process.read_json(cwd / "third" / "metrics.json")["test"] == {}


def test_numbers(bert: Path, tmp_path: Path) -> None:
    cwd = write(tmp_path / "work", numbers)
    best = ("--metric_for_best_model", "spearman")
    plain = ("--ladder", "false")  # from the probe, a random model's states diverge
    run, said = train(bert, cwd, "--label_column_name", "stars", *best, *plain)
    assert (
        "  labels     regression (from 0.5 to 2.5, mean 1.494, standard deviation 0.8"
    ) in said
    assert "the new head starts at the mean training label, 1.494\n" in said
    assert "\nlargest errors, 5 of 40\n" in said
    config = process.read_json(run / "model" / "config.json")
    assert config["problem_type"] == "regression"
    assert config["id2label"] == {"0": "LABEL_0"}
    found = process.read_json(run / "metrics.json")["eval"]
    rows = process.read_jsonl(run / "predictions.jsonl")
    assert [r["label"] for r in rows[:4]] == [0.5, 1.5, 2.5, 0.5]
    labels, guesses = ([r[key] for r in rows] for key in ("label", "prediction"))
    for name, value in (
        ("mse", sk.mean_squared_error(labels, guesses)),
        ("mae", sk.mean_absolute_error(labels, guesses)),
        ("r2", sk.r2_score(labels, guesses)),
        ("pearson", stats.pearsonr(labels, guesses).statistic),
        ("spearman", stats.spearmanr(labels, guesses).statistic),
    ):
        assert found[name]["value"] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert found["spearman"]["value"] > 0.8
    assert re.search(r"best  +checkpoint-\d+ .*: spearman 0\.[89]", said)
    classify = pipeline("text-classification", str(run / "model"), device="cpu")
    (score,) = classify(rows[3]["text"])
    assert score["score"] == pytest.approx(rows[3]["prediction"], rel=1e-4)
    rows = predict(
        cwd, said, "second"
    )  # whole numbers too: the model says what they are
    assert process.read_json(cwd / "second" / "metrics.json")["test"]["mse"]["n"] == 40
    without(cwd, "stars")
    third = predict(cwd, said, "third")
    assert third == [{**row, "label": None} for row in rows]


def test_pairs(bert: Path, tmp_path: Path) -> None:
    cwd = write(tmp_path / "work", pairs)
    run, said = train(
        *(bert, cwd, "--text_column_name", "question"),
        *("--text_pair_column_name", "answer", "--class_weights", "balanced"),
    )
    assert (
        "  weights    'no' 0.6667, 'yes' 2 (examples / (classes * examples of" in said
    )
    found = process.read_json(run / "metrics.json")["eval"]
    assert found["accuracy"]["value"] > 0.9
    rows = process.read_jsonl(run / "predictions.jsonl")
    assert rows[0]["text_pair"] == "bad"
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for row in rows[:5]:
        batch = tokenizer(row["text"], row["text_pair"], return_tensors="pt")
        assert batch["token_type_ids"].sum() == 2
        with torch.no_grad():
            p = model(**batch).logits.softmax(-1)[0]
        assert [*row["probabilities"].values()] == pytest.approx(p.tolist(), abs=1e-5)
    rows = predict(cwd, said, "second")
    without(cwd, "label")
    assert predict(cwd, said, "third") == [{**row, "label": None} for row in rows]
    frozen = ("--freeze_backbone", "--output_dir", "frozen", "--max_steps", 2)
    train(
        *(bert, cwd, "--text_column_name", "question"),
        *("--text_pair_column_name", "answer", *frozen),
    )
    assert (cwd / "frozen" / "predictions.jsonl").is_file()


def test_long_texts_are_judged_as_a_whole(bert: Path, tmp_path: Path) -> None:
    """The word that decides stands behind the cut."""
    cwd = write(tmp_path / "work", several)
    draw = random.Random(7)
    for name in ("train", "valid", "new"):
        rows = [
            (" ".join([*words, [*("good", "bad")][i % 2]]), "+-"[i % 2])
            for i, words in enumerate(texts(40, draw.randrange(99), 70))
        ]
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (cwd / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ("--long_text", "split", "--stride", 4, "--max_seq_length", 16)
    said = process.run_well(
        "classify",
        *("--model_name_or_path", bert, "--train_file", "train.jsonl"),
        *("--validation_file", "valid.jsonl", "--output_dir", "run", *FLAGS, *flags),
        cwd=cwd,
    )
    counted = (
        r"  validation .* longest \d+; (\d+) texts split into (\d+) examples of up"
    )
    split, made = map(int, re.search(counted, said).groups())
    assert made > 2 * split
    found = process.read_json(cwd / "run" / "metrics.json")["eval"]
    assert found["accuracy"]["n"] == 40
    rows = process.read_jsonl(cwd / "run" / "predictions.jsonl")
    assert len(rows) == 40
    assert found["accuracy"]["value"] == pytest.approx(
        sum(r["label"] == r["prediction"] for r in rows) / 40
    )
    model = AutoModelForSequenceClassification.from_pretrained(cwd / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(cwd / "run" / "model")
    for row in rows[:8]:
        windows = tokenizer(
            *(row["text"],),
            **{"truncation": True, "max_length": 16, "stride": 4},
            return_overflowing_tokens=True,
            return_tensors="pt",
            padding=True,
        )
        windows.pop("overflow_to_sample_mapping")
        with torch.no_grad():
            p = model(**windows).logits.mean(0).softmax(-1)
        assert [*row["probabilities"].values()] == pytest.approx(p.tolist(), abs=1e-5)
    assert "--long_text split --stride 4" in said.splitlines()[-1]
    (cwd / "new.csv").unlink()
    (cwd / "new.jsonl").rename(cwd / "new.csv")
    following = said.replace("NEW.csv", "new.csv --file_format jsonl")
    assert len(predict(cwd, following, "second")) == 40


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--long_text", "error", "--max_seq_length", 8),
         r"LengthError train\.csv:\d+: a text of \d+ tokens; \d+ more texts of train"),
        (("--validation_file", "new.csv"),
         r"LabelError: the labels of train \(train\.csv\) are regression, those of"),
        (("--metric_for_best_model", "accuracy"),
         r"ConfigError: metric_for_best_model is accuracy, regression has loss, mse"),
        (("--class_weights", "balanced"),
         r"ConfigError: class_weights is of classes, the labels are numbers"),
        (("--problem_type", "multi_label_classification"),
         r"LabelError train\.csv:2: 'stars' is '0\.5'; expected a list of labels, or"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_is_written(
    flags: tuple[object, ...], said: str, bert: Path, tmp_path: Path
) -> None:
    cwd = write(tmp_path / "work", numbers)
    (cwd / "new.csv").write_text("text,stars\n" + "a film,x\ngood,y\n" * 20)
    done = process.run(
        "classify",
        *("--model_name_or_path", bert, "--train_file", "train.csv"),
        *("--label_column_name", "stars", *FLAGS, *flags),
        cwd=cwd,
    )
    assert done.returncode in (2, 3)
    (problem,) = process.problems(done.stderr)
    assert re.search(said, problem), problem
    assert {p.name for p in cwd.iterdir()} == {"train.csv", "valid.csv", "new.csv"}


def test_a_regression_goes_on_where_it_was_stopped(bert: Path, tmp_path: Path) -> None:
    cwd = write(tmp_path / "work", numbers)
    flags = ("--label_column_name", "stars", "--save_total_limit", 9)
    run, said = train(bert, cwd, *flags)
    assert re.search(r"  TF-IDF \+ ridge regression +0\.\d", said)
    checkpoint = run / "checkpoints" / "checkpoint-40"
    more = ("--resume_from_checkpoint", checkpoint, "--output_dir", "again")
    again, _ = train(bert, cwd, *flags, *more)
    name = "model/model.safetensors"
    assert (again / name).read_bytes() == (run / name).read_bytes()
    # That may be the probe: what was trained is the same, too.
    ladders = [process.read_json(f / "metrics.json")["ladder"] for f in (run, again)]
    tuned, same = ([(r["name"], r["value"]) for r in x["rungs"]] for x in ladders)
    assert tuned == same
    assert tuned[-1][0] == "fine-tuned"
    last = max((again / "checkpoints").iterdir(), key=lambda f: int(f.name[11:])).name
    assert int(last[11:]) > 40
    weights = [f / "checkpoints" / last / "model.safetensors" for f in (run, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    done = process.run(
        "classify",
        *("--model_name_or_path", bert, "--train_file", "train.csv", *FLAGS, *flags),
        *("--validation_file", "valid.csv", "--long_text", "split", *more[:2]),
        cwd=cwd,
    )
    assert done.returncode == 4
    assert "long_text was auto, is split" in done.stderr
