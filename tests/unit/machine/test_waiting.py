"""What is told about how threads wait, and what another program does to them."""

import pytest
import torch

from llmft.machine import waiting
from llmft.process import WAITING_VARIABLES, spinning

OURS = ", ".join(f"{name}={value}" for name, value in spinning().items())


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("given", "value", "said"),
    [
        (spinning(), "spins briefly", f"by {OURS}, of llmft"),
        ({"GOMP_SPINCOUNT": "7"}, "as given", "GOMP_SPINCOUNT=7 was given"),
        (
            {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"},
            "as given",
            "OMP_WAIT_POLICY=passive, KMP_BLOCKTIME=0 was given",
        ),
        ({}, "spins", "torch was there before it could be limited"),
    ],
)
def test_who_has_set_how_threads_wait(given, value, said, monkeypatch):
    for name in WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    found = waiting.choice()
    assert (found.name, found.value) == ("waiting", value)
    assert said in found.reason


def test_the_share_that_is_kept_beside_a_program(monkeypatch):
    """One thread of several cores keeps its own; the program ends with it."""
    torch.set_num_threads(1)
    ended = []

    class Popen(waiting.subprocess.Popen):
        def __exit__(self, *error):
            super().__exit__(*error)
            ended.append(self.returncode)

    monkeypatch.setattr(waiting.subprocess, "Popen", Popen)
    assert 0 < waiting.share_beside_a_program(0.05) < 5
    assert len(ended) == 1
    assert ended[0] not in (None, 0)  # killed


def test_speed_counts_what_is_done_in_a_second(monkeypatch):
    now = [0.0]

    def work():
        now[0] += 0.25

    monkeypatch.setattr(waiting.time, "perf_counter", lambda: now[0])
    assert waiting._speed(work, 2.0) == 4.0
