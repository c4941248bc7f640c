"""The same command again, and `llmft resume`: as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import recipe_process as process
import tiny

from llmft import cli
from llmft.console import short
from llmft.process import run_command
from llmft.runs.record import held
from llmft.tasks import classify

AUTO = ("--resume_from_checkpoint", "auto")
SAVES = (
    *("--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1"),
    *("--eval_strategy", "steps", "--eval_steps", "2"),
    *("--per_device_train_batch_size", "8"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A folder with a model, a csv and a run of four steps that `auto` began."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "bert").symlink_to(tiny_bert)
    rows = process.keyword_rows(["bad", "good"], ["awful", "lovely"], 60)
    lines = [f"{label},{text}\n" for text, label in rows]
    (folder / "a.csv").write_text("label,text\n" + "".join(lines))
    texts = [json.dumps({"text": text}) + "\n" for text in tiny.sentences(200)]
    (folder / "texts.jsonl").write_text("".join(texts))
    return folder


def llmft(*words: object) -> int:
    return run_command(cli._run, [*map(str, words)])


def content(folder: Path) -> dict[Path, tuple[object, int]]:
    return {
        path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def flags_of(*more: object) -> list[object]:
    own = ("--model_name_or_path", "bert", "--train_file", "a.csv", "--do_train")
    return [*own, "--do_eval", *process.QUICK, *SAVES, *more]


def test_the_same_command_and_resume(
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Begun, complete, then for longer: by its record, from another folder."""
    monkeypatch.chdir(work)
    command = ["classify", *flags_of("--max_steps", 4, "--output_dir", "run", *AUTO)]
    assert llmft(*command) == 0
    assert "resume     nothing is in run yet: a new run\n" in capsys.readouterr().out
    before = content(work / "run")
    assert llmft(*command) == 0
    said = capsys.readouterr()
    assert said.out.endswith("already complete (4 of 4 steps): run\n")
    assert llmft(*command, "--learning_rate", 0.5) == 4
    assert "learning_rate was" in capsys.readouterr().err
    # What a complete run was not asked for is said, and does not touch it.
    assert llmft(*command, "--label_smoothing_factor", 0.3) == 0
    said = capsys.readouterr()
    assert "label_smoothing_factor: not as in the run, which is complete" in said.err
    assert content(work / "run") == before
    (work / "run" / "model").rename(work / "gone")
    assert llmft(*command) == 4
    assert "the run is complete, but its model is gone" in capsys.readouterr().err
    (work / "gone").rename(work / "run" / "model")
    assert content(work / "run") == before
    found = classify.run(
        model_name_or_path="bert",
        train_file="a.csv",
        do_train=True,
        do_eval=True,
        num_threads=1,
        precision="fp32",
        max_seq_length=32,
        attn_implementation="eager",
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=8,
        max_steps=4,
        output_dir="run",
        resume_from_checkpoint="auto",
    )
    assert found.status == "complete"
    assert content(work / "run") == before
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert llmft("resume", work / "run", "--max_steps", "6") == 0
    said = capsys.readouterr()
    shown = next(x for x in said.out.splitlines() if x.startswith("command "))
    assert shown.startswith(f"command    cd {work} && ")
    assert shown.endswith(
        " --output_dir run --resume_from_checkpoint auto --max_steps 6"
    )
    assert " --max_steps 4" not in shown
    assert "resume     run/checkpoints/checkpoint-4, in run\n" in said.out
    assert process.read_json(work / "run" / "metrics.json")["run"]["steps"] == 6
    logged = process.read_jsonl(work / "run" / "metrics.jsonl")
    assert [e["step"] for e in logged if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert llmft("resume", work / "run") == 0
    place = short(work / "run")
    assert capsys.readouterr().out == f"already complete (6 steps): {place}\n"
    # A push that failed, or was not asked for, is made up for once.
    pushed: list[Path] = []

    def upload(folder: Path, repo: str, revision: str | None) -> str:
        pushed.append(folder.resolve())
        return f"page of {repo}"

    monkeypatch.setattr("llmft.sources.upload.require_repo", lambda name, _: name)
    monkeypatch.setattr("llmft.sources.upload.upload", upload)
    push = ("--push_to_hub", "true", "--hub_model_id", "own/model")
    for _ in range(2):
        assert llmft("resume", work / "run", *push) == 0
        assert "already complete" in capsys.readouterr().out
    assert pushed == [work / "run" / "model"]
    assert process.read_json(work / "run" / "run.json")["pushed"] == "page of own/model"
    # By the name of a checkpoint, from there.
    at = work / "run" / "checkpoints" / "checkpoint-2"
    assert llmft("resume", at) == 0
    said = capsys.readouterr().out
    assert f"resume     run/checkpoints/{at.name}, in run\n" in said
    assert "\ngoing on   behind step 2 of " in said


def test_what_cannot_be_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert llmft("resume", "none") == 2
    assert "no runs yet" in capsys.readouterr().err
    (tmp_path / "cut" / "folds").mkdir(parents=True)
    assert llmft("resume", "cut") == 2
    said = "stopped in its folds goes on by its own command, with the same --output_dir"
    assert said in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    record = {"recipe": "own", "script": "/gone/own.py", "argv": []}
    for changes, said in (
        ({}, "the script of the run, /gone/own.py, is gone"),
        (
            {"script": "mlm.py", "argv": None},
            "with which arguments the run was started",
        ),
    ):
        (tmp_path / "run" / "run.json").write_text(json.dumps(record | changes))
        assert llmft("resume", "run") == 2
        assert said in capsys.readouterr().err
    with held(tmp_path / "run"):  # as the process that trains there does
        assert llmft("resume", "run") == 5
    seen = capsys.readouterr()
    assert (seen.out, "another process is training there" in seen.err) == ("", True)
    assert llmft("generate", "--prompt", "a", "--output_dir", "x", *AUTO) == 2
    assert "resume_from_checkpoint needs do_train" in capsys.readouterr().err


def test_what_is_not_a_training_from_start_to_end(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prediction, folds, and a stream: done once, and complete from then on."""
    monkeypatch.chdir(work)
    fold = flags_of("--k_folds", 2, "--max_steps", 2, "--eval_strategy", "no", *AUTO)
    stream = ["--model_name_or_path", "bert", "--train_file", "texts.jsonl", *SAVES]
    stream += ["--do_train", "--streaming", "--max_eval_samples", 20, *process.QUICK]
    stream += ["--max_steps", 4, *AUTO]
    assert llmft("classify", *fold, "--output_dir", "folds") == 0
    predicts = ["--model_name_or_path", "folds/model", "--do_predict", *AUTO]
    predicts += ["--test_file", "a.csv", *process.QUICK]
    for recipe, flags, name, said in (
        ("classify", fold, "folds", "already complete (2 of 2 folds, and all rows)"),
        ("classify", predicts, "predicted", "already complete"),
        ("mlm", stream, "stream", "already complete (4 of 4 steps)"),
    ):
        command = (recipe, *flags, "--output_dir", name)
        assert llmft(*command) == 0
        before = content(work / name)
        capsys.readouterr()
        assert llmft(*command) == 0
        assert capsys.readouterr().out.endswith(f"{said}: {name}\n")
        assert llmft(*command, "--seed", "7") == 4
        assert "seed" in capsys.readouterr().err
        assert content(work / name) == before
    record = process.read_json(work / "predicted" / "run.json") | {"status": "running"}
    (work / "predicted" / "run.json").write_text(json.dumps(record))
    assert llmft("resume", "predicted") == 0
    assert "it starts anew; what it did goes to stopped/" in capsys.readouterr().out
    assert (work / "predicted" / "stopped" / "1" / "predictions.jsonl").is_file()
    assert (work / "predicted" / "predictions.jsonl").is_file()
