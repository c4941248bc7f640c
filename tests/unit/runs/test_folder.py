"""The run folder: made once, always telling how the run ended, free of secrets."""

import importlib.metadata
import itertools
import json
import logging
import math
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import tiny
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import pipeline

from llmft import __version__
from llmft.config.choice import Choice
from llmft.config.fields import (
    ClassificationDataArguments,
    ModelArguments,
    TrainingArguments,
)
from llmft.config.fold import Fold
from llmft.config.parse import Arguments
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.errors import DataError, EnvironmentFault
from llmft.metrics import classes, measures
from llmft.process import Terminated, versions
from llmft.runs.card import model_card
from llmft.train import resume
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer

CHOICES = [Choice("threads", "1", "for the test")]


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def arguments(output_dir, **changes):
    training = TrainingArguments(
        output_dir=None if output_dir is None else str(output_dir),
        **{"report_to": "none", "disable_tqdm": True, "do_train": True} | changes,
    )
    data = ClassificationDataArguments(text_column_name="a|b", label_column_name="c")
    origins = dict.fromkeys(["text_column_name", *changes], "command line")
    origins["eval_strategy"] = "follows: do_eval is off"
    command = ["--seed", "1", "--resume-from-checkpoint=old", "--do_train"]
    return Arguments(ModelArguments("tiny"), data, training, origins, command)


def strict(path):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_the_record_of_a_run(tmp_path):
    args = arguments(tmp_path / "new" / "run", seed=7)
    with tiny.started_run(args, choices=CHOICES, data={"rows": 3}) as run:
        assert run.folder == tmp_path / "new" / "run"
        assert strict(run.folder / "run.json")["status"] == "running"
        assert run.record["arguments"]["output_dir"]["value"] == str(run.folder)
        logging.getLogger("transformers.trainer").info("said by a library")
        logging.getLogger("llmft").debug("said by llmft")
    record = strict(run.folder / "run.json")
    assert record["status"] == "complete"
    assert record["seconds"] >= 0
    assert "error" not in record
    assert record["recipe"] == "classify"
    assert record["data"] == {"rows": 3}
    assert record["choices"] == {"threads": {"value": "1", "reason": "for the test"}}
    assert {"python", "llmft", "transformers", "torch"} <= record["versions"].keys()
    assert record["cpu"]["name"]
    assert record["cpu"]["cores"] >= 1
    given = record["arguments"]
    assert given["seed"] == {"value": 7, "from": "command line"}
    assert given["learning_rate"] == {"value": 5e-5, "from": "default"}
    assert given["eval_strategy"]["value"] == "epoch"
    assert given["model_name_or_path"]["value"] == "tiny"
    log = (run.folder / "logs" / "debug.log").read_text()
    assert "INFO transformers.trainer: said by a library" in log
    assert "DEBUG llmft: said by llmft" in log
    assert sorted(os.listdir(run.folder)) == ["logs", "run.json"]


MEMORY = "EnvironmentFault: out of memory: the process holds "


@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [
        (DataError("no rows", path="a.csv"), "failed", "DataError a.csv: no rows"),
        (RuntimeError("x"), "failed", "RuntimeError('x')"),
        (MemoryError(), "failed", MEMORY),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (Terminated(), "interrupted", "SIGTERM"),
        (SystemExit(3), "failed", "SystemExit(3)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_run_ended_is_recorded(tmp_path, raised, status, error, capsys):
    folder = tmp_path / "run"
    with (
        pytest.raises(EnvironmentFault if error is MEMORY else type(raised)) as caught,
        tiny.started_run(arguments(folder), "mlm", choices=CHOICES),
    ):
        raise raised
    assert raised in (caught.value, caught.value.__cause__)
    record = strict(folder / "run.json")
    assert record["status"] == status
    assert record["error"].startswith(error)
    assert f"({status})" in capsys.readouterr().out
    log = (folder / "logs" / "debug.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert type(raised).__name__ in log


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        (None, "no checkpoint was due yet: start anew; "),
        (Fold(3), "run (the folds stay; all rows are learnt anew)"),
    ],
)
def test_what_is_told_after_a_stop_without_a_checkpoint(tmp_path, fold, said, capsys):
    args = replace(arguments(tmp_path / "run"), fold=fold)
    with pytest.raises(KeyboardInterrupt), tiny.started_run(args, "mlm", choices=[]):
        raise KeyboardInterrupt
    out = capsys.readouterr().out
    assert said in out
    assert ("go on " in out) == (fold is not None)


def test_a_run_leaves_the_loggers_as_they_were(tmp_path):
    names = ["llmft", "transformers", "datasets"]
    before = [
        (logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in names
    ]
    for name in ("one", "two"):
        with tiny.started_run(arguments(tmp_path / name), "mlm", choices=CHOICES):
            logging.getLogger("transformers").info("in run %s", name)
    assert before == [
        (logging.getLogger(n).handlers, logging.getLogger(n).level) for n in names
    ]
    log = (tmp_path / "one" / "logs" / "debug.log").read_text()
    assert "in run one" in log
    assert "in run two" not in log


def test_without_output_dir_each_run_has_its_own_folder():
    for _ in range(2):
        with tiny.started_run(arguments(None), "mlm", choices=CHOICES) as run:
            assert run.folder.parent == Path("outputs/mlm")
    assert len(os.listdir("outputs/mlm")) == 2


def refused(output_dir, **changes):
    with (
        pytest.raises(EnvironmentFault) as caught,
        tiny.started_run(arguments(output_dir, **changes), "mlm", choices=CHOICES),
    ):
        raise AssertionError("the block must not run")
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path, monkeypatch):
    full, file = tmp_path / "full", tmp_path / "file"
    (full / "checkpoints").mkdir(parents=True)
    (full / "mine.txt").write_text("keep")
    file.write_text("keep")
    assert refused(full) == (
        f"EnvironmentFault {full}: output_dir is not empty: it holds checkpoints,"
        " mine.txt; name a new folder, or resume with --resume_from_checkpoint"
        " FOLDER/checkpoints/checkpoint-N, or auto"
    )
    elsewhere = tmp_path / "full2" / "checkpoints" / "checkpoint-1"
    assert "not empty" in refused(full, resume_from_checkpoint=str(elsewhere))
    assert refused(file) == f"EnvironmentFault {file}: output_dir is a file"
    assert refused(file / "below") == (
        f"EnvironmentFault {file / 'below'}: cannot write there: Not a directory;"
        " choose --output_dir"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert refused(tmp_path / "a" / "b") == (
        f"EnvironmentFault {tmp_path}: cannot write there; choose --output_dir"
    )
    assert (full / "mine.txt").read_text() == file.read_text() == "keep"
    assert sorted(os.listdir(full)) == ["checkpoints", "mine.txt"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_the_folder_of_a_cross_validation_is_no_other_runs(tmp_path, goes_on):
    (tmp_path / "run" / "folds").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"status": "interrupted"}')
    args = arguments(tmp_path / "run")
    args.training.goes_on = goes_on
    with (
        pytest.raises(EnvironmentFault, match="output_dir holds a cross-validation"),
        tiny.started_run(args, "mlm", choices=CHOICES),
    ):
        raise AssertionError("the block must not run")
    args.training.of_folds = True
    (tmp_path / "run" / "mine.txt").touch()
    with tiny.started_run(args, "mlm", choices=CHOICES) as run:
        assert run.folder == tmp_path / "run"


def test_a_folder_above_is_not_the_run_that_goes_on(tmp_path, monkeypatch):
    """Its model would be replaced."""
    (tmp_path / "above" / "data").mkdir(parents=True)
    (tmp_path / "above" / "model").mkdir()
    monkeypatch.chdir(tmp_path / "above" / "data")
    for folder in (tmp_path / "above", ".."):
        assert "output_dir is not empty" in refused(folder)
    checkpoint = tmp_path / "above" / "run" / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    said = refused(tmp_path / "above", resume_from_checkpoint=str(checkpoint))
    assert "output_dir is not empty" in said


def test_an_empty_folder_or_the_one_being_resumed_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    checkpoint = tmp_path / "old" / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    for name, changes in (
        ("empty", {}),
        ("old", {"resume_from_checkpoint": str(checkpoint)}),
    ):
        args = arguments(tmp_path / name, **changes)
        with tiny.started_run(args, "mlm", choices=CHOICES) as run:
            assert run.folder == tmp_path / name
    assert checkpoint.is_dir()


def test_a_resumed_run_keeps_what_it_said_before(tmp_path):
    """Also of a leg that was killed: when it last logged is known."""
    folder = tmp_path / "run"
    changes = {"resume_from_checkpoint": str(folder / "checkpoints" / "checkpoint-5")}
    with tiny.started_run(arguments(folder, seed=3), choices=CHOICES):
        pass
    first = strict(folder / "run.json")
    assert first.pop("legs") == []
    with tiny.started_run(arguments(folder, seed=4, **changes)) as run:
        assert run.record["legs"] == [first]
    killed = strict(folder / "run.json")
    del killed["seconds"]
    killed["status"] = "running"
    (folder / "run.json").write_text(json.dumps(killed))
    (folder / "metrics.jsonl").touch()
    began = datetime.strptime(killed["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    os.utime(folder / "metrics.jsonl", (began + 77.0,) * 2)
    with tiny.started_run(arguments(folder, **changes)):
        pass
    one, two = strict(folder / "run.json")["legs"]
    assert one == first
    assert two == {n: x for n, x in killed.items() if n != "legs"} | {"seconds": 77.0}
    seeds = [leg["arguments"]["seed"]["value"] for leg in (one, two)]
    assert seeds == [3, 4]


def test_no_secret_is_written(tmp_path, monkeypatch):
    secret = "hf_" + "x" * 12
    monkeypatch.setenv("HF_TOKEN", secret)
    args = arguments(tmp_path / "run")
    with tiny.started_run(args, "mlm", choices=CHOICES) as run:
        card = model_card("Title", "fill-mask", {}, run.record)
    record = strict(run.folder / "run.json")
    assert "python recipes/mlm.py --seed 1 " in record["command"]
    written = [p.read_text() for p in run.folder.rglob("*") if p.is_file()]
    assert len(written) == 2
    assert not [text for text in [*written, card] if secret in text]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, wordpiece):
    """The folder of a finished classification."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMFT_HOME", str(home / "cache"))
        return classification(home / "run", wordpiece)


def classification(folder, wordpiece):
    args = arguments(
        folder,
        max_steps=2,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        early_stopping_patience=None,
    )
    encoded = wordpiece(tiny.sentences(8))
    data = Dataset.from_dict({**encoded, "label": [0, 1] * 4})
    model = tiny.model("bert", "classification", len(wordpiece))
    model.config.id2label = {0: "good", 1: "bad"}
    with tiny.started_run(args, "classify", choices=CHOICES) as run:
        trainer = LlmftTrainer(
            objective=Classification(),
            model=model,
            args=args.training,
            data_collator=DataCollatorForClassification(wordpiece),
            train_dataset=data,
            eval_dataset=data,
            processing_class=wordpiece,
            compute_metrics=classes.Classification(),
            callbacks=run.callbacks,
        )
        trainer.train()
        run.held_out = "test"
        run.results["eval"] = trainer.evaluate()
        run.results["before"] = {
            **{"before_loss": 800.0, "before_loss_stderr": 2.0, "before_n": 12},
            **{"before_perplexity": math.inf, "before_perplexity_stderr": math.nan},
        }
        run.write_predictions([{"text": "one\u2028two"}, {"text": "three"}])
        run.save(trainer)
        run.finish(trainer, "Text classifier")
    return folder


def test_metrics_have_value_n_and_error(finished, wordpiece):
    found = strict(finished / "metrics.json")
    assert found["before"] == {
        "loss": {"value": 800.0, "n": 12, "stderr": 2.0, "split": "test"},
        "perplexity": {"value": None, "n": 12, "stderr": None, "split": "test"},
    }
    assert set(found["eval"]) == set(measures.CLASSES)
    for entry in found["eval"].values():
        assert set(entry) == {"value", "n", "stderr", "split"}
        assert (entry["n"], entry["split"]) == (8, "validation")
    speed = found["run"]
    assert (speed["steps"], speed["epochs"]) == (2, 2.0)
    assert speed["peak_rss_bytes"] > 50e6
    assert 0 < speed["train_seconds"] <= speed["wall_seconds"] + 0.1
    assert speed["legs"] == 1
    per_text = speed["train_tokens_per_second"] / speed["train_samples_per_second"]
    lengths = [len(ids) for ids in wordpiece(tiny.sentences(8))["input_ids"]]
    assert per_text == pytest.approx(sum(lengths) / 8, rel=0.01)
    lines = (finished / "predictions.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(x)["text"] for x in lines if x] == ["one\u2028two", "three"]
    assert {json.loads(x)["split"] for x in lines if x} == {"test"}


def test_the_model_loads_and_holds_no_pickle(finished):
    folder = finished / "model"
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    classify = pipeline("text-classification", model=str(folder))
    answer = classify("the film was good")[0]
    assert answer["label"] in ("good", "bad")
    assert 0.5 <= answer["score"] <= 1


def test_the_model_card(finished):
    card = (finished / "model" / "README.md").read_text("utf-8")
    data = ModelCard(card).data
    assert (data.library_name, data.tags) == ("transformers", ["llmft", "cpu"])
    assert data.pipeline_tag == "text-classification"
    assert (data.license, data.base_model) == (None, None)
    assert "\n# Text classifier\n" in card
    assert "| max_steps | 2 |" in card
    assert "num_train_epochs" not in card
    assert "| test, before training | loss | 800 | 796.1 to 803.9 | 12 |" in card
    assert "| test, before training | perplexity | not finite | - | 12 |" in card


def test_steps_are_those_of_trainer(tmp_path, wordpiece):
    settings = itertools.product([1, 4, 9, 16, 17], [1, 3], [0.3, 1, 2.5])
    for examples, accumulation, epochs in settings:
        args = arguments(
            tmp_path / "run",
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
        ).training
        args.per_device_train_batch_size = 4
        data = Dataset.from_dict({"input_ids": [[1]] * examples})
        trainer = LlmftTrainer(
            objective=Classification(),
            model=tiny.model("bert", "classification", 10),
            args=args,
            train_dataset=data,
            eval_dataset=data,
            data_collator=DataCollatorForClassification(wordpiece),
        )
        for most in (-1, 7):
            args.max_steps = most
            _, per_epoch, *_, steps = trainer.set_initial_training_values(
                args, trainer.get_train_dataloader()
            )
            assert resume.training_steps(args, data) == steps
            assert resume.epoch_steps(args, data) == per_epoch


def test_versions_of_a_checkout_without_metadata(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = versions()
    assert found["llmft"] == __version__
    assert found["torch"] == "unknown"
