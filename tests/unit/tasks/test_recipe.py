"""The recipes as functions: the same flags, and a process that is as before."""

import enum
import logging
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import recipe_process as process
import torch
from transformers.utils import logging as transformers_logging

from llmft import cli
from llmft import process as process_module
from llmft.config.command_line import read_command_line
from llmft.config.facts import fields_of
from llmft.config.fields import (
    GenerationDataArguments,
    GenerationModelArguments,
    TrainingArguments,
)
from llmft.console import LIBRARIES
from llmft.errors import ConfigError, DataError
from llmft.process import Terminated, libraries_as_before, recipe_file
from llmft.runs.plan import Plan
from llmft.runs.record import RunRecord
from llmft.tasks import classify, generate, mlm
from llmft.tasks import recipe as recipe_module
from llmft.tasks.plan import plan
from llmft.tasks.recipe import as_flags


class Steps(enum.Enum):
    EACH = "epoch"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"do_train": True, "ladder": False}, "--do_train true --ladder false"),
        (
            {"learning_rate": 2e-5, "seed": np.int64(3)},
            "--learning_rate 2e-05 --seed 3",
        ),
        ({"train_file": Path("a b.csv")}, "--train_file|a b.csv"),
        ({"train_file": "-"}, "--train_file=-"),
        ({"label_delimiter": ""}, "--label_delimiter="),
        ({"prompt": ["a", "b c"]}, "--prompt|a|b c"),
        ({"prompt": ["a", "-- b"]}, "--prompt=a|--prompt=-- b"),
        ({"allow": [], "report_to": ()}, "--report_to none"),
        ({"max_train_samples": None}, "--max_train_samples none"),
        ({"eval_strategy": Steps.EACH}, "--eval_strategy epoch"),
        ({"optim_args": {"a": "é"}}, '--optim_args|{"a": "é"}'),
        ({}, ""),
    ],
)
def test_values_become_the_words_of_a_command_line(given, words):
    wanted = words.split("|") if "|" in words else words.split()
    assert as_flags(given) == wanted


def test_what_looks_like_a_flag_is_a_value():
    classes = (GenerationModelArguments, GenerationDataArguments, TrainingArguments)
    argv = as_flags({"prompt": ["a", "--seed"]})
    defaults = dict.fromkeys(fields_of(*classes))
    _, found, problems = read_command_line(argv, classes, defaults, "")
    assert (found, problems) == ({"prompt": ["a", "--seed"]}, [])


def state():
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    ours = ("mlm", "classify", "generate")
    return {
        "loggers": [(x.level, x.propagate, [*x.handlers]) for x in loggers],
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "child": signal.getsignal(signal.SIGCHLD),
        "torch threads": torch.get_num_threads(),
        "threads": {t.name for t in threading.enumerate() if not t.daemon},
        "filters": [*warnings.filters],
        "hooks": (sys.excepthook, sys.unraisablehook, sys.stdout, sys.stderr),
        "bars": transformers_logging.is_progress_bar_enabled(),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
        "torch random": torch.get_rng_state().tolist(),
        "modules": [sys.modules.get(name) for name in ours],
    }


QUICK = {
    "num_threads": 1,
    "precision": "fp32",
    "attn_implementation": "eager",
    "max_seq_length": 32,
    "max_steps": 2,
    "report_to": [],
}


def test_runs_follow_each_other_in_one_process(
    tmp_path, tiny_bert, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows = process.keyword_rows(["bad", "good"], ["sad", "fun"], 60)
    Path("train.csv").write_text("text,label\n" + "\n".join(map(",".join, rows)))
    common = {**QUICK, "model_name_or_path": tiny_bert, "train_file": Path("train.csv")}
    torch.set_num_threads(2)
    try:
        before = state()
        run = classify.run(**common, ladder=False, num_mistakes=0)
        assert isinstance(run, RunRecord)
        assert (run.status, run.recipe) == ("complete", "classify")
        assert 0 <= run.metrics["eval"]["accuracy"]["value"] <= 1
        assert run.given["ladder"] is False
        assert "record" not in repr(run)
        found = []
        in_thread = threading.Thread(target=lambda: found.append(mlm.run(**common)))
        in_thread.start()
        in_thread.join()
        assert found[0].recipe == "mlm"
        with pytest.raises(ConfigError, match="did you mean learning_rate"):
            classify.run(**common, learning_rat=3)
        with pytest.raises(DataError, match=r"none\.csv"):
            mlm.run(**{**common, "train_file": "none.csv"})
        planned = mlm.run(**common, dry_run=True)
        assert isinstance(planned, Plan)
        assert (planned.steps, planned.folder) == (2, None)
        assert len([*Path("outputs").glob("*/*")]) == 2
        after = state()
        assert [name for name in before if before[name] != after[name]] == []
    finally:
        torch.set_num_threads(1)
    capsys.readouterr()


def test_prompts_are_continued(tmp_path, tiny_gpt2, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = {
        n: x for n, x in QUICK.items() if n not in ("max_seq_length", "max_steps")
    }
    found = generate.run(
        **common, model_name_or_path=tiny_gpt2, prompt=["a film"], max_new_tokens=3
    )
    assert isinstance(found, Plan)
    assert "a film" in capsys.readouterr().out
    assert not [*tmp_path.glob("outputs")]


def test_time_and_memory_count_from_the_call(monkeypatch):
    """Not from the start of a notebook: its time would be over before it began."""
    forgotten, began = [], []

    def main(argv):
        began.append(process_module.began.get())
        assert forgotten
        return SimpleNamespace(folder=None)

    recipe = SimpleNamespace(main=main)
    monkeypatch.setattr(recipe_module, "load_script", lambda path: recipe)
    monkeypatch.setattr(
        recipe_module.detect, "forget_peak", lambda: forgotten.append(1)
    )
    classify.run(time_limit="10m")
    assert abs(began[0] - time.time()) < 60
    assert process_module.began.get() is None


def test_a_signal_ends_the_program(monkeypatch):
    def stop(argv):
        raise Terminated

    class Script:
        main = staticmethod(stop)

    monkeypatch.setattr("llmft.tasks.recipe.load_script", lambda path: Script)
    with pytest.raises(SystemExit) as stopped:
        mlm.run()
    assert stopped.value.code == 143


def test_help_is_not_an_argument():
    with pytest.raises(ConfigError, match="llmft mlm --help"):
        mlm.run(help=True)


def test_recipes_are_found_by_name():
    assert recipe_file("mlm") == process.RECIPES / "mlm.py"
    with pytest.raises(ConfigError, match="did you mean classify"):
        recipe_file("clasify")
    with pytest.raises(ConfigError, match="no recipe; name one"):
        plan("nothing")


@pytest.mark.parametrize("name", ["mlm", "classify", "generate"])
def test_the_command_runs_the_recipe(name, capsys):
    for before in ([], ["--debug"]):
        cli._run([*before, name, "--help"])
        assert "--num_train_epochs" in capsys.readouterr().out
    with libraries_as_before(), pytest.raises(ConfigError, match="unknown argument"):
        cli._run([name, "--no_such_flag", "1"])
