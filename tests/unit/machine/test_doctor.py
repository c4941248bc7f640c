"""What ``llmft doctor`` tells, on a machine whose speeds are known."""

from dataclasses import replace

import pytest
import torch
from unit.machine.test_detect import PLAIN

from llmft import cli
from llmft.machine import detect, doctor, waiting
from llmft.machine.measure import Measurement
from llmft.machine.trial import keep

SPEEDS = Measurement(fp32_gflops=160, bf16_gflops=390, bandwidth_gb_s=20)


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def told(monkeypatch, capsys, machine, speeds):
    monkeypatch.setattr(detect, "detect", lambda: machine)
    monkeypatch.setattr(doctor, "measure", lambda machine, threads: speeds)
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
        "beside others  45%",
        "waiting        spins",
        "has AMX, which the virtual machine",
    ):
        assert part in said
    assert said.index("found") < said.index("measured") < said.index("llmft plan")


def test_no_speed_of_a_job_is_foretold(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    said = told(monkeypatch, capsys, PLAIN, SPEEDS)
    assert "nothing that was found" in said
    assert "tokens/s" not in said
    assert "nothing yet" in said
    keep("a key", {}, PLAIN, ["writing, llama of 135 M", "bf16", "44.0 tokens/s"])
    said = told(monkeypatch, capsys, PLAIN, SPEEDS)
    assert "  writing, llama of 135 M  bf16    44.0 tokens/s\n" in said
    assert "nothing yet" not in said


def test_threads_that_share_cores(monkeypatch, capsys):
    said = told(monkeypatch, capsys, replace(PLAIN, physical_cores=4), SPEEDS)
    assert "8 usable of 8, which are 4 whole ones with several threads each" in said
