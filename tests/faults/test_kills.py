"""A run that is killed, and what the same command makes of it: scripts/faults.py.

The long sweep is that script's; here are the points where something is half done.
"""

from __future__ import annotations

import os
import pkgutil
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recipe_process as process

from llmft.train import checkpoint, resume

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import faults

POINTS = [
    *[("save.file.half:kill9", -9), ("save.manifest.half:kill9@2", -9)],
    *[("save.publish.before:kill9@3", -9), ("save.publish.after:kill9@3", -9)],
    *[("rotate.before:kill9@4", -9), ("rotate.mid:kill9@6", -9)],
    *[("save.file.close:enospc@3", 5), ("save.fsync:eio@3", 5)],
    *[("save.publish.before:eacces@3", 5), ("save.publish.after:sigterm@3", 143)],
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Job]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("kills")
        patch.setenv("LLMFT_HOME", str(root / "home"))
        made = faults.recipe_job("classify", root)
        made.reference()
        yield made


@pytest.mark.parametrize(("point", "code"), POINTS)
def test_a_save_that_fails_half_way(point: str, code: int, job: faults.Job) -> None:
    folder = job.new_folder()
    assert job.run(folder, point) == code
    assert faults.saved_step(folder) % faults.SAVE_STEPS == 0
    assert job.finish(folder) == ""
    assert faults.leftovers(folder) == []


def test_kills_at_random_times(job: faults.Job) -> None:
    found = faults.random_kills(job, 4, random.Random(1))
    assert found["wrong"] == []
    assert found["left over"] == []
    assert found["most steps lost"] <= faults.SAVE_STEPS


def test_signals_at_random_times(job: faults.Job) -> None:
    found = faults.stops(job, 3, random.Random(1))
    assert found["wrong"] == []
    assert found["most steps lost"] == 0


def test_a_killer_that_does_not_wait(job: faults.Job) -> None:
    """SIGTERM three times, and SIGKILL in the midst of what follows."""
    for wait in (0.0, 0.05, 0.2):
        folder = job.new_folder()
        pid = job.fork(folder)
        process.wait_until(lambda at=folder: faults.last_step(at) > 4, "a step")
        for _ in range(3):
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        assert faults.wait(pid) in (-signal.SIGKILL, 143)
        saved = checkpoint.checkpoints(folder / "checkpoints")
        assert [resume.fault(path) for path in saved] == [None] * len(saved)
        assert faults.saved_step(folder) >= faults.SAVE_STEPS
        assert job.finish(folder) == ""
        assert faults.leftovers(folder) == []


@pytest.mark.parametrize(
    "name",
    ["a b", 'it\'s "q"', "one\ntwo\a", "🎬", "-dash"],
    ids=["space", "quotes", "control", "emoji", "dash"],
)
def test_names_of_every_kind(name: str, tmp_path: Path, capfd: Any) -> None:
    """F11: of model, data and run; a terminal gets no control characters."""
    root = tmp_path / name
    root.mkdir()
    job = faults.recipe_job("mlm", root)
    with capfd.disabled():  # so that what it prints goes where ``fork`` says
        codes = [job.run(root / name) for _ in range(2)]
    assert codes == [0, 0]
    said = Path(f"{root / name}.txt").read_text()
    assert "\nrun        " in said
    assert "\a" not in said
    assert faults.outcome(root / name)["losses"]
    assert f"already complete ({faults.STEPS} of {faults.STEPS} steps)" in said


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    job = faults.recipe_job("mlm", tmp_path)
    job.run(folder := tmp_path / "out")
    assert job.start(folder.with_name("x" * 300)) == 5
    assert job.start(folder / "run.json" / "below") == 5


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("llmft.data.tokens.encode.encode_batch", signal.SIGTERM),
        ("llmft.train.steps.Steps.run", signal.SIGINT),
        ("llmft.train.trainer.LlmftTrainer.get_test_dataloader", signal.SIGTERM),
        ("llmft.runs.folder.Run.save", signal.SIGTERM),
        ("llmft.runs.folder.Run.write_predictions", signal.SIGINT),
    ],
)
def test_a_signal_outside_of_training(
    place: str, number: int, job: faults.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tokenizing, trial steps, an evaluation before, and after the last step."""
    owner, _, name = place.rpartition(".")
    owner_of: Any = pkgutil.resolve_name(owner)
    plain = getattr(owner_of, name)

    def stopped(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return plain(*args, **kwargs)

    if name == "encode_batch":  # it works in threads, and is in a cache by now
        shutil.rmtree(Path(os.environ["LLMFT_HOME"]), ignore_errors=True)
    folder = job.new_folder()
    with monkeypatch.context() as patch:
        patch.setattr(owner_of, name, stopped)
        more = ("--fast_path", "auto") if name == "run" else ()
        code = faults.wait(job.fork(folder, more=more))
    assert code == 128 + number
    assert job.finish(folder) == ""
    assert faults.leftovers(folder) == []


def test_a_folder_is_of_one_run(tmp_path: Path) -> None:
    assert faults.races(tmp_path, 20) == {"starts": 20, "began": 1}
