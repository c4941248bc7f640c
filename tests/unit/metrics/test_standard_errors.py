"""Standard errors are those of resampled rows, the same each time, and quick."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from transformers import EvalPrediction

from llmft.metrics import bootstrap, classes

ROOT = Path(__file__).parents[3]
# 1,000 draws here, and as many there: each standard error is known to 2-3 %.
RESAMPLED = 0.12


def of_mean(values):
    return lambda counts: {"mean": values @ counts / len(values)}


@pytest.mark.parametrize("rows", [40, 400, 20_000])
def test_the_error_of_a_mean(rows, monkeypatch):
    """Also in many chunks, which change nothing, and with 300 draws."""
    values = np.random.default_rng(1).gamma(2.0, 2.0, rows)
    found = bootstrap.with_errors(of_mean(values), rows)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["n"] == rows
    wanted = values.std(ddof=1) / rows**0.5
    assert found["mean_stderr"] == pytest.approx(wanted, rel=RESAMPLED)
    assert bootstrap.with_errors(of_mean(values), rows) == found
    monkeypatch.setattr(bootstrap, "_CHUNK", 3000)
    again = bootstrap.with_errors(of_mean(values), rows)
    assert again == pytest.approx(found, rel=1e-9)


def test_a_single_row_has_no_error():
    found = bootstrap.with_errors(of_mean(np.array([0.1])), 1)
    assert found == {"mean": 0.1, "mean_stderr": 0, "n": 1}


def test_what_is_no_number_stays_so():
    found = bootstrap.with_errors(of_mean(np.array([1.0, np.nan])), 2)
    assert np.isnan([found["mean"], found["mean_stderr"]]).all()


def scores(rows, outputs):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, outputs, rows)
    logits = draw.normal(0, 1, (rows, outputs))
    logits[np.arange(rows), labels] += 2
    return logits, labels


@pytest.mark.parametrize(
    ("kind", "rows", "outputs"),
    [
        (classes.Classification, 10_000, 5),
        (classes.Classification, 2_000, 400),
        (classes.MultiLabel, 10_000, 20),
        (classes.Regression, 10_000, 1),
    ],
)
def test_they_take_little_time_and_memory(kind, rows, outputs):
    logits, labels = scores(rows, outputs)
    if kind is classes.MultiLabel:
        labels = np.eye(outputs)[labels]
    metric = kind()
    tracemalloc.start()
    started = time.process_time()
    found = metric._compute(predictions=logits, references=labels)
    took = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["n"] == rows
    assert peak < 200e6
    assert took < 5


def test_a_metric_serves_each_evaluation():
    metric = classes.Classification()
    first, second = (metric(EvalPrediction(*scores(50, 3))) for _ in range(2))
    assert first == second


_PROBE = """
import json, os, sys
seen = []
def watch(event, args):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind"):
        seen.append([event, repr(args)])
    if event == "open" and isinstance(args[0], (str, bytes)):
        if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(["write", os.path.abspath(os.fsdecode(args[0]))])
    if event == "os.mkdir":
        seen.append(["write", os.path.abspath(os.fsdecode(args[0]))])
import numpy as np
from transformers import EvalPrediction
from llmft.metrics.classes import Classification
from llmft.metrics.tokens import TokenPrediction
sys.addaudithook(watch)
TokenPrediction("a")(EvalPrediction(np.array([[1.0, 2, 1]]), None))
Classification()(EvalPrediction(np.eye(2), np.array([0, 1])))
json.dump(seen, sys.stdout)
"""


def test_no_network_and_nothing_written_outside_the_cache(tmp_path):
    home, cache, cwd = (tmp_path / name for name in ("home", "cache", "cwd"))
    for folder in (home, cwd):
        folder.mkdir()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=keep
        | {
            "HOME": str(home),
            "LLMFT_HOME": str(cache),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout)
    outside = [e for e in events if e[0] != "write" or str(cache) not in e[1]]
    assert outside == [["write", os.devnull]] * len(outside)
    assert not list(cwd.iterdir())
