"""The wheel outside of a checkout: it carries the recipes, and runs them."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import recipe_process as process
import tiny

from llmft import cli
from llmft.process import libraries_as_before

ROOT = process.RECIPES.parent
BUILD = """
import sys
from hatchling.builders.wheel import WheelBuilder
print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=["standard"]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Folder of an unpacked wheel of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [sys.executable, "-c", BUILD, ROOT, folder], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(made.stdout.strip()) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_all_recipes(unpacked):
    carried = {p.name: p.read_bytes() for p in (unpacked / "llmft/_recipes").iterdir()}
    ours = [*process.RECIPES.glob("*.py"), *process.RECIPES.glob("*.json")]
    assert carried == {path.name: path.read_bytes() for path in ours}
    assert not (unpacked / "recipes").exists()


def llmft(unpacked, cwd, *argv, start=subprocess.run):
    """Run ``llmft`` of the wheel, in a folder where there is no other."""
    env = process.user_env(cwd.with_name("home"), PYTHONPATH=str(unpacked))
    command = [sys.executable, "-m", "llmft", *map(str, argv)]
    options = {"cwd": cwd, "env": env, "encoding": "utf-8"}
    if start is subprocess.run:
        options |= {"capture_output": True, "stdin": subprocess.DEVNULL}
    return start(command, **options)


def test_a_recipe_trains_and_names_commands_that_are_there(
    unpacked, tmp_path, tiny_bert
):
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    rows = process.keyword_rows(["bad", "good"], ["sad", "fun"], 40)
    (cwd / "train.csv").write_text("text,label\n" + "\n".join(map(",".join, rows)))
    done = llmft(
        *(unpacked, cwd, "classify", "--train_file", "train.csv", "--ladder", "false"),
        *("--model_name_or_path", tiny_bert, "--max_steps", 2, "--output_dir", "run"),
        *(*process.QUICK, "--report_to", "none"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((cwd / "run" / "run.json").read_text())
    assert " classify --train_file train.csv " in record["command"]
    assert record["versions"]["llmft"]
    follows = done.stdout.strip().splitlines()[-1]
    name, shown = follows.split(maxsplit=1)
    assert name == "next"
    assert " classify --model_name_or_path run/model " in shown
    assert "recipes" not in shown
    page = cwd / "run" / "report.html"
    page.unlink()  # the run has written it
    done = llmft(unpacked, cwd, "report", "run")
    assert done.returncode == 0, done.stderr
    assert "Classification: run" in page.read_text()


def test_a_killed_prediction_goes_on_to_the_same_bytes(unpacked, tmp_path, monkeypatch):
    model = tiny.save(tmp_path / "model", "bert", "classification")
    cwd = tmp_path / "work"
    cwd.mkdir()
    texts = tiny.sentences(7000)
    Path(cwd / "in.txt").write_text("\n".join(texts))
    flags = ("--precision", "fp32", "--attn_implementation", "eager")
    command = ("predict", model, "in.txt", *flags, "--num_threads", 1, "--output_file")
    killed = llmft(unpacked, cwd, *command, "out.jsonl", start=subprocess.Popen)
    process.wait_until((cwd / "out.jsonl.part.state").exists, "the first window")
    os.kill(killed.pid, 9)
    assert killed.wait() == -9
    assert not (cwd / "out.jsonl").exists()
    again = llmft(unpacked, cwd, *command, "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "which are there already" in again.stderr
    monkeypatch.chdir(cwd)
    with libraries_as_before():
        cli._run([*map(str, command), "whole.jsonl"])
    assert (cwd / "out.jsonl").read_bytes() == (cwd / "whole.jsonl").read_bytes()
    rows = process.read_jsonl(cwd / "out.jsonl")
    assert [row["text"] for row in rows] == texts
    assert not [*cwd.glob("*.part*")]
