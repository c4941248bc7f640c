"""What ``llmft doctor`` tells, on a machine whose speeds are known."""

from dataclasses import replace

import pytest
import torch
from unit.machine.test_choose import SPEEDS
from unit.machine.test_detect import PLAIN

from llmft import cli
from llmft.machine import detect, doctor


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def told(monkeypatch, capsys, machine, speeds):
    monkeypatch.setattr(detect, "detect", lambda: machine)
    monkeypatch.setattr(doctor, "measure", lambda machine, threads, length: speeds)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_whole_table(monkeypatch, capsys):
    machine = replace(PLAIN, features=("avx512_fp16", "avx512_bf16"))
    said = told(monkeypatch, capsys, machine, SPEEDS)
    for part in (
        "Intel(R) Xeon(R) Processor (x86_64)",
        "8 usable of 8\n",
        "16.0 GiB, 8.0 GiB free",
        "160 GFLOP/s",
        "390 GFLOP/s",
        "20 GB/s",
        "eager 5.0 ms, sdpa 8.0 ms",
        "has AMX, which the virtual machine",
    ):
        assert part in said
    assert said.index("found") < said.index("measured") < said.index("chosen")


def test_expectations_follow_the_chosen_precision(monkeypatch, capsys):
    # 71e6 / (0.85 * 390e9) + 1.54e6 / 20e9 seconds a token, of 400,000 tokens.
    said = told(monkeypatch, capsys, PLAIN, SPEEDS)
    assert "about 3,434 tokens/s" in said
    assert "1.9 min" in said
    assert "nothing that was found" in said
    slow = replace(SPEEDS, bf16_gflops=2.0)
    assert "about 1,669 tokens/s" in told(monkeypatch, capsys, PLAIN, slow)


def test_threads_that_share_cores(monkeypatch, capsys):
    said = told(monkeypatch, capsys, replace(PLAIN, physical_cores=4), SPEEDS)
    assert "8 usable of 8, which are 4 whole ones with several threads each" in said
