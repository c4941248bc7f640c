"""Runs of own scripts: the same folder, and how the block ended."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from llmft.errors import ConfigError, DataError, EnvironmentFault
from llmft.process import Terminated
from llmft.runs import listing
from llmft.runs.compare import compare
from llmft.runs.record import read_run
from llmft.runs.tracker import ExperimentTracker


def test_what_is_recorded_is_read_like_a_recipes_run(tmp_path):
    (tmp_path / "train.csv").write_text("a\n")
    (tmp_path / "vocabulary.txt").write_text("x")
    config = {"learning_rate": np.float32(0.5), "layers": [1, 2], "bad": float("nan")}
    data = {"train": tmp_path / "train.csv"}
    with ExperimentTracker(tmp_path / "r", config, "mine", data) as tracker:
        assert read_run(tmp_path / "r").status == "running"
        tracker.log({"loss": 0.5}, step=1)
        tracker.log({"loss": float("inf"), "rate": np.float64(2)}, step=2)
        tracker.result("eval", "accuracy", np.float64(0.75), stderr=0.1, n=4)
        tracker.artifact(tmp_path / "vocabulary.txt")
    run = read_run(tmp_path / "r")
    assert (run.status, run.recipe) == ("complete", "mine")
    assert run.given == {"learning_rate": 0.5, "layers": [1, 2], "bad": None}
    events = [(e["step"], e["loss"], e.get("rate")) for e in run.events()]
    assert events == [(1, 0.5, None), (2, None, 2.0)]
    entry = {"value": 0.75, "n": 4, "stderr": 0.1, "split": "validation"}
    assert run.measured() == {"eval": {"accuracy": entry}}
    row = listing.row_of(run)
    assert (row["metric"], row["value"], row["data"]) == (
        "accuracy",
        0.75,
        str(tmp_path / "train.csv"),
    )
    assert (tmp_path / "r" / "artifacts" / "vocabulary.txt").read_text() == "x"
    assert not list((tmp_path / "r").rglob(".*"))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("x"), "failed", "ValueError('x')"),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (Terminated(), "interrupted", "SIGTERM"),
    ],
)
def test_how_the_block_ended_is_recorded(tmp_path, error, status, said):
    with pytest.raises(type(error)), ExperimentTracker(tmp_path / "r"):
        raise error
    run = read_run(tmp_path / "r")
    assert (run.status, run.record["error"]) == (status, said)
    assert run.seconds >= 0


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
def test_a_script_that_is_terminated_says_so_and_loads_nothing_heavy(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from llmft.runs.tracker import ExperimentTracker\n"
        "assert not {'torch', 'numpy', 'transformers'} & {*sys.modules}\n"
        "with ExperimentTracker('r'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert read_run(tmp_path / "r").status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_runs_with_predictions_are_compared(tmp_path):
    for name, right in (("x", 10), ("y", 38)):
        rows = [
            {
                "row": i,
                "text": str(i),
                "label": "a",
                "prediction": "a" if i < right else "b",
                "probabilities": {"a": 0.9 if i < right else 0.1},
            }
            for i in range(40)
        ]
        with ExperimentTracker(tmp_path / name) as tracker:
            tracker.predictions(rows, "test")
    runs = [read_run(tmp_path / name) for name in "xy"]
    verdict = compare(runs)["pairs"][0]["verdict"]
    assert verdict.startswith("B is better: accuracy +70.00")


def test_bad_use_leaves_nothing(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with (
        pytest.raises(EnvironmentFault, match="used: the folder is not empty"),
        ExperimentTracker(tmp_path / "used"),
    ):
        pass
    with pytest.raises(TypeError):
        ExperimentTracker(tmp_path / "new", {"model": object()})
    assert os.listdir(tmp_path) == ["used"]
    with ExperimentTracker(tmp_path / "r") as tracker:
        rows = [{"row": 0, "text": "", "label": 1, "prediction": 1}]
        rows.append({"row": 1, "text": "", "prediction": "a"})
        with pytest.raises(DataError, match="row 1 lacks label, probabilities"):
            tracker.predictions(rows, "test")
        with pytest.raises(DataError, match="test confusion is "):
            tracker.result("test", "confusion", [[5, 1]])
        tracker.result("test", "percent", 91.2, n=np.int64(1000))
        with pytest.raises(ConfigError, match="expected one without folders"):
            tracker.artifact(tmp_path / "used" / "x", "../x")
        with pytest.raises(FileNotFoundError):
            tracker.artifact(tmp_path / "none")
    names = {*os.listdir(tmp_path / "r")}
    assert names == {"run.json", "metrics.json", "artifacts"}
    assert os.listdir(tmp_path / "r" / "artifacts") == []
    found = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert found["run"]["legs"] == 1


def test_classes_may_be_numbers_of_numpy(tmp_path):
    """Of names, as JSON has the keys of an object."""
    rows = [
        {
            **{"row": np.int64(i), "text": f"t{i}", "label": np.float64(i % 2)},
            **{"prediction": 1, "probabilities": {0: np.float32(0.25), 1: 0.75}},
        }
        for i in range(4)
    ]
    with ExperimentTracker(tmp_path / "r") as tracker:
        tracker.predictions(rows, "test")
    found = [*read_run(tmp_path / "r").predictions()]
    assert [row["label"] for row in found] == ["0", "1", "0", "1"]
    assert {row["prediction"] for row in found} == {"1"}
    assert found[0]["probabilities"] == {"0": 0.25, "1": 0.75}
    several = {"row": 0, "text": "t", "label": np.array(["a", "b"])}
    several |= {"prediction": np.array(["a"]), "probabilities": {"a": 0.9, "b": 0.1}}
    number = {"row": 0, "text": "t", "label": 2.0, "prediction": np.float32(1.5)}
    for name, row in (("s", several), ("n", number)):
        with ExperimentTracker(tmp_path / name) as tracker:
            tracker.predictions([row], "test")
    (row,) = read_run(tmp_path / "s").predictions()
    assert (row["label"], row["prediction"]) == (["a", "b"], ["a"])
    (row,) = read_run(tmp_path / "n").predictions()
    assert (row["label"], row["prediction"]) == (2.0, 1.5)
