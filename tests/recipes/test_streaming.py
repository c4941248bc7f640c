"""A run on a stream: as a user starts it, resumed, and stopped by a bad row."""

import json
import shutil

import pyarrow as pa
import pytest
import tiny
from hub_server import HubServer
from pyarrow import parquet
from recipe_process import QUICK, only_run, problems, read_json, run, run_well, user_env

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


def test_a_stream_of_the_hub_is_that_of_a_file(texts, tiny_bert, tmp_path):
    (tmp_path / "films").mkdir()
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    for split, part in (("train", rows), ("validation", rows[:30])):
        table = pa.Table.from_pylist(part)
        parquet.write_table(table, tmp_path / "films" / f"{split}.parquet")
    flags = ["--model_name_or_path", tiny_bert, "--do_train", "--streaming", *QUICK]
    flags += ["--max_steps", 4, "--max_eval_samples", 7]
    own = [*flags, "--train_file", texts, "--validation_file", texts]
    run_well("mlm", *own, "--allow", "leakage", cwd=tmp_path / "file")
    with HubServer({"datasets/owner/films": tmp_path / "films"}) as server:
        settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": server.url}
        env = user_env(tmp_path / "home", **settings)
        given = [*flags, "--dataset_name", "films"]
        said = run_well("mlm", *given, cwd=tmp_path / "hub", env=env)
    assert "films[train], read and tokenized on the way" in said
    assert "7 rows of films[validation] (the first 7 rows of more; --max_eval_s" in said
    kept = [p for p in (tmp_path / "home").rglob("*") if p.suffix in (".arrow", "")]
    assert not [p for p in kept if p.is_file() and p.stat().st_size > 5000]
    runs = [only_run(tmp_path / folder, "mlm") for folder in ("file", "hub")]
    weights = [run / "model" / "model.safetensors" for run in runs]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    found = [read_json(run / "run.json")["data"]["train"] for run in runs]
    assert found[0]["sha256"] != found[1]["sha256"]


def test_a_bad_row_stops_the_run_and_is_named(texts, tiny_bert, tmp_path):
    with open(texts, "a") as stream:
        # Behind what the trial reads, which finds earlier ones before there is a run.
        stream.write('{"text": "the film was very good and funny"}\n' * 2000)
        stream.write('{"txt": "late"}\n')
    flags = ["--model_name_or_path", tiny_bert, "--train_file", texts, *STREAM]
    flags += ["--max_steps", 500, "--per_device_train_batch_size", 8]
    done = run("mlm", *flags, cwd=tmp_path / "w")
    assert done.returncode == 3
    (line,) = problems(done.stderr)
    assert f"SchemaError {texts}:2601: no 'text' in this row; it has 'txt'" in line
    record = read_json(only_run(tmp_path / "w", "mlm") / "run.json")
    assert record["status"] == "failed"
