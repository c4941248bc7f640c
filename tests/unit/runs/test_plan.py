"""The plan of a run: steps, time, memory and disk, as printed and for programs."""

import shutil
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from llmft import process
from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.errors import ConfigError, EnvironmentFault
from llmft.machine.plan import Forecast
from llmft.runs import plan as module
from llmft.runs.plan import make_plan, show, took
from llmft.tasks.plan import plan

OFF = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
FULL = Forecast(
    step_seconds=2.0,
    evaluation_seconds=5.0,
    save_seconds=1.0,
    final_seconds=20.0,
    peak_bytes=10 * 2**30,
    checkpoint_bytes=3 * 2**30,
    model_bytes=2**30,
)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(module, "allowed_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr(module, "allowed_text", lambda: "16.0 GiB (what is free)")
    disk = SimpleNamespace(free=99 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
    monkeypatch.setattr(module, "seconds_left", lambda limit: 60.0)


@pytest.mark.parametrize(
    ("given", "forecast", "train", "said"),
    [
        (
            {"num_train_epochs": 2.5},
            None,
            range(17),
            "  training   8 steps of 8 examples, 2.67 epochs, learning rate 5e-05\n"
            "  logging    once, after the last step\n"
            "  time       not known, as memory is: nothing was tried\n",
        ),
        (
            {"time_limit": "1m"},
            Forecast(2.0, final_seconds=20),
            range(17),
            "  training   as many steps of 8 examples as fit into 1m: about 20, 6.67"
            " epochs, learning rate 5e-05\n"
            "  time       about 60 s from here: "
            "training (2 s a step) 40 s, the end 20 s;"
            " tried before\n",
        ),
        (
            {"time_limit": "2m"},
            Forecast(2.0, final_seconds=20),
            range(17),
            "  training   as many steps of 8 examples as fit into 2m, 60 s of which are"
            " gone: about 20, 6.67 epochs, learning rate 5e-05\n"
            "  time       about 60 s from here: "
            "training (2 s a step) 40 s, the end 20 s;"
            " tried before\n",
        ),
        (
            {"time_limit": "1m"},
            Forecast(2.0, trial_seconds=3.25),
            iter([]),
            "  training   as many steps of 8 examples as fit into 1m: about 30, a"
            " stream, learning rate 5e-05\n"
            "  time       about 60 s from here: "
            "training (2 s a step) 60 s; trying took 3.2 s\n",
        ),
        (
            {"num_train_epochs": 4, "save_strategy": "epoch", "eval_strategy": "epoch"},
            FULL,
            range(17),  # four checkpoints, of which three are there at once
            "  training   12 steps of 8 examples, 4 epochs, learning rate 5e-05\n"
            "  time       about 68 s from here: "
            "training (2 s a step) 24 s, evaluating 20 s,"
            " checkpoints 4 s, the end 20 s; tried before\n"
            "  memory     9.0 to 11.0 GiB at the most, of 16.0 GiB (what is free)\n"
            "  disk       up to 10.0 GiB, of 99.0 GiB that are free\n",
        ),
        (
            # Each evaluation may be the best so far, whatever save_steps is.
            {"num_train_epochs": 4, "save_strategy": "best", "eval_strategy": "epoch"},
            FULL,
            range(17),
            "  training   12 steps of 8 examples, 4 epochs, learning rate 5e-05\n"
            "  time       about 68 s from here: "
            "training (2 s a step) 24 s, evaluating 20 s,"
            " checkpoints 4 s, the end 20 s; tried before\n"
            "  memory     9.0 to 11.0 GiB at the most, of 16.0 GiB (what is free)\n"
            "  disk       up to 10.0 GiB, of 99.0 GiB that are free\n",
        ),
        ({"do_train": False}, FULL, None, None),
    ],
)
def test_what_the_plan_says(tmp_path, capsys, given, forecast, train, said):
    args = TrainingArguments(str(tmp_path), **{"do_train": True, **OFF, **given})
    chosen = [Choice("threads", "1", "for the test")]
    made = make_plan(args, chosen, train, forecast)
    show(made, args)
    printed = capsys.readouterr().out
    begin = "plan\n  threads    1 (for the test)\n"
    if said is None:  # an evaluation alone
        assert (made.steps, made.disk_bytes) == (0, 0)
        assert sum(made.seconds.values()) == forecast.final_seconds
    else:
        assert printed == begin + said


@pytest.mark.parametrize(
    ("probe", "end", "said"),
    [
        (0.0, 20.0, ""),
        (40.0, 19.0, ""),
        (0.0, 70.0, "72 s are needed, 60 s of the time limit are left: give a longer"),
        (50.0, 20.0, "give a longer one, or --ladder false (50 s)"),
    ],
)
def test_a_time_limit_that_is_too_short_is_told(tmp_path, capsys, probe, end, said):
    args = TrainingArguments(str(tmp_path), do_train=True, time_limit="2m", **OFF)
    forecast = Forecast(2.0, final_seconds=end, probe_seconds=probe)
    made = make_plan(args, [], range(17), forecast)
    show(made, args)
    told = capsys.readouterr().err
    assert ("of the time limit are left" in told) == bool(said)
    assert said in told


@pytest.mark.parametrize(
    ("steps", "kind", "warned"),
    [(3, "linear", True), (4, "cosine", True), (5, "linear", False),
     (3, "constant", False), (3, "constant_with_warmup", True)],
)  # fmt: skip
def test_a_rate_that_never_reaches_its_height_is_told(
    tmp_path, capsys, steps, kind, warned
):
    given = {"max_steps": steps, "warmup_steps": 4, "lr_scheduler_type": kind, **OFF}
    args = TrainingArguments(str(tmp_path), do_train=True, **given)
    show(make_plan(args, [], range(17)), args)
    said = f"the learning rate rises for 4 steps, of {steps} in all, and never"
    assert (said in capsys.readouterr().err) is warned


@pytest.mark.parametrize(("rate", "warned"), [(0.05, False), (0.051, True)])
def test_a_rate_that_is_far_too_high_is_told(tmp_path, capsys, rate, warned):
    args = TrainingArguments(str(tmp_path), do_train=True, learning_rate=rate, **OFF)
    show(make_plan(args, [], range(17)), args)
    said = f"learning_rate {rate:g} is far above what models of text take"
    assert (said in capsys.readouterr().err) is warned


def test_what_is_left_of_a_resumed_run(tmp_path, monkeypatch):
    state = TrainerState(global_step=3, max_steps=12)
    for step in (2, 3):  # which make room for those to come
        (last := tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    monkeypatch.setattr(module, "saved_state", lambda args: state)
    args = TrainingArguments(
        str(tmp_path),
        do_train=True,
        num_train_epochs=4,
        resume_from_checkpoint=str(last),
    )
    made = make_plan(args, [], range(17), FULL)
    seconds = made.seconds
    assert made.disk_bytes == FULL.checkpoint_bytes + FULL.model_bytes
    assert seconds["training"] == 9 * FULL.step_seconds
    assert seconds["checkpoints"] == 3 * FULL.save_seconds
    assert seconds["evaluating"] == 3 * FULL.evaluation_seconds


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
    disk = SimpleNamespace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
    args = TrainingArguments(str(tmp_path / "a" / "b"), do_train=True)
    with pytest.raises(EnvironmentFault) as refused:
        make_plan(args, [], range(17), FULL)
    assert refused.value.exit_code == 5
    assert "need 10.0 GiB on the disk, which has 1.0 GiB" in refused.value.found
    make_plan(TrainingArguments(str(tmp_path), do_train=True, **OFF), [], None, FULL)


def test_the_plan_for_programs(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from llmft.train.time_limit import seconds_left\n"
        "def main(argv):\n"
        "    print(argv)\n"
        "    return argv, seconds_left('1m')\n"
    )
    before = process.began.set(1.0)  # a notebook that was opened long ago
    words, left = plan(recipe, ["--seed", "1"])
    assert words == ["--seed", "1", "--dry_run"]
    assert left > 0
    assert process.began.get() == 1.0
    process.began.reset(before)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="no recipe"):
        plan(tmp_path / "other.py")
    (tmp_path / "args.json").write_text('{"do_train": true}')
    with pytest.raises(ConfigError, match="no recipe"):
        plan(tmp_path / "args.json")


@pytest.mark.parametrize(("allowed", "warned"), [(12, False), (10, True)])
def test_memory_that_may_run_out(tmp_path, monkeypatch, capsys, allowed, warned):
    monkeypatch.setattr(module, "allowed_bytes", lambda: allowed * 2**30)
    args = TrainingArguments(str(tmp_path), do_train=True, **OFF)
    show(make_plan(args, [], range(17), FULL), args)
    assert ("memory may run out" in capsys.readouterr().err) is warned


def test_what_it_took_stands_beside_the_plan(tmp_path):
    args = TrainingArguments(str(tmp_path), do_train=True, **OFF)
    made = make_plan(args, [], range(17), FULL)
    assert took(made, 5, 12.0, 9 * 2**30) == (
        "training 12 s (plan of 5 steps: 10 s), memory 9.0 GiB at the most (plan: 9.0"
        " to 11.0 GiB)"
    )
