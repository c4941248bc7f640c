"""Measuring this machine: plausible, quick, kept, and wary of emulated types."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from unit.test_hardware import PLAIN

from llmft import measure as module
from llmft.measure import Measurement, attention_ms, matmul_gflops, measure


@pytest.fixture(autouse=True)
def _cache_and_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_figures_are_kept_for_the_machine_threads_and_length(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    first = measure(PLAIN, 1, 32)
    assert first.threads == torch.get_num_threads() == 1
    assert min(first.fp32_gflops, first.bf16_gflops, first.bandwidth_gb_s) > 0
    monkeypatch.setattr(module, "matmul_gflops", lambda dtype: 123.0)
    assert measure(PLAIN, 1, 32) == first
    assert measure(PLAIN, 1, 48).fp32_gflops == 123
    assert measure(PLAIN, 2, 32).fp32_gflops == 123
    assert measure(replace(PLAIN, cpu="other"), 1, 32).fp32_gflops == 123
    assert len(list((tmp_path / "hardware").glob("*.json"))) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"threads": 1}', '{"x": 1}'])
def test_a_damaged_file_is_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    measure(PLAIN, 1, 32)
    (path,) = (tmp_path / "hardware").glob("*.json")
    path.write_text(content)
    found = measure(PLAIN, 1, 32)
    assert Measurement(**json.loads(path.read_text())) == found


def test_figures_of_a_busy_machine_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    assert measure(replace(PLAIN, load=6.0), 1, 32).busy
    assert not list(tmp_path.rglob("*.json"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    (tmp_path / "hardware").write_text("a file in the way")
    assert measure(PLAIN, 1, 32).fp32_gflops > 0


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
    assert matmul_gflops(torch.float32, seconds=0.15) == pytest.approx(gflops)
    assert set(seen) == rows
    assert clock[0] < 0.9


def test_attention_of_long_sequences_stays_small():
    start = time.perf_counter()
    eager, sdpa = attention_ms(1024, seconds=0.0)
    assert eager > 0
    assert sdpa > 0
    assert time.perf_counter() - start < 20
