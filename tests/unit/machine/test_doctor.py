"""What ``llmft doctor`` tells, on a machine whose speeds are known."""

from dataclasses import replace

import pytest
import torch
from unit.machine.test_choose import SPEEDS
from unit.machine.test_detect import PLAIN

from llmft import cli
from llmft.machine import detect, doctor, waiting


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def told(monkeypatch, capsys, machine, speeds):
    monkeypatch.setattr(detect, "detect", lambda: machine)
    monkeypatch.setattr(doctor, "measure", lambda machine, threads, length: speeds)
    monkeypatch.setattr(waiting, "share_beside_a_program", lambda: 0.447)
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
        "beside others  45%",
        "waiting        spins",
        "has AMX, which the virtual machine",
    ):
        assert part in said
    assert said.index("found") < said.index("measured") < said.index("chosen")


def test_choices_follow_what_was_measured(monkeypatch, capsys):
    """And no speed of a job is foretold from them."""
    said = told(monkeypatch, capsys, PLAIN, SPEEDS)
    assert "bf16 multiplies 2.4 times as fast as fp32" in said
    assert "nothing that was found" in said
    assert "tokens/s" not in said
    slow = replace(SPEEDS, bf16_gflops=2.0)
    said = told(monkeypatch, capsys, PLAIN, slow)
    assert "fp32   bf16 multiplies 0.013 times as fast" in said


def test_threads_that_share_cores(monkeypatch, capsys):
    said = told(monkeypatch, capsys, replace(PLAIN, physical_cores=4), SPEEDS)
    assert "8 usable of 8, which are 4 whole ones with several threads each" in said
