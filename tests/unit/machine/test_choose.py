"""The table of choices, on machines that are faked, and their effect on a run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from unit.machine.test_detect import PLAIN

from llmft.config.choice import Choice
from llmft.config.fields import ModelArguments, TrainingArguments
from llmft.machine import choose as fastpath
from llmft.machine import detect
from llmft.machine.choose import Given, choose
from llmft.machine.measure import Measurement

SPEEDS = Measurement(
    threads=2,
    fp32_gflops=160,
    bf16_gflops=390,
    bandwidth_gb_s=20,
    length=128,
    eager_ms=5.0,
    sdpa_ms=8.0,
)


@pytest.fixture(autouse=True)
def _threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


MACHINES = {
    "AVX512-BF16": ({}, {}, ("8", "bf16", "eager")),
    "AMX": ({}, {"fp32_gflops": 360, "bf16_gflops": 2900}, ("8", "bf16", "eager")),
    "no bf16 unit": ({}, {"bf16_gflops": 2.0}, ("8", "fp32", "eager")),
    "bf16 unit that does not pay": (
        {},
        {"fp32_gflops": 330, "bf16_gflops": 169},
        ("8", "fp32", "eager"),
    ),
    "one core": ({"cores": 1, "physical_cores": 1}, {}, ("1", "bf16", "eager")),
    "half a core": (
        {"cores": 1, "physical_cores": 1, "quota": 0.5},
        {},
        ("1", "bf16", "eager"),
    ),
    "64 cores of two threads": (
        {"cores": 128, "physical_cores": 64, "logical_cores": 128},
        {},
        ("64", "bf16", "eager"),
    ),
    "ARM without bf16": (
        {"architecture": "aarch64", "features": ("neon",)},
        {"fp32_gflops": 60, "bf16_gflops": 20},
        ("8", "fp32", "eager"),
    ),
    "macOS": (
        {"cpu": "Apple M3", "architecture": "arm64", "features": ("neon", "bf16")},
        {"fp32_gflops": 900, "bf16_gflops": 300, "sdpa_ms": 3.0},
        ("8", "fp32", "sdpa"),
    ),
    "long sequences": ({}, {"length": 1024, "sdpa_ms": 2.0}, ("8", "bf16", "sdpa")),
}


@pytest.mark.parametrize("name", MACHINES)
def test_choices(name):
    machine, speeds, expected = MACHINES[name]
    found = choose(replace(PLAIN, **machine), replace(SPEEDS, **speeds), Given())
    assert tuple(c.value for c in found) == expected
    assert [c.name for c in found] == ["threads", "precision", "attention"]
    assert all(c.reason for c in found)


def test_what_the_user_gave_wins_with_a_word_where_it_is_slower():
    slow = replace(SPEEDS, bf16_gflops=2.0)
    given = Given(threads=3, precision="bf16", attn_implementation="sdpa")
    assert choose(PLAIN, slow, given) == [
        Choice("threads", "3", "num_threads was given"),
        Choice(
            "precision",
            "bf16",
            "was given; bf16 multiplies 0.013 times as fast as fp32: 2 and 160 GFLOP/s;"
            " the other is faster here",
        ),
        Choice("attention", "sdpa", "was given"),
    ]


def test_a_busy_machine_decides_by_what_is_clear():
    noisy = replace(SPEEDS, busy=True, eager_ms=9.0)
    assert [c.value for c in choose(PLAIN, noisy, Given())] == ["8", "fp32", "eager"]
    assert "other programs run" in choose(PLAIN, noisy, Given())[1].reason
    amx = replace(noisy, bf16_gflops=900, length=512)
    assert [c.value for c in choose(PLAIN, amx, Given())] == ["8", "bf16", "sdpa"]


def test_a_resumed_run_keeps_its_choices(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    monkeypatch.setattr(fastpath, "measure", lambda machine, threads, length: SPEEDS)
    choices = {"precision": {"value": "fp32"}, "attention": {"value": "sdpa"}}
    (tmp_path / "run.json").write_text(json.dumps({"choices": choices}))
    args = TrainingArguments(do_train=True, num_threads=1)
    args.resume_from_checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    choices = fastpath.choose_fast_path(args, ModelArguments(), 128)
    found = {c.name: c.value for c in choices}
    assert (found["precision"], found["attention"]) == ("fp32", "sdpa")
    kept = [c.name for c in choices if c.reason == "as before the resume"]
    assert kept == ["precision", "attention"]
    assert args.bf16 is False
    of_gpu = json.dumps({"choices": {"precision": {"value": "fp16"}}})
    for record in ("[]", of_gpu):
        (tmp_path / "run.json").write_text(record)
        args.bf16, args.precision = False, "auto"
        found = {
            c.name: c.value
            for c in fastpath.choose_fast_path(args, ModelArguments(), 128)
        }
        assert (found["precision"], found["attention"]) == ("bf16", "eager")


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_resume_warns_of_other_sums(tmp_path, monkeypatch, capsys, on_gpu):
    """What was chosen is compared, not what was given: auto may be the same or not."""
    monkeypatch.setattr(detect, "detect", lambda: replace(PLAIN, physical_cores=1))
    monkeypatch.setattr(fastpath, "measure", lambda machine, threads, length: SPEEDS)
    chosen = {"threads": "2", "precision": "fp32", "attention": "eager"}
    chosen = {name: {"value": value} for name, value in chosen.items()}
    (tmp_path / "run.json").write_text(json.dumps({"choices": chosen}))
    args = TrainingArguments(do_train=True, precision="bf16")
    args.resume_from_checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    if on_gpu:
        monkeypatch.setattr(
            TrainingArguments, "device", property(lambda self: torch.device("cuda"))
        )
    fastpath.choose_fast_path(args, ModelArguments(attn_implementation="sdpa"), 128)
    said = capsys.readouterr().err.splitlines()
    now = {"threads": "1", "precision": "bf16", "attention": "sdpa"}
    assert said == [
        f"llmft: warning: {name} was {chosen[name]['value']} before this resume, is"
        f" {now[name]} from now on: other sums"
        for name in (["precision"] if on_gpu else now)
    ]
    args = TrainingArguments(do_train=True, num_threads=2, precision="fp32")
    args.resume_from_checkpoint = str(tmp_path / "checkpoints" / "checkpoint-3")
    fastpath.choose_fast_path(args, ModelArguments(), 128)
    assert capsys.readouterr().err == ""


def test_a_busy_machine_is_in_the_plan(monkeypatch):
    monkeypatch.setattr(fastpath, "measure", lambda machine, threads, length: SPEEDS)
    found = {}
    for load in (1.9, 2.5):
        machine = replace(PLAIN, load=load, physical_cores=1)
        monkeypatch.setattr(detect, "detect", lambda machine=machine: machine)
        choices = fastpath.choose_fast_path(TrainingArguments(), ModelArguments(), 128)
        found[load] = [choice for choice in choices if choice.name == "machine"]
    said = "other programs keep 2.5 of 8 cores: this run will be slower"
    assert found == {1.9: [], 2.5: [Choice("machine", "busy", said)]}


def test_reasons_of_the_threads():
    two = replace(PLAIN, cores=16, physical_cores=8, logical_cores=16)
    assert choose(two, SPEEDS, Given())[0].reason == (
        "whole cores; 16 with both threads of each gain nothing"
    )
    granted = replace(PLAIN, cores=2, physical_cores=2, quota=2.0)
    assert choose(granted, SPEEDS, Given())[0].reason == (
        "the cgroup grants 2 of 8 cores"
    )


def test_sampling_takes_sdpa():
    assert choose(PLAIN, SPEEDS, Given(trains=False))[2].value == "sdpa"


@pytest.mark.parametrize(
    ("bf16", "given", "precision"),
    [
        (390, {}, "bf16"),
        (100, {}, "no"),
        (390, {"precision": "fp32"}, "no"),
        (100, {"bf16": True}, "bf16"),
    ],
)
def test_prepare_sets_what_it_chose(monkeypatch, capsys, bf16, given, precision):
    machine = replace(PLAIN, physical_cores=1)
    monkeypatch.setattr(detect, "detect", lambda: machine)
    speeds = replace(SPEEDS, bf16_gflops=bf16)
    monkeypatch.setattr(fastpath, "measure", lambda machine, threads, length: speeds)
    args, model_args = TrainingArguments(do_train=True, **given), ModelArguments()
    torch.set_num_threads(2)
    choices = fastpath.choose_fast_path(args, model_args, 128)
    assert torch.get_num_threads() == 1
    assert args.mixed_precision == precision
    assert args.bf16 is (precision == "bf16")
    assert model_args.attn_implementation == "eager"
    assert [c.name for c in choices][:3] == ["threads", "precision", "attention"]
    warned = (
        "warning: precision bf16 was given; bf16 multiplies" in capsys.readouterr().err
    )
    assert warned is (given == {"bf16": True})


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
def test_precision_on_a_gpu_is_what_was_asked_for(given, value):
    args = SimpleNamespace(use_cpu=False, fp16=False, bf16=False, precision="auto")
    vars(args).update(num_threads=None, do_train=True, device=torch.device("cuda"))
    vars(args).update(resume_from_checkpoint=None, do_eval=False, do_predict=False)
    vars(args).update(given)
    choices = fastpath.choose_fast_path(args, ModelArguments(), 128)
    assert choices == [Choice("precision", value, "not measured on cuda")]
    assert args.bf16 is (value == "bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_use_cpu_false_without_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(detect, "detect", lambda: PLAIN)
    monkeypatch.setattr(fastpath, "measure", lambda machine, threads, length: SPEEDS)
    args = TrainingArguments(use_cpu=False, num_threads=1)
    choices = fastpath.choose_fast_path(args, ModelArguments(), 128)
    assert Choice("device", "cpu", "use_cpu is false, but there is no GPU") in choices


def test_the_allocator_can_be_tuned_twice():
    first = fastpath.tune_allocator()
    assert fastpath.tune_allocator() is first
    assert isinstance(first, bool)
    assert torch.ones(1000, 1000).sum().item() == 1e6


def test_the_allocator_elsewhere(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(fastpath.ctypes, "CDLL", missing)
    assert fastpath.tune_allocator() is False
