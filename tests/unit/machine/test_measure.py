"""Measuring this machine: plausible, quick, kept, and wary of emulated types."""

import errno
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from unit.machine.test_detect import PLAIN

from llmft.machine import measure as module
from llmft.machine.measure import (
    Measurement,
    matmul_gflops,
    measure,
    write_seconds,
)


@pytest.fixture(autouse=True)
def _cache_and_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_figures_are_kept_for_the_machine_and_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    first = measure(PLAIN, 1)
    assert torch.get_num_threads() == 1
    assert min(first.fp32_gflops, first.bf16_gflops, first.bandwidth_gb_s) > 0
    monkeypatch.setattr(module, "matmul_gflops", lambda *types: [123.0, 45.0])
    assert measure(PLAIN, 1) == first
    assert measure(PLAIN, 2).fp32_gflops == 123
    assert measure(replace(PLAIN, cpu="other"), 1).fp32_gflops == 123
    assert len(list((tmp_path / "hardware").glob("*.json"))) == 3


NULLS = json.dumps({"found": dict.fromkeys(Measurement.__dataclass_fields__)})


@pytest.mark.parametrize("content", ["", '{"found": {"x": 1}}', '{"found": 7}', NULLS])
def test_a_damaged_file_is_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    measure(PLAIN, 1)
    (path,) = (tmp_path / "hardware").glob("*.json")
    path.write_text(content)
    found = measure(PLAIN, 1)
    assert Measurement(**json.loads(path.read_text())["found"]) == found


def test_figures_of_a_busy_machine_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    assert measure(replace(PLAIN, load=6.0), 1).busy
    assert not list(tmp_path.rglob("*.json"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    (tmp_path / "hardware").write_text("a file in the way")
    assert measure(PLAIN, 1).fp32_gflops > 0


@pytest.mark.parametrize(
    ("gflops", "first", "rows"),
    [
        (1.5, 0.05, {64}),  # bf16 on AVX2: a product of all rows would take 0.8 s
        (100, 0.001, {64, 1024}),
        (100, 0.3, {64, 1024}),  # only the start of the threads was slow
    ],
)
def test_an_emulated_type_is_given_up_early(monkeypatch, gflops, first, rows):
    clock, seen = [0.0], []

    def product(a, b):
        seen.append(len(a))
        took = 2e-9 * a.numel() * b.shape[1] / gflops
        clock[0] += max(took, first) if len(seen) == 1 else took

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    clocks = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(module, "time", clocks)
    found = matmul_gflops(torch.float32, torch.bfloat16, seconds=0.15)
    assert found == pytest.approx([gflops] * 2)
    assert set(seen) == rows
    assert clock[0] < 1.5


def test_only_the_emulated_of_two_types_is_given_up(monkeypatch):
    clock, seen = [0.0], set()

    def product(a, b):
        speed = {torch.float32: 160, torch.bfloat16: 1.5}[a.dtype]
        seen.add((a.dtype, len(a)))
        clock[0] += 2e-9 * a.numel() * b.shape[1] / speed

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    clocks = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(module, "time", clocks)
    found = matmul_gflops(torch.float32, torch.bfloat16, seconds=0.15)
    assert found == pytest.approx([160, 1.5])
    assert (torch.float32, 1024) in seen
    assert (torch.bfloat16, 1024) not in seen


def test_works_take_turns(monkeypatch):
    clock, order = [0.0], []
    clocks = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(module, "time", clocks)

    def work(name, *times):
        left = iter(times)

        def run():
            order.append(name)
            clock[0] += next(left)

        return run

    works = [work("a", 3.0, 1.0, 2.0), work("b", 5.0, 6.0, 4.0)]
    assert module.best_seconds(works, 16.0) == [1.0, 4.0]
    assert order == ["a", "b"] * 3


def test_a_checkpoint_takes_longer_the_larger_it_is():
    assert 0 < write_seconds(2**20) < write_seconds(2**40)


def test_without_room_for_a_trial_a_checkpoint_takes_some_time(monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    assert write_seconds(10**9) == pytest.approx(10, rel=0.1)
