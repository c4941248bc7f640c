"""Steps that fit into a time: how many, the learning rate for them, and going on."""

import statistics
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerState, get_scheduler

from llmft import process
from llmft.config.fields import DataArguments, ModelArguments, TrainingArguments
from llmft.config.parse import Arguments
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.errors import CheckpointError
from llmft.files import write_json
from llmft.machine.plan import Forecast
from llmft.runs import plan
from llmft.train import callbacks, checkpoint, resume, time_limit
from llmft.train.agreement import AlreadyComplete, require_match
from llmft.train.objectives import Classification
from llmft.train.time_limit import TimeLimit, mean_step, seconds_left, steps_within
from llmft.train.trainer import LlmftTrainer

RATE = 1e-3


class Clock:
    """The module ``time`` of a world in which only what a test says takes time."""

    now = 1000.0

    def time(self):
        return self.now

    perf_counter = time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", clock)
    return clock


class Takes(TrainerCallback):
    """Lets the clock go on: what a step takes, by its number, and what the others do.

    ``stop_after``: the step after which a signal ends the training.
    """

    def __init__(self, clock, step, evaluation=0.0, save=0.0, stop_after=None):
        self.clock, self.stop_after = clock, stop_after
        self.step = step if callable(step) else lambda number: step
        self.evaluation, self.save, self.seen = evaluation, save, []

    def on_step_end(self, args, state, control, **kw):
        self.clock.now += self.step(state.global_step)

    def on_evaluate(self, args, state, control, **kw):
        self.clock.now += self.evaluation
        self.seen.append("evaluation")

    def on_save(self, args, state, control, **kw):
        self.clock.now += self.save
        self.seen.append("save")
        if state.global_step == self.stop_after:
            raise KeyboardInterrupt


def arguments(folder, **changes):
    quiet = {"do_train": True, "report_to": "none", "disable_tqdm": True}
    quiet |= {"eval_strategy": "no", "load_best_model_at_end": False}
    quiet |= {"save_strategy": "no", "save_total_limit": None, "logging_steps": 1}
    quiet |= {"early_stopping_patience": None, "per_device_train_batch_size": 2}
    quiet |= {"learning_rate": RATE}
    return TrainingArguments(output_dir=str(folder), **(quiet | changes))


def train(wordpiece, args, limit=None, takes=None):
    """Train on 20 texts, ten steps an epoch; return the trainer."""
    encoded = wordpiece(tiny.sentences(20))
    data = Dataset.from_dict({**encoded, "label": [0, 1] * 10})
    run = tiny.Path(args.output_dir)
    args.output_dir = str(run / "checkpoints" / ".saving")
    found = callbacks.for_run(run, args)
    trainer = LlmftTrainer(
        objective=Classification(),
        model=tiny.model("bert", "classification", len(wordpiece)),
        args=args,
        data_collator=DataCollatorForClassification(wordpiece),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=wordpiece,
        callbacks=[*found, *filter(None, [takes, limit])],
    )
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except KeyboardInterrupt:
        assert takes.stop_after
    return trainer


def curve(trainer):
    """The learning rate of each step, from 1 on."""
    events = [e for e in trainer.state.log_history if "learning_rate" in e]
    return {e["step"]: e["learning_rate"] for e in events}


def rates(args, steps):
    """What transformers says of a run of ``steps``, as ``curve``."""
    warmup_steps = args.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    made = get_scheduler(kind, optimizer, warmup_steps, steps, options)
    return {n + 1: RATE * made.lr_lambdas[0](n) for n in range(steps)}


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
STRATEGIES = [
    ({}, 7),
    ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 25),
    ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 20),
    ({"eval_strategy": "steps", "eval_steps": 3}, 10),
    ({"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "epoch"}, 12),
    ({"save_strategy": "steps", "save_steps": 4}, 13),
    ({"eval_strategy": "steps", "eval_steps": 0.3}, 11),
    ({"eval_strategy": "epoch", "save_strategy": "epoch", **BEST}, 15),
]


@pytest.mark.parametrize(("changes", "steps"), STRATEGIES)
def test_steps_within_counts_what_a_training_does(wordpiece, tmp_path, changes, steps):
    """Evaluations take a quarter of a second, and checkpoints half of one."""
    args = arguments(tmp_path, max_steps=steps, **changes)
    takes = Takes(Clock(), 0.0)
    train(wordpiece, args, takes=takes)
    seconds = steps + 100
    seconds += 0.25 * takes.seen.count("evaluation") + 0.5 * takes.seen.count("save")
    forecast = Forecast(1.0, 0.25, 0.5, 100.0)
    assert steps_within(seconds, forecast, 10, args) == steps
    assert steps_within(seconds - 0.01, forecast, 10, args) < steps


@pytest.mark.parametrize(
    ("seconds", "done", "per_epoch", "strategy", "expected"),
    [
        (-5, 0, 10, "no", 1),  # late: at least one step
        (0.5, 7, 10, "no", 8),
        (10, 7, 10, "no", 17),
        (10, 10, 10, "epoch", 18),  # the evaluation at step 10 is done, one is at 18
        (12, 8, 10, "epoch", 16),
        (10, 0, None, "epoch", 8),  # a stream: one evaluation at its end
        (1e15, 0, None, "no", 2**31 - 2),
    ],
)
def test_steps_within(seconds, done, per_epoch, strategy, expected, tmp_path):
    args = arguments(tmp_path, eval_strategy=strategy)
    found = steps_within(seconds, Forecast(1.0, 2.0), per_epoch, args, done)
    assert found == expected


def test_a_mean_step_of_those_by_length():
    """The longest come first: what they took says what the mean one takes."""
    cells = [100 - i for i in range(20)]
    mean, error = mean_step([1 + 0.1 * n for n in cells], cells, 50.0)
    assert (mean, error) == (pytest.approx(6.0), pytest.approx(0.0, abs=1e-6))
    seconds = [1.0, 2.0, 3.0, 6.0]  # of equal length: the mean, s / sqrt(n)
    mean, error = mean_step(seconds, [10] * 4, 50.0)
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(statistics.stdev(seconds) / 2)


def test_the_tokens_of_a_mean_step_are_those_of_the_batches(wordpiece, tmp_path):
    """With padding, also that to a multiple."""
    args = arguments(tmp_path, train_sampling_strategy="group_by_length")
    lengths = [3, 9, 4, 12, 5, 10]
    data = Dataset.from_dict({"input_ids": [[5] * n for n in lengths]})
    data = data.add_column("length", lengths).add_column("labels", [0] * 6)
    for multiple in (None, 8):
        trainer = LlmftTrainer(
            objective=Classification(),
            model=tiny.model("bert", "classification", len(wordpiece)),
            args=args,
            data_collator=DataCollatorForClassification(
                wordpiece, pad_to_multiple_of=multiple
            ),
            train_dataset=data,
        )
        found = [b["input_ids"].numel() for b in trainer.get_train_dataloader()]
        assert sum(found) == pytest.approx(3 * time_limit._mean_cells(trainer))


FORECASTS = {  # what a trial says of steps that take a second, and the steps then
    "exact": (Forecast(1.0, final_seconds=10), 50, 50),
    "too slow": (Forecast(2.0, final_seconds=10), 25, 50),
    # Twice as slow as planned, of what follows, too: 20 seconds are left for it.
    "too fast": (Forecast(0.5, final_seconds=10), 100, 40),
}


@pytest.mark.parametrize("name", FORECASTS)
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
def test_a_plan_is_corrected_and_the_rate_with_it(
    wordpiece, tmp_path, clock, capsys, name, kind
):
    """More steps than an epoch has; 60 seconds, ten of them planned for the end."""
    trial, planned, steps = FORECASTS[name]
    args = arguments(tmp_path, lr_scheduler_type=kind, warmup_steps=0.06)
    limit = TimeLimit("60s", 60.001, trial)
    trainer = train(wordpiece, args, limit, Takes(clock, 1.0))
    assert trainer.state.global_step == trainer.state.max_steps == steps
    found, final = curve(trainer), rates(args, steps)
    corrected = limit_said(capsys.readouterr().out, planned, steps)
    assert list(found) == list(range(1, steps + 1))
    for step in range(corrected + 1, steps + 1):
        assert found[step] == pytest.approx(final[step], rel=1e-12)
    before = rates(args, planned)
    for step in range(1, corrected + 1):
        assert found[step] == pytest.approx(before[step], rel=1e-12)
    warming = [found[n] for n in range(1, args.get_warmup_steps(steps) + 1)]
    assert warming == sorted(warming)
    logged = trainer.state.log_history[-1]
    assert logged["train_samples_per_second"] == pytest.approx(
        2 * logged["train_steps_per_second"], abs=0.01
    )


def limit_said(said, planned, steps):
    """Return after which step the plan was corrected; 0: never."""
    lines = [line for line in said.splitlines() if "fit into 60s" in line]
    assert len(lines) == (planned != steps)
    if not lines:
        return 0
    assert f": {steps} steps (not {planned}) fit into" in lines[0]
    assert lines[0].endswith("epochs, at 1 s a step")
    return int(lines[0].split(":")[0].split()[-1])


def test_a_correction_is_from_all_that_was_seen(wordpiece, tmp_path, clock):
    """Later steps are slower: only what a tenth of them took is known."""
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=5, save_strategy="epoch"
    )
    takes = Takes(clock, lambda n: 5.0 if n == 1 else 1.0, evaluation=3.0, save=2.0)
    limit = TimeLimit("200s", 200.0, Forecast(1.0, save_seconds=2.0))
    trainer = train(wordpiece, args, limit, takes)
    # The first plan knew of no evaluations. 200 s: the slow first step, 116 steps, 24
    # evaluations and 12 checkpoints take 4 + 116 + 72 + 24 > 200.
    steps = trainer.state.global_step
    taken = 4 + steps + 3 * -(-steps // 5) + 2 * -(-steps // 10)
    assert taken <= 200 < taken + 1 + 3 + 2
    assert clock.now - 1000 == taken


@pytest.mark.parametrize(
    ("planned", "error", "steps"),
    [
        (2.0, 0.0, 15 + 285),
        (2.0, 0.1, 126 + 145),  # two standard errors more: 1.2 s
        (1.1, 0.1, 137 + 148),  # chance alone may tell it from the plan
        (0.5, 0.1, 60 + 240),  # longer than planned: as it was measured
    ],
)
def test_steps_are_no_more_than_was_measured(
    wordpiece, tmp_path, clock, monkeypatch, planned, error, steps
):
    """A second each in the mean, known but for ``error``; the second time at half."""
    monkeypatch.setattr(time_limit, "mean_step", lambda *given: (1.0, error))
    limit = TimeLimit("300s", 300.001, Forecast(planned))
    trainer = train(wordpiece, arguments(tmp_path), limit, Takes(clock, 1.0))
    assert trainer.state.global_step == steps


def test_a_machine_that_gets_slower_is_seen_at_half(wordpiece, tmp_path, clock):
    """From step 21 on it takes two seconds: 80 of 100 are over at the fiftieth."""
    limit = TimeLimit("100s", 100.001, Forecast(1.0))
    takes = Takes(clock, lambda n: 1.0 + (n > 20))
    steps = train(wordpiece, arguments(tmp_path), limit, takes).state.global_step
    assert 50 + 10 <= steps <= 50 + 20


def test_warm_up_does_not_begin_again(wordpiece, tmp_path, clock):
    """The plan was three times too short: its warm-up is over at the correction."""
    args = arguments(tmp_path, warmup_steps=0.06)
    limit = TimeLimit("300s", 300.001, Forecast(10.0))
    found = list(curve(train(wordpiece, args, limit, Takes(clock, 1.0))).values())
    assert len(found) == 300
    assert found[:3] == [0, RATE / 2, RATE]
    # From step 4 on in the decay of the longer plan; at half it may be a step longer.
    assert all(b < 1.005 * a for a, b in pairwise(found[4:]))
    assert found[4] > found[3] > 0.9 * RATE
    assert found[-1] < RATE / 200


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("stop_after", [2, 10, 15])
def test_going_on(wordpiece, tmp_path, clock, stop_after):
    """A plan that was corrected stays, to the byte; another one is, within its time."""
    options = {"save_strategy": "steps", "save_steps": 1, "time_limit": "60s"}
    options |= {"warmup_steps": 0.3}

    def run(name, stop_after=None, **changes):
        args = arguments(tmp_path / name, **(options | changes))
        takes = Takes(clock, 1.0, stop_after=stop_after)
        (tmp_path / name).mkdir(exist_ok=True)
        args.time_limit = None  # its own is of this process
        limit = TimeLimit("60s", 60.001, Forecast(0.5))
        return train(wordpiece, args, limit, takes)

    whole = run("whole")
    steps = whole.state.global_step
    assert 50 <= steps <= 60
    cut = run("cut", stop_after)
    assert cut.state.global_step == stop_after
    folder = tmp_path / "cut" / "checkpoints" / f"checkpoint-{stop_after}"
    resumed = run("cut", resume_from_checkpoint=str(folder))
    if stop_after == 15:
        assert cut.state.max_steps == steps
        assert weights(resumed).equal(weights(whole))
        assert curve(resumed) == curve(whole)
    else:
        # The clock starts anew: what was left at the checkpoint is left.
        assert abs(resumed.state.global_step - steps) <= 1
        assert list(curve(resumed).values())[-1] < RATE / 20


def saved(tmp_path, record, **changes):
    """A checkpoint of step 8 of 20 in a run under a limit of 60s."""
    run = tmp_path / "run"
    folder = run / "checkpoints" / "checkpoint-8"
    folder.mkdir(parents=True)
    TrainerState(global_step=8, max_steps=20).save_to_json(
        str(folder / "trainer_state.json")
    )
    args = arguments(run, resume_from_checkpoint=str(folder), time_limit="60s")
    asked = Arguments(ModelArguments("tiny"), DataArguments(), args, {})
    values = {name: entry["value"] for name, entry in asked.resolved().items()}
    manifest = {
        "step": changes.get("step", 8),
        "belongs_to": checkpoint.identity({"recipe": "mlm"}, values),
        "versions": {},
    }
    (folder / "manifest.json").write_text(checkpoint.sealed(manifest))
    write_json(run / "run.json", record)
    return asked


def test_a_resume_keeps_the_plan(tmp_path, capsys):
    """Without a word of another schedule, and not under another limit."""
    args = saved(tmp_path, {"status": "interrupted"})
    require_match("mlm", args, {}, range(20))
    assert resume.training_steps(args.training, range(20)) == 20
    plan.show(plan.make_plan(args.training, [], range(20)), args.training)
    out, err = capsys.readouterr()
    assert "as many steps of 2 examples as fit into 60s: 20, 2 epochs, lear" in out
    assert err == ""
    args.training.time_limit = "2m"
    with pytest.raises(CheckpointError, match="time_limit was 60s, is 2m"):
        require_match("mlm", args, {}, range(20))


def test_nothing_is_left_of_a_complete_one(tmp_path):
    args = saved(tmp_path, {"status": "complete"}, step=20)
    said = "nothing is left to do; give its weights as --model_name_or_path"
    with pytest.raises(CheckpointError, match=said):
        require_match("mlm", args, {}, range(20))


def test_a_complete_one_is_found_by_the_same_command(tmp_path, capsys):
    record = {"status": "complete", "recipe": "mlm", "steps": 20}
    args = saved(tmp_path, record | {"plan": {"steps": 23}}, step=20)
    args.training.goes_on = True
    with pytest.raises(CheckpointError, match="it does not belong to this run: "):
        require_match("mlm", args, {}, range(20))
    record |= {"arguments": args.resolved(), "plan": {"steps": 23}}
    write_json(tmp_path / "run" / "run.json", record)
    (tmp_path / "run" / "model").mkdir()
    capsys.readouterr()
    with pytest.raises(AlreadyComplete):
        require_match("mlm", args, {}, range(20))
    said = f"already complete (20 of 20 steps): {tmp_path / 'run'}\n"
    assert capsys.readouterr() == (said, "")
    args.training.time_limit = "2m"
    with pytest.raises(CheckpointError, match="time_limit was 60s, is 2m"):
        require_match("mlm", args, {}, range(20))


def test_a_time_begins_with_the_process_or_as_it_says(monkeypatch):
    monkeypatch.setattr(time_limit.time, "time", lambda: 1000.0)
    created = SimpleNamespace(create_time=lambda: 100.0)
    monkeypatch.setattr(time_limit.psutil, "Process", lambda: created)
    assert seconds_left("20m") == 300
    before = process.began.set(990.0)
    try:
        assert seconds_left("20m") == 1190
    finally:
        process.began.reset(before)
