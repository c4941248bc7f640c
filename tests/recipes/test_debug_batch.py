"""A row of a file for which the model has no number: named, shown, and passed over."""

import csv
import re

import pytest
import recipe_process as process
import tiny
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llmft import cli
from llmft.process import run_command

ROW = 37
FLAGS = [
    *("--train_file", "own.csv", "--validation_split_percentage", "10"),
    *("--per_device_train_batch_size", "8", "--num_train_epochs", "2"),
    *("--fast_path", "off", "--report_to", "none", "--output_dir", "run"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a model that has NaN for one token, and a file that has it once."""
    folder = tmp_path_factory.mktemp("work")
    model = tiny.save(folder / "model", "bert", "classification", num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(model)
    (token,) = tokenizer("#", add_special_tokens=False)["input_ids"]
    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][token] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    rows = process.keyword_rows(["bad", "good"], ["dull", "lovely"], 100)
    rows[ROW - 1] = (f"a # {rows[ROW - 1][0]}", rows[ROW - 1][1])
    with open(folder / "own.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return folder


def test_a_row_that_is_not_finite_is_named_and_shown(
    work, tmp_path, capsys, monkeypatch
):
    flags = [*FLAGS, "--model_name_or_path", str(work / "model"), *process.QUICK]
    flags[1] = str(work / "own.csv")
    done = process.run("classify", *flags, cwd=tmp_path)
    assert done.returncode == 6
    (line,) = process.problems(done.stderr)
    place = f"{work / 'own.csv'}:{ROW + 1}"  # below the header
    assert line.startswith("llmft: NonFiniteError: the loss is nan in step ")
    assert f", {place} alone gives it; the first module to give one is bert.emb" in line
    assert line.endswith("; `llmft inspect run` shows the batch")
    assert "kept       the batch, and the weights before it (" in done.stdout
    monkeypatch.chdir(tmp_path)
    assert run_command(cli._run, ["inspect", "run"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"  {re.escape(place)} +nan +yes +a # ", said)
    assert "(Embedding)\n" in said
    assert "its weights of these are not finite: '#' (" in said
    assert process.read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_it_can_be_passed_over(work, tmp_path):
    flags = [*FLAGS, "--model_name_or_path", str(work / "model"), *process.QUICK]
    flags[1] = str(work / "own.csv")
    said = process.run_well("classify", *flags, "--on_nonfinite", "skip", cwd=tmp_path)
    place = f"{work / 'own.csv'}:{ROW + 1}"
    skipped = "skipped    2 of 24 steps, whose loss or gradient was not finite:"
    assert f"{skipped} {place} (2)\n" in said
    metrics = process.read_json(tmp_path / "run" / "metrics.json")
    assert metrics["run"]["skipped_steps"] == 2
    assert metrics["eval"]["accuracy"]["value"] is not None
    record = process.read_json(tmp_path / "run" / "run.json")
    assert (record["skipped_steps"], record["skipped_rows"]) == (2, {place: 2})
    assert "steps skipped, not finite" in (tmp_path / "run" / "report.html").read_text()
