"""What the machine grants, and which precision a measurement chooses."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from llmft import hardware
from llmft.arguments import TrainingArguments


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cgroup(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def v1(quota, period="100000"):
    files = {"cpu/cpu.cfs_quota_us": f"{quota}\n"}
    return files | ({"cpu/cpu.cfs_period_us": f"{period}\n"} if period else {})


@pytest.mark.parametrize(
    ("files", "quota", "cores"),
    [
        ({}, None, 6),
        ({"cpu.max": "max 100000\n"}, None, 6),
        ({"cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"cpu.max": "150000 100000\n"}, 1.5, 2),
        ({"cpu.max": "400000 100000\n"}, 4.0, 4),
        ({"cpu.max": "6400000 100000\n"}, 64.0, 6),
        ({"cpu.max": ""}, None, 6),
        (v1(-1), None, 6),
        (v1(50000), 0.5, 1),
        (v1(250000), 2.5, 3),
        (v1(50000, period=None), None, 6),
        ({"cpu.max": "200000 100000\n", **v1(50000)}, 2.0, 2),
    ],
)
def test_quota_and_affinity(tmp_path, monkeypatch, files, quota, cores):
    root = cgroup(tmp_path, files)
    read = hardware._cgroup_quota
    assert read(root) == quota
    monkeypatch.setattr(hardware, "_cgroup_quota", lambda: read(root))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert hardware.usable_cores() == cores


def test_cores_where_there_is_no_affinity(monkeypatch):
    monkeypatch.setattr(hardware, "_cgroup_quota", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert hardware.usable_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.usable_cores() == 1


def faked(monkeypatch, fp32, bf16):
    speeds = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(hardware, "matmul_gflops", speeds.__getitem__)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)


AMX, AVX2 = (165, 390), (165, 2)
FAST = "matrix multiply: 390 GFLOP/s in bf16, 165 in fp32"
SLOW = "matrix multiply: 2 GFLOP/s in bf16, 165 in fp32"


@pytest.mark.parametrize(
    ("speeds", "given", "value", "reason"),
    [
        (AMX, {}, "bf16", FAST),
        (AVX2, {}, "fp32", SLOW),
        ((100, 130), {}, "bf16", "matrix multiply: 130 GFLOP/s in bf16, 100 in fp32"),
        ((100, 129), {}, "fp32", "matrix multiply: 129 GFLOP/s in bf16, 100 in fp32"),
        (AMX, {"precision": "fp32"}, "fp32", "precision fp32 was given"),
        (AMX, {"precision": "bf16"}, "bf16", FAST + "; was given"),
        (
            AVX2,
            {"precision": "bf16"},
            "bf16",
            SLOW + "; was given; bf16 is slower here",
        ),
        (AVX2, {"bf16": True}, "bf16", SLOW + "; was given; bf16 is slower here"),
    ],
)
def test_precision(monkeypatch, speeds, given, value, reason):
    faked(monkeypatch, *speeds)
    args = TrainingArguments(**given)
    choice = hardware.prepare(args)[-1]
    assert choice == hardware.Choice("precision", value, reason)
    assert args.bf16 is (value == "bf16")
    assert args.mixed_precision == ("bf16" if value == "bf16" else "no")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({}, "fp32"),
        ({"fp16": True}, "fp16"),
        ({"bf16": True}, "bf16"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "fp32"}, "fp32"),
    ],
)
def test_precision_on_a_gpu_is_what_was_asked_for(monkeypatch, given, value):
    faked(monkeypatch, *AMX)
    args = SimpleNamespace(use_cpu=False, fp16=False, bf16=False, precision="auto")
    vars(args).update(given, device=torch.device("cuda"))
    choice = hardware._choose_precision(args)
    assert choice == hardware.Choice("precision", value, "not measured on cuda")
    assert args.bf16 is (value == "bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_use_cpu_false_without_a_gpu_is_said(monkeypatch):
    faked(monkeypatch, *AMX)
    choice = hardware.prepare(TrainingArguments(use_cpu=False))[-1]
    note = "; use_cpu is false, but there is no GPU"
    assert choice == hardware.Choice("precision", "bf16", FAST + note)


@pytest.mark.parametrize(
    ("given", "threads", "reason"),
    [(None, 2, "cores this process may use"), (1, 1, "num_threads")],
)
def test_threads(monkeypatch, given, threads, reason):
    faked(monkeypatch, *AVX2)
    torch.set_num_threads(3 - threads)
    choices = hardware.prepare(TrainingArguments(num_threads=given))
    assert choices[0] == hardware.Choice("threads", str(threads), reason)
    assert torch.get_num_threads() == threads
    allocator = [c.value for c in choices if c.name == "allocator"]
    assert allocator in ([], ["keeps memory"])


def test_matmul_gflops_measures_within_its_time():
    start = time.perf_counter()
    assert hardware.matmul_gflops(torch.float32, seconds=0.05) > 0
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("gflops", "first", "rows"),
    [
        (1.5, 0.05, {64}),  # bf16 on AVX2: a product of all rows would take 0.8 s
        (100, 0.001, {64, 1024}),
        (100, 0.3, {64, 1024}),  # only the start of the threads was slow
    ],
)
def test_matmul_gflops_gives_up_on_an_emulated_type(monkeypatch, gflops, first, rows):
    clock, seen = [0.0], []

    def product(a, b):
        seen.append(len(a))
        took = 2e-9 * a.numel() * b.shape[1] / gflops
        clock[0] += max(took, first) if len(seen) == 1 else took

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    clocks = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr(hardware, "time", clocks)
    measured = hardware.matmul_gflops(torch.float32, seconds=0.15)
    assert measured == pytest.approx(gflops)
    assert set(seen) == rows
    assert clock[0] < 0.5


def test_the_allocator_can_be_tuned_twice():
    first = hardware.tune_allocator()
    assert hardware.tune_allocator() is first
    assert isinstance(first, bool)
    assert torch.ones(1000, 1000).sum().item() == 1e6


def test_the_allocator_elsewhere(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(hardware.ctypes, "CDLL", missing)
    assert hardware.tune_allocator() is False


def test_facts_of_the_machine():
    assert hardware.cpu_name().strip()
    assert 20e6 < hardware.peak_rss_bytes() < 1e12
