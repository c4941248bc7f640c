"""Faults of the world around a training recipe: signals, a full disk, a closed pipe."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import recipe_process as process
import tiny

from llmft.train import checkpoint, resume

NO_CHECKPOINTS = ("--save_strategy", "no", "--eval_strategy", "no")
ENDLESS = ("--num_train_epochs", 100_000, "--logging_steps", 1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and labelled texts, all of them with an emoji."""
    root = tmp_path_factory.mktemp("given")
    tiny.save(root / "bert", "bert", "masked-lm")
    rows = process.keyword_rows(["gut", "schlecht"], ["good", "bad"], 40)
    lines = [f"{text} 🎬 süß,{label}" for text, label in rows]
    (root / "train.csv").write_text("\n".join(["text,label", *lines]), "utf-8")
    return root


def classify(given: Path, *flags: object) -> tuple[object, ...]:
    return (
        "classify",
        *process.QUICK,
        *("--model_name_or_path", given / "bert", "--num_train_epochs", 2),
        *("--train_file", given / "train.csv", "--per_device_train_batch_size", 4),
        *flags,
    )


def wait_for_training(run: Path) -> None:
    """Wait until there is a checkpoint and training goes on."""

    def trains() -> bool:
        return any(run.glob("checkpoints/checkpoint-*"))

    process.wait_until(trains, "a checkpoint")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "llmft: terminated"),
        (signal.SIGINT, 130, "llmft: interrupted"),
    ],
)
def test_a_signal_in_training(
    number: int, code: int, said: str, given: Path, tmp_path: Path
) -> None:
    cwd, run = tmp_path / "work", tmp_path / "work" / "run"
    flags = classify(given, *ENDLESS, "--output_dir", "run")
    with process.start(*flags, cwd=cwd) as running:
        wait_for_training(run)
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == code
    assert process.problems(stderr.decode()) == [said]
    assert b"Traceback" not in stderr
    last, hint = stdout.decode().splitlines()[-2:]
    assert last == "run        run (interrupted)"
    words = shlex.split(hint)
    tool = Path(shutil.which(words[2]) or cwd / words[2])
    assert words[:2] == ["go", "on"]
    assert os.path.abspath(tool) == str(Path(sys.executable).with_name("llmft"))
    assert words[3:] == ["resume", "run"]
    newest = resume.newest(run / "checkpoints")[0]
    assert newest is not None
    assert resume.fault(newest) is None
    record = process.read_json(run / "run.json")
    assert record["status"] == "interrupted"
    assert process.losses(run)
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "llmft: terminated"),
        (signal.SIGINT, 130, "llmft: interrupted"),
    ],
)
def test_a_signal_to_the_workers_too(
    number: int, code: int, said: str, given: Path, tmp_path: Path
) -> None:
    """As Ctrl-C in a terminal, where data loader workers are started all the time."""
    cwd, run = tmp_path / "work", tmp_path / "work" / "run"
    workers = ("--dataloader_num_workers", 2, "--output_dir", "run")
    with process.start(*classify(given, *ENDLESS, *workers), cwd=cwd) as running:
        wait_for_training(run)
        os.killpg(running.pid, number)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == code
    assert process.problems(stderr.decode()) == [said]
    assert b"Traceback" not in stderr
    assert process.read_json(run / "run.json")["status"] == "interrupted"


@pytest.mark.parametrize("seen", [".saving/checkpoint-*/*", ".*staging*"])
def test_kill_while_saving_and_resume(given: Path, tmp_path: Path, seen: str) -> None:
    """Each step is saved, so that the kill comes in the midst of it."""
    cwd, run = tmp_path / "work", tmp_path / "work" / "run"
    saving = ("--save_strategy", "steps", "--save_steps", 1, "--eval_strategy", "no")
    flags = classify(given, *ENDLESS, *saving, "--output_dir", "run")
    with process.start(*flags, cwd=cwd) as running:
        wait_for_training(run)
        process.wait_until(lambda: any((run / "checkpoints").glob(seen)), "a save")
        running.kill()
        running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert process.read_json(run / "run.json")["status"] == "running"
    assert process.read_jsonl(run / "metrics.jsonl")
    assert not (run / "model").exists()
    found = checkpoint.checkpoints(run / "checkpoints")
    assert found
    assert [resume.fault(folder) for folder in found] == [None] * len(found)
    steps = int(found[-1].name.split("-")[1])
    said = process.run_well(
        *flags, "--max_steps", steps + 2, "--resume_from_checkpoint", cwd=cwd
    )
    assert f"resume     run/checkpoints/checkpoint-{steps}, in run\n" in said
    assert process.read_json(run / "run.json")["status"] == "complete"
    assert process.read_json(run / "metrics.json")["run"]["steps"] == steps + 2
    assert not list((run / "checkpoints").glob(".*"))
    assert (run / "model" / "model.safetensors").is_file()


def test_kill_in_the_third_fold_and_start_again(given: Path, tmp_path: Path) -> None:
    """The same numbers as of one that was not killed, from two folds that are kept.

    After Ctrl-C in the same fold, too, by the command that is told then.
    """
    cwd = tmp_path / "work"
    flags = classify(given, "--k_folds", 4, "--learning_rate", 1e-3)
    killed = (*flags, "--output_dir", "killed")
    kept = cwd / "killed" / "folds"
    with process.start(*killed, cwd=cwd) as running:
        third = kept / "3.txt"
        process.wait_until(third.is_file, "the third fold")
        running.kill()
        running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert not (kept / "3.json").exists()
    began = process.read_json(cwd / "killed" / "run.json")["started"]
    first = (kept / "1.json").stat().st_mtime_ns
    third.unlink()
    with process.start(*killed, cwd=cwd) as running:
        process.wait_until(third.is_file, "the third fold again")
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert process.problems(stderr.decode()) == ["llmft: interrupted"]
    ended, hint = stdout.decode().splitlines()[-2:]
    assert ended == "run        killed (interrupted)"
    assert hint.endswith("llmft resume killed")
    record = process.read_json(cwd / "killed" / "run.json")
    assert (record["status"], record["error"]) == ("interrupted", "Ctrl-C")
    assert record["started"] == began
    done = subprocess.run(
        [sys.executable, "-m", "llmft", "resume", "killed"],
        cwd=cwd,
        env=process.user_env(cwd.with_name("work-home")),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not process.problems(done.stderr)
    assert (kept / "1.json").stat().st_mtime_ns == first
    assert process.read_json(cwd / "killed" / "run.json")["started"] == began
    process.run_well(*flags, "--output_dir", "whole", cwd=cwd)
    again, whole = (cwd / name for name in ("killed", "whole"))
    for name in ("folds", "k_folds"):
        found = [
            process.read_json(run / "metrics.json")[name] for run in (again, whole)
        ]
        for each in found if name == "k_folds" else ():
            del each["seconds"]
            for rung in each["ladder"]["rungs"]:
                del rung["seconds"]
        assert found[0] == found[1]
    texts = [(run / "predictions.jsonl").read_bytes() for run in (again, whole)]
    assert texts[0] == texts[1]
    rows = process.read_jsonl(whole / "predictions.jsonl")
    assert sorted(row["row"] for row in rows) == [*range(40)]
    weights = [
        (run / "model" / "model.safetensors").read_bytes() for run in (again, whole)
    ]
    assert weights[0] == weights[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("free", "flags"),
    [(100_000, ()), (250_000, ()), (100_000, NO_CHECKPOINTS)],
    ids=["checkpoint", "optimizer", "model"],
)
def test_a_full_disk(
    free: int, flags: tuple[str, ...], given: Path, small_disk: Path, tmp_path: Path
) -> None:
    """It fills up in the first checkpoint, early or late, or in the model.

    Nothing is foretold with ``--fast_path off``; else the run does not start.
    """
    (small_disk / "others").write_bytes(b"x" * (2 * 1024 * 1024 - free))
    run = small_disk / "run"
    command = (*classify(given, *flags), "--output_dir", run)
    if free > 100_000:
        done = process.run(*command, cwd=tmp_path / "work")
        assert done.returncode == 5, done.stderr
        (refused,) = process.problems(done.stderr)
        assert "checkpoints and model need" in refused
        assert not run.exists()
    done = process.run(*command, "--fast_path", "off", cwd=tmp_path / "work")
    said = process.problems(done.stderr)
    assert done.returncode == 5, done.stderr
    assert len(said) == 1
    assert said[0].startswith("llmft: EnvironmentFault ")
    assert str(small_disk) in said[0]
    assert "space" in said[0]
    assert "Traceback" not in done.stderr
    assert not (run / "model").exists()
    assert not list((tmp_path / "work").iterdir())
    assert process.read_json(run / "run.json")["status"] in ("failed", "running")


@pytest.mark.parametrize("kilobytes", [16, 64], ids=["no lock", "no batch"])
def test_no_shared_memory_for_workers(
    kilobytes: int, given: Path, tmp_path: Path
) -> None:
    """With 64 kB the workers start, and cannot hand over a batch."""
    own = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size="$0"k x /dev/shm && "$@"',
    ]
    if subprocess.run(
        [*own, "64", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("only root can mount a tmpfs")
    flags = classify(given, "--dataloader_num_workers", 2, "--output_dir", "run")
    command = process.command(*flags, "--fast_path", "off", "--ladder", "false")
    done = subprocess.run(
        [*own, str(kilobytes), *command],
        env=process.user_env(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    (said,) = process.problems(done.stderr)
    assert said.startswith(
        "llmft: EnvironmentFault /dev/shm: No space left on device;"
        " --dataloader_num_workers 0 needs hardly any"
    )
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away(given: Path, tmp_path: Path) -> None:
    """As with ``| head -1``."""
    cwd = tmp_path / "work"
    with process.start(*classify(given, "--output_dir", "run"), cwd=cwd) as running:
        assert running.stdout
        assert running.stdout.readline() == b"data\n"
        running.stdout.close()
        assert running.stderr
        stderr = running.stderr.read().decode()
        running.wait(timeout=60)
    assert (running.returncode, process.problems(stderr)) == (0, [])
    assert "BrokenPipeError" not in stderr
    assert process.read_json(cwd / "run" / "run.json")["status"] == "complete"
    assert "next" in (cwd / "run" / "logs" / "debug.log").read_text("utf-8")


def test_a_terminal_that_is_not_utf8(given: Path, tmp_path: Path) -> None:
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    plain |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    cwd = tmp_path / "wörk"
    said = process.run_well(
        *classify(given, "--output_dir", "run", "--learning_rate", 1e-12),
        cwd=cwd,
        env=process.user_env(tmp_path / "home", **plain),
    )
    run = cwd / "run"
    assert said.isascii()
    assert "\\U0001f3ac" in said
    assert process.read_json(run / "run.json")["status"] == "complete"
    rows = process.read_jsonl(run / "predictions.jsonl")
    assert all(row["text"].endswith(" 🎬 süß") for row in rows)


def test_a_terminal_that_is_not_utf8_and_a_prompt(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    plain = {"PYTHONIOENCODING": "ascii"}
    said = process.run_well(
        *("generate", "--model_name_or_path", tiny_gpt2, "--num_threads", 1),
        *("--prompt", "a 🎬 story", "--max_new_tokens", 8),
        cwd=tmp_path / "work",
        env=process.user_env(tmp_path / "home", **plain),
    )
    assert "a \\U0001f3ac story" in said
