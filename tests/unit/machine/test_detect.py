"""What the machine grants this process, and what is said about it."""

import os
import platform
from dataclasses import replace

import psutil
import pytest
import torch

from llmft.machine import detect


def lay_out(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def v1(quota, period="100000"):
    files = {"cpu/cpu.cfs_quota_us": f"{quota}\n"}
    return files | ({"cpu/cpu.cfs_period_us": f"{period}\n"} if period else {})


# Of a job of a batch system: its cgroup is not at the top.
OWN = {"../../../proc/self/cgroup": "5:cpu,cpuacct:/c\n4:memory:/c\n0::/a/b\n"}


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
        ({"cpu.max": "200000 100000\n", **v1(50000)}, 0.5, 1),
        ({**OWN, "a/b/cpu.max": "150000 100000\n"}, 1.5, 2),
        ({**OWN, "a/cpu.max": "150000 100000\n"}, 1.5, 2),
        ({**OWN, "cpu/c/cpu.cfs_quota_us": "-1"}, None, 6),
    ],
)
def test_quota_and_affinity(tmp_path, monkeypatch, files, quota, cores):
    lay_out(tmp_path / "sys/fs/cgroup", files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert detect._cgroup_quota(tmp_path) == quota
    assert detect.usable_cores(tmp_path) == cores


def test_cores_where_there_is_no_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert detect.usable_cores(tmp_path) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert detect.usable_cores(tmp_path) == 1


def test_instructions_that_are_hidden_make_another_machine(monkeypatch):
    """Its figures are kept apart: features are in the keys of what was measured."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    hidden = detect.detect().features
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert hidden == (*detect.detect().features, "ONEDNN_MAX_CPU_ISA=AVX2")


@pytest.mark.parametrize(
    ("affinity", "physical"), [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({3}, 1)]
)
def test_two_threads_of_a_core_count_once(tmp_path, monkeypatch, affinity, physical):
    siblings = {
        f"cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}\n"
        for i in range(4)
    }
    lay_out(tmp_path / "sys/devices/system/cpu", siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    assert detect.detect(tmp_path).physical_cores == physical


def test_physical_cores_without_a_topology(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    assert detect.detect(tmp_path).physical_cores == 4


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "2147483648\n"}, 2**31),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 2**30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({**OWN, "a/b/memory.max": "max\n", "a/memory.max": "2147483648\n"}, 2**31),
        ({**OWN, "memory/c/memory.limit_in_bytes": "1073741824\n"}, 2**30),
        ({"../../../proc/self/cgroup": "0::/../x\n", "memory.max": "9\n"}, 9),
    ],
)
def test_memory_limit(tmp_path, files, limit):
    lay_out(tmp_path / "sys/fs/cgroup", files)
    total = psutil.virtual_memory().total
    found = detect.detect(tmp_path)
    assert (found.memory_bytes, found.total_bytes) == (limit or total, total)


def test_the_name_comes_from_cpuinfo_or_from_torch(tmp_path):
    named = lay_out(tmp_path, {"proc/cpuinfo": "processor: 0\nmodel name\t: Fast 9\n"})
    assert detect.cpu_name(named) == "Fast 9"
    known = torch.cpu.get_capabilities().get("cpu_name")
    other = detect.cpu_name(tmp_path / "nowhere")
    assert other == (known or platform.processor() or platform.machine())


PLAIN = detect.Machine(
    cpu="Intel(R) Xeon(R) Processor",
    architecture="x86_64",
    cores=8,
    physical_cores=8,
    logical_cores=8,
    quota=None,
    memory_bytes=2**34,
    total_bytes=2**34,
    available_bytes=2**33,
    swap_bytes=0,
    features=("amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_f", "avx2"),
    emulated=False,
    variables={},
    load=0.1,
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"features": ("avx512_fp16", "avx2")}, ["has AMX, which the virtual"]),
        ({"features": ("avx512_fp16", "avx2"), "cpu": "AMD EPYC"}, []),
        ({"features": ()}, ["no AVX2"]),
        ({"features": ("neon", "bf16"), "architecture": "arm64"}, []),
        ({"emulated": True}, ["Python is built for x86_64"]),
        ({"cores": 2, "quota": 2.0}, ["2 of 8 cores may be used (the cgroup's quota)"]),
        ({"cores": 4}, ["4 of 8 cores may be used (the affinity of the process)"]),
        ({"cores": 1, "quota": 0.5}, ["1 of 8 cores", "grants 0.5 of a core"]),
        ({"variables": {"OMP_NUM_THREADS": "1"}}, ["OMP_NUM_THREADS=1 is set"]),
        ({"variables": {"OMP_NUM_THREADS": "8"}}, []),
        ({"memory_bytes": 2**31}, ["2.0 GiB of 16.0 GiB memory may be used"]),
        ({"swap_bytes": 2**30}, ["1.0 GiB are swapped out"]),
        ({"load": 5.0}, ["other programs keep 5.0 of 8 cores busy"]),
    ],
)
def test_what_holds_a_machine_back(changes, said):
    found = detect.warnings(replace(PLAIN, **changes))
    assert len(found) == len(said)
    for line, part in zip(found, said, strict=True):
        assert part in line


def test_facts_of_this_machine():
    found = detect.detect()
    assert 1 <= found.physical_cores <= found.cores <= found.logical_cores
    assert 2**28 < found.available_bytes <= found.memory_bytes <= found.total_bytes
    assert found.cpu.strip()
    assert 20e6 < detect.peak_rss_bytes() < 1e12
