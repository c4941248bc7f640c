"""A contest of candidates: turns, what leaves early, the budget, and the cache."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from unit.machine.test_detect import PLAIN

from llmft.machine import trial as module
from llmft.machine.trial import Candidate, contest, keep, recall, rows

BF16, FP32 = Candidate("bf16", "eager"), Candidate("fp32", "eager")
BF16_SDPA, FP32_SDPA = Candidate("bf16", "sdpa"), Candidate("fp32", "sdpa")
ALL = [BF16, FP32, BF16_SDPA, FP32_SDPA]


def held(monkeypatch, times, budget=math.inf, candidates=ALL):
    """Hold a contest in which runs take these times; return it and who ran."""
    clock, order = [0.0], []
    clocks = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(module, "time", clocks)
    left = {candidate: iter(given) for candidate, given in times.items()}

    def run(candidate):
        order.append(candidate)
        took = next(left[candidate])
        if took is None:
            raise RuntimeError(f"{candidate.precision}/{candidate.attention} cannot")
        clock[0] += took

    return contest(candidates, run, lambda best: budget), order


def test_the_first_run_warms_up_and_the_slow_are_left(monkeypatch):
    times = {BF16: [4.5, 2], FP32: [4.5], BF16_SDPA: [4, 3], FP32_SDPA: []}
    found, order = held(monkeypatch, times)
    assert found == ({BF16: 2, FP32: 4.5, BF16_SDPA: 3}, True)
    # fp32 lost with one attention and is not tried with the other.
    assert order == [BF16, BF16, FP32, BF16_SDPA, BF16_SDPA]


def test_those_near_the_best_take_turns(monkeypatch):
    times = {
        BF16: [3, 2.0, 1.875, 2.5],
        FP32: [3, 3.0],
        BF16_SDPA: [3, 2.125, 1.75, 1.8],
    }
    found, order = held(monkeypatch, times, candidates=ALL[:3])
    assert found == ({BF16: 1.875, FP32: 3.0, BF16_SDPA: 1.75}, True)
    assert order[-4:] == [BF16, BF16_SDPA] * 2


@pytest.mark.parametrize(
    ("budget", "tried", "is_whole"),
    [(0.0, 1, False), (4.0, 1, False), (9.5, 3, False), (100.0, 4, True)],
)
def test_the_budget_ends_it(monkeypatch, budget, tried, is_whole):
    times = {candidate: iter(lambda: 1.5, 0) for candidate in ALL}
    (seconds, whole), order = held(monkeypatch, times, budget)
    assert (len(seconds), whole) == (tried, is_whole)
    assert order[0] == BF16


def test_long_runs_are_not_warmed_up_for(monkeypatch):
    times = {BF16: [60], FP32: [70], BF16_SDPA: [100], FP32_SDPA: [110]}
    found, order = held(monkeypatch, times, budget=250)
    assert found == ({BF16: 60, FP32: 70, BF16_SDPA: 100}, False)
    assert order == ALL[:3]


def test_what_fails_takes_for_ever(monkeypatch):
    times = {BF16: [None], FP32: [2, 2], BF16_SDPA: [], FP32_SDPA: [3, 3]}
    (seconds, _), _ = held(monkeypatch, times)
    assert seconds == {BF16: math.inf, FP32: 2, FP32_SDPA: 3}
    with pytest.raises(RuntimeError, match="bf16/eager cannot"):
        held(monkeypatch, {c: [None] for c in ALL})


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    key = {"threads": 2, "candidates": [BF16, FP32]}
    assert recall(key) == {}
    row = ["writing", "bf16", "1.5 s"]
    keep(key, {}, replace(PLAIN, load=6.0), row)  # other programs had the cores
    assert not (tmp_path / "hardware").exists()
    keep(key, {"seconds": [[BF16, 1.5]]}, PLAIN, row)
    assert recall(key) == {"seconds": [[["bf16", "eager", False, False], 1.5]]}
    assert recall({**key, "threads": 3}) == {}
    assert rows(PLAIN) == [row]
    assert rows(replace(PLAIN, cpu="another")) == []
    (path,) = (tmp_path / "hardware").iterdir()
    path.write_text("{damaged")
    assert recall(key) == {}
    assert rows(PLAIN) == []
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file in the way")
    keep(key, {}, PLAIN, row)  # costs a trial a run, and no more
    assert recall(key) == {}
