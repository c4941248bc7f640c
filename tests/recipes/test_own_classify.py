"""Classification of a user's own csv, jsonl and parquet file, with flags only."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import recipe_process as process
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import pipeline

TOY = (
    *process.QUICK,
    *("--num_train_epochs", 4, "--learning_rate", 5e-3),
    *("--per_device_train_batch_size", 8),
)
TRICKY = 'a "good" film,\r\nwith a line break, an emoji 🎬 and NULL'
PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "rating", "body"])
        writer.writerows([i, label, text] for i, (text, label) in enumerate(rows))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), "bert", "masked-lm")


@pytest.fixture(scope="module")
def held_out() -> list[tuple[str, str]]:
    rows = process.keyword_rows(["NA", "no"], ["good", "bad"], 30, seed=1)
    return [*rows[:7], (TRICKY, "NA"), *rows[7:]]


@pytest.fixture(scope="module")
def csv_run(
    bert: Path,
    held_out: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """Train on a csv; return the working directory and what was printed."""
    cwd = tmp_path_factory.mktemp("csv") / "my work"
    cwd.mkdir()
    rows = process.keyword_rows(["NA", "no"], ["good", "bad"], 160)
    write_csv(cwd / "train.csv", rows)
    write_csv(cwd / "valid.csv", held_out)
    said = process.run_well(
        "classify",
        *("--model_name_or_path", bert),
        *("--train_file", "train.csv", "--validation_file", "valid.csv"),
        *("--text_column_name", "body", "--label_column_name", "rating"),
        *("--allow", "na_labels"),
        *TOY,
        cwd=cwd,
    )
    return cwd, said


def test_the_run_folder(csv_run: tuple[Path, str]) -> None:
    cwd, _ = csv_run
    run = process.only_run(cwd, "classify")
    assert {p.name for p in cwd.iterdir()} == {"train.csv", "valid.csv", "outputs"}
    assert not [p for p in cwd.with_name("my work-home").iterdir() if p.name != "llmft"]
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run.name)
    assert {p.name for p in run.iterdir()} == {
        *process.RUN_FOLDER,
        "predictions.jsonl",
    }
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert len(names) == 2  # save_total_limit
    assert names < {f"checkpoint-{n}" for n in (20, 40, 60, 80)}
    assert {re.sub(r"\.\d.*", "", p.name) for p in (run / "logs").iterdir()} == {
        "debug.log",
        "events.out.tfevents",
    }
    assert "Running training" in (run / "logs" / "debug.log").read_text("utf-8")
    assert {p.name for p in (run / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in (run / "model").iterdir():
        assert not path.read_bytes().startswith(PICKLE)
        assert path.stat().st_mode & 0o044
    for path in run.rglob("*.json"):
        process.read_json(path)


def test_what_was_recorded(csv_run: tuple[Path, str]) -> None:
    run = process.only_run(csv_run[0], "classify")
    record = process.read_json(run / "run.json")
    assert record["status"] == "complete"
    assert record["arguments"]["train_file"] == {
        "value": "train.csv",
        "from": "command line",
    }
    assert record["data"]["validation"]["rows"] == 31
    found = process.read_json(run / "metrics.json")
    assert found["eval"]["accuracy"]["value"] >= 0.9
    assert found["eval"]["accuracy"]["n"] == 31
    assert found["run"]["steps"] == 80
    losses = process.losses(run)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] / 2
    scalars = {}
    for path in (run / "logs").glob("events.*"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(e.value for e in events.Scalars(tag))
    assert scalars["train/loss"] == pytest.approx(losses)
    assert "eval/accuracy" in scalars


def test_predictions_are_those_of_the_model(
    csv_run: tuple[Path, str], held_out: list[tuple[str, str]]
) -> None:
    run = process.only_run(csv_run[0], "classify")
    rows = process.read_jsonl(run / "predictions.jsonl")
    assert [(r["row"], r["text"], r["label"]) for r in rows] == [
        (i, *row) for i, row in enumerate(held_out)
    ]
    right = sum(r["label"] == r["prediction"] for r in rows) / len(rows)
    accuracy = process.read_json(run / "metrics.json")["eval"]["accuracy"]["value"]
    assert right == pytest.approx(accuracy)
    ladder = process.read_json(run / "metrics.json")["ladder"]
    others = [r for r in ladder["rungs"][1:] if r["name"] != ladder["saved"]]
    assert len(others) == 2
    for rung in others:
        said = [r["rungs"][rung["name"].split(" + ")[0]] for r in rows]
        right = [s["prediction"] == r["label"] for s, r in zip(said, rows, strict=True)]
        assert sum(right) / len(rows) == pytest.approx(rung["value"])
        assert all(0.5 <= s["probability"] <= 1 for s in said)
    classify = pipeline("text-classification", str(run / "model"), device="cpu")
    for row, scores in zip(
        rows, classify([text for text, _ in held_out], top_k=None), strict=True
    ):
        found = {score["label"]: score["score"] for score in scores}
        assert found == pytest.approx(row["probabilities"], abs=2e-6)
        assert found[row["prediction"]] == max(found.values())


def test_the_last_lines_lead_on(csv_run: tuple[Path, str]) -> None:
    cwd, said = csv_run
    run = process.only_run(cwd, "classify")
    shown, use, page, curves, disk, following = said.splitlines()[-6:]
    assert disk.endswith(f"runs clean {run.relative_to(cwd)} --checkpoints --yes")
    assert shown.split() == ["run", str(run.relative_to(cwd))]
    assert use.split()[2:] == ["predict", str(run.relative_to(cwd)), "NEW.csv"]
    assert page.split() == ["report", str(run.relative_to(cwd) / "report.html")]
    assert "Accuracy " in (run / "report.html").read_text("utf-8")
    assert curves.endswith(f"tensorboard --logdir {run.relative_to(cwd)}/logs")
    assert re.search(r"validation +accuracy +\S+ +\S+ +31\n", said)
    words = shlex.split(following.removeprefix("next").strip())
    assert words[0] == "python" or (cwd / words[0]).samefile(sys.executable)
    assert (cwd / words[1]).samefile(process.RECIPES / "classify.py")
    (cwd / "NEW.csv").write_text("body,label\na good plot,NA\nso bad,no\n")
    process.run_well("classify", *words[2:], cwd=cwd)
    (second,) = set((cwd / "outputs/classify").iterdir()) - {run}
    assert not list(second.glob("checkpoints/*"))
    assert {p.name for p in second.iterdir()} - {"checkpoints"} == {
        *("run.json", "metrics.json", "predictions.jsonl", "logs", "report.html")
    }
    rows = process.read_jsonl(second / "predictions.jsonl")
    assert [r["prediction"] for r in rows] == ["NA", "no"]

    (cwd / "NEW.csv").write_text("body\na good plot\nso bad\n")
    said = process.run_well("classify", *words[2:], "--output_dir", "third", cwd=cwd)
    assert "no labels: predictions only, no metrics" in said
    rows = process.read_jsonl(cwd / "third" / "predictions.jsonl")
    found = [(r["text"], r["label"], r["prediction"]) for r in rows]
    assert found == [("a good plot", None, "NA"), ("so bad", None, "no")]
    assert process.read_json(cwd / "third" / "metrics.json")["test"] == {}
    shutil.rmtree(cwd / "third")


def test_whole_numbers_as_labels_in_jsonl(bert: Path, tmp_path: Path) -> None:
    rows = process.keyword_rows(["10", "9", "1"], ["good", "bad", "dull"], 180)
    lines = [json.dumps({"text": text, "label": int(n)}) for text, n in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    cwd = tmp_path / "work"
    process.run_well(
        "classify",
        *("--model_name_or_path", bert, "--train_file", tmp_path / "train.jsonl"),
        *("--test_split_percentage", 20, "--do_train", "--do_eval", "--do_predict"),
        # The tiny model does not learn three classes from every seed.
        *("--output_dir", "run", *TOY, "--num_train_epochs", 12, "--seed", 1),
        *("--learning_rate", 2e-3, "--early_stopping_patience", "none"),
        cwd=cwd,
    )
    run = cwd / "run"
    assert {p.name for p in cwd.iterdir()} == {"run"}
    labels = process.read_json(run / "model" / "config.json")["id2label"]
    assert labels == {"0": "1", "1": "9", "2": "10"}
    found = process.read_json(run / "metrics.json")
    assert found["test"]["accuracy"]["n"] == 36
    assert found["test"]["accuracy"]["value"] >= 0.9
    predictions = process.read_jsonl(run / "predictions.jsonl")
    assert len(predictions) == 36
    assert all((r["text"], r["label"]) in rows for r in predictions)


def test_parquet_with_wrong_labels_and_a_calibration(
    bert: Path, tmp_path: Path
) -> None:
    rows = process.keyword_rows(["true", "false"], ["good", "bad"], 160)
    table = pyarrow.table(
        {
            "review": [text for text, _ in rows],
            # Each eighth is wrong: who says 0.99 is too sure.
            "target": [
                (lab == "true") ^ (i % 8 == 0) for i, (_, lab) in enumerate(rows)
            ],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    said = process.run_well(
        "classify",
        *("--model_name_or_path", bert, "--train_file", tmp_path / "train.parquet"),
        *("--output_dir", tmp_path / "run", "--ladder", "false", *TOY),
        *("--validation_split_percentage", 25, "--calibrate"),
        # A random encoder of this size learns by luck, with contrast by another one.
        *("--contrastive_weight", 0),
        cwd=tmp_path / "work",
    )
    assert not list((tmp_path / "work").iterdir())
    found = process.read_json(tmp_path / "run" / "metrics.json")
    assert found["eval"]["accuracy"]["value"] >= 0.75
    predictions = process.read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert {r["label"] for r in predictions} == {"true", "false"}
    done = found["calibration"]
    assert f"  calibrated, temperature {done['temperature']:.3g}: " in said
    for name in ("log_loss", "calibration_error"):
        assert found["eval"][name]["value"] == pytest.approx(done[name]["after"])
        assert re.search(rf"validation +{name} ", said)
    assert done["log_loss"]["after"] < done["log_loss"]["before"]
    classify = pipeline(
        "text-classification", str(tmp_path / "run/model"), device="cpu"
    )
    for row in predictions[:5]:
        scores = {s["label"]: s["score"] for s in classify(row["text"], top_k=None)}
        assert scores == pytest.approx(row["probabilities"], abs=1e-5)
