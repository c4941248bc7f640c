"""Threads, the allocator, and what a resume compares, on machines that are faked."""

import json
from dataclasses import replace

import pytest
import torch
from unit.machine.test_detect import PLAIN

from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.machine import choose, detect
from llmft.machine.choose import choices_of, choose_threads, compared, prepare_machine


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


TWO_EACH = {"physical_cores": 8, "cores": 16, "logical_cores": 16}
GRANTED = {"physical_cores": 2, "cores": 2, "quota": 2.0}


@pytest.mark.parametrize(
    ("machine", "given", "value", "reason"),
    [
        ({}, None, "8", "the cores that this process may use"),
        ({}, 3, "3", "num_threads was given"),
        (TWO_EACH, None, "8", "whole cores; 16 with both threads of each gain nothing"),
        (GRANTED, None, "2", "the cgroup grants 2 of 8 cores"),
        ({"cores": 1, "physical_cores": 1, "quota": 0.5}, None, "1", None),
    ],
)
def test_threads(machine, given, value, reason):
    found = choose_threads(replace(PLAIN, **machine), given)
    assert (found.name, found.value) == ("threads", value)
    assert found.reason == (reason or "the cgroup grants 0.5 of 8 cores")


@pytest.mark.parametrize(
    ("set_to", "said"),
    [
        ("1", "; OMP_NUM_THREADS is 1, which --num_threads 1 follows"),
        *(("8", ""), ("4,2", ""), (None, "")),
    ],
)
def test_another_number_in_the_environment_is_told(set_to, said):
    variables = {"OMP_NUM_THREADS": set_to} if set_to else {}
    machine = replace(PLAIN, physical_cores=8, cores=8, variables=variables)
    assert choose_threads(machine, None) == Choice(
        "threads", "8", f"the cores that this process may use{said}"
    )
    assert choose_threads(machine, 3).reason == "num_threads was given"


def test_the_machine_is_prepared(monkeypatch):
    monkeypatch.setattr(detect, "detect", lambda: replace(PLAIN, physical_cores=1))
    torch.set_num_threads(2)
    found = prepare_machine(TrainingArguments())
    assert torch.get_num_threads() == 1
    names = [choice.name for choice in found]
    assert names[:2] == ["threads", "waiting"]
    assert set(names[2:]) <= {"allocator"}


def test_a_resume_is_compared_with_what_was_chosen(tmp_path, capsys):
    """Not with what was given: auto may be the same or not."""
    chosen = {"threads": "2", "precision": "fp32", "attention": "eager", "other": "x"}
    record = {"choices": {name: {"value": value} for name, value in chosen.items()}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    before = choices_of(checkpoint)
    assert before == {n: v for n, v in chosen.items() if n != "other"}
    same = [Choice(name, value, "measured") for name, value in before.items()]
    reasons = [compared(choice, before).reason for choice in same]
    assert reasons == ["as before the resume"] * 3
    assert capsys.readouterr().err == ""
    other = Choice("precision", "bf16", "was given")
    assert compared(other, before) == other
    assert capsys.readouterr().err == ""  # train.agreement says it
    assert compared(other, {}) == other
    (tmp_path / "run.json").write_text("[]")
    assert choices_of(checkpoint) == choices_of(None) == {}


def test_a_busy_machine_is_in_the_plan(monkeypatch):
    found = {}
    for load in (1.9, 2.5):
        machine = replace(PLAIN, load=load, physical_cores=1)
        monkeypatch.setattr(detect, "detect", lambda machine=machine: machine)
        choices = prepare_machine(TrainingArguments())
        found[load] = [choice for choice in choices if choice.name == "machine"]
    said = (
        "other programs keep 2.5 of 8 cores: this run is slower, what it tries not kept"
    )
    assert found == {1.9: [], 2.5: [Choice("machine", "busy", said)]}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_use_cpu_false_without_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    args = TrainingArguments(use_cpu=False, num_threads=1)
    choices = prepare_machine(args)
    assert Choice("device", "cpu", "use_cpu is false, but there is no GPU") in choices


def test_the_allocator_can_be_tuned_twice():
    first = choose.tune_allocator()
    assert choose.tune_allocator() is first
    assert isinstance(first, bool)
    assert torch.ones(1000, 1000).sum().item() == 1e6


def test_the_allocator_elsewhere(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(choose.ctypes, "CDLL", missing)
    assert choose.tune_allocator() is False
