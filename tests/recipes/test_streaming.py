"""A run on a stream: as a user starts it, resumed, and stopped by a bad row."""

import json
import shutil

import pytest
import tiny
from recipe_process import QUICK, only_run, problems, read_json, run, run_well

STREAM = ("--do_train", "--streaming", "--max_eval_samples", "20", *QUICK)


@pytest.fixture
def texts(tmp_path):
    """A jsonl of 600 texts."""
    rows = [json.dumps({"text": text}) + "\n" for text in tiny.sentences(600)]
    (tmp_path / "texts.jsonl").write_text("".join(rows))
    return tmp_path / "texts.jsonl"


@pytest.mark.parametrize("recipe", ["mlm", "generate"])
def test_a_stream_trains_and_goes_on(recipe, texts, tiny_bert, tiny_gpt2, tmp_path):
    model = tiny_bert if recipe == "mlm" else tiny_gpt2
    flags = ["--model_name_or_path", model, "--train_file", texts, *STREAM]
    flags += ["--save_strategy", "steps", "--eval_strategy", "steps"]
    flags += ["--save_steps", 2, "--eval_steps", 2, "--per_device_train_batch_size", 4]
    said = run_well(recipe, *flags, "--max_steps", 4, cwd=tmp_path / "w")
    assert "read and tokenized on the way" in said
    assert "the first 20 rows, which training leaves out" in said
    assert "4 steps of 4 examples, a stream" in said
    whole = only_run(tmp_path / "w", recipe)
    found = read_json(whole / "metrics.json")
    assert found["run"]["steps"] == 4
    assert read_json(whole / "run.json")["data"]["train"]["rows"] is None
    # The same from a checkpoint on: the rows before it are passed over.
    shutil.copytree(whole, tmp_path / "w" / "cut")
    point = tmp_path / "w" / "cut" / "checkpoints" / "checkpoint-2"
    shutil.rmtree(point.with_name("checkpoint-4"))
    for name in ("model", "metrics.json"):
        path = tmp_path / "w" / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_well(
        *(recipe, *flags, "--max_steps", 4, "--resume_from_checkpoint", point),
        *("--output_dir", "cut"),
        cwd=tmp_path / "w",
    )
    other = tmp_path / "w" / "cut"
    weights = [f / "model" / "model.safetensors" for f in (whole, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_bad_row_stops_the_run_and_is_named(texts, tiny_bert, tmp_path):
    with open(texts, "a") as stream:
        stream.write('{"txt": "late"}\n')
    flags = ["--model_name_or_path", tiny_bert, "--train_file", texts, *STREAM]
    flags += ["--max_steps", 500, "--per_device_train_batch_size", 8]
    done = run("mlm", *flags, cwd=tmp_path / "w")
    assert done.returncode == 3
    (line,) = problems(done.stderr)
    assert f"SchemaError {texts}:601: no 'text' in this row; it has 'txt'" in line
    record = read_json(only_run(tmp_path / "w", "mlm") / "run.json")
    assert record["status"] == "failed"
