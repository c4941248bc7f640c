"""The speed of a training is that of its steps, through every resume."""

import pytest
from datasets import Dataset
from transformers import TrainerState

from llmft.config.fields import TrainingArguments
from llmft.runs import speed
from llmft.runs.speed import StepClock, training_speed


class _Time:
    """A clock that tests set."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    time = _Time()
    monkeypatch.setattr(speed, "time", time)
    clock = StepClock()

    def happen(name, at, **state):
        time.now = at
        getattr(clock, name)(None, TrainerState(**state), None)

    clock.happen = happen
    return clock


def test_evaluating_and_saving_do_not_count(clock):
    clock.happen("on_train_begin", 100)
    clock.happen("on_step_end", 103)  # 3
    clock.happen("on_step_end", 105)  # 2
    clock.happen("on_evaluate", 155)
    clock.happen("on_save", 165)
    clock.happen("on_epoch_begin", 170)
    clock.happen("on_step_end", 174)  # 4
    assert clock.seconds == 9


def test_a_resumed_run_goes_on_counting(clock):
    saved = {"StepClock": {"attributes": {"seconds": 40.0}}}
    clock.happen("on_train_begin", 7, global_step=30, stateful_callbacks=saved)
    clock.happen("on_step_end", 9)
    assert clock.seconds == 42.0
    assert StepClock.from_state(clock.state()).seconds == 42.0


def test_a_new_training_counts_from_nothing(clock):
    """The state that a trainer begins with holds the callbacks as they are."""
    own = {"StepClock": {"args": {}, "attributes": {"seconds": 3.0}}}
    clock.happen("on_train_begin", 1, global_step=0, stateful_callbacks=own)
    assert clock.seconds == 0


class _Trained:
    def __init__(self, args, train, steps):
        self.args, self.train_dataset = args, train
        self.state = TrainerState(global_step=steps, epoch=1.5)


@pytest.mark.parametrize(
    ("steps", "examples"),
    [
        (2, 12),  # 3 steps an epoch of 17 examples in batches of 6
        (3, 17),
        (5, 29),
        (6, 34),
    ],
)
def test_samples_and_tokens_a_second(tmp_path, steps, examples):
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=3, gradient_accumulation_steps=2
    )
    train = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 17})
    clock = StepClock()
    clock.seconds = 10.0
    found = training_speed(_Trained(args, train, steps), clock)
    assert found == {
        "train_seconds": 10.0,
        "train_samples_per_second": examples / 10,
        "steps": steps,
        "epochs": 1.5,
        "train_tokens_per_second": 4 * examples / 10,
    }
    endless = training_speed(_Trained(args, iter(train), steps), clock)
    assert endless["train_samples_per_second"] == steps * 6 / 10
    # To Trainer a stream is one pass, which says nothing of its epochs.
    assert not {"train_tokens_per_second", "epochs"} & endless.keys()
    assert training_speed(_Trained(args, train, 0), StepClock()) == {}
