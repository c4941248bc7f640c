"""As many optimizer steps as fit into a time, and a learning rate to match."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, get_scheduler
from transformers.trainer_callback import ExportableState

from llmft.config.convert import duration
from llmft.config.fields import TrainingArguments
from llmft.console import say
from llmft.machine.plan import Forecast
from llmft.train.resume import epoch_steps, saved_state

UNPLANNED = 2**31 - 1  # max_steps until the first steps have been timed
_TIMED = 4  # steps for the first plan without a trial; the first is slower
# Guesses, without a trial: of checkpoints with their hashes (350e6 to 420e6 seen on 2
# cores of an AMD EPYC), and of the end of a command beside evaluating and saving.
_BYTES_A_SECOND, _END_SECONDS = 500e6, 2.0


def seconds_left(limit: str) -> float:
    """Return what is left of a time that began with this process."""
    return psutil.Process().create_time() + duration(limit) - time.time()


def steps_within(
    seconds: float,
    forecast: Forecast,
    steps_per_epoch: int | None,
    args: TrainingArguments,
    done: int = 0,
) -> int:
    """Return the last step of a training that ends after so many seconds.

    Evaluations, checkpoints and what follows are among them; it is at least one step.

    Args:
        steps_per_epoch: None for a stream, which counts as one epoch.
        done: steps before these seconds, whose evaluation and checkpoint are done, too.
    """

    def due(strategy: str, every: float | None, last: int) -> int:
        if strategy == "epoch":
            every = steps_per_epoch or last
        if strategy == "no" or not every:
            return 0
        every = math.ceil(last * every) if every < 1 else every
        return math.ceil(last / every) - int(done // every)

    def taken(last: int) -> float:
        evaluations = due(args.eval_strategy, args.eval_steps, last)
        saves = due(args.save_strategy, args.save_steps, last)
        if args.save_strategy == "best" or args.load_best_model_at_end:
            saves = max(saves, evaluations)  # if each is the best so far
        return (
            (last - done) * forecast.step_seconds
            + evaluations * forecast.evaluation_seconds
            + saves * forecast.save_seconds
            + forecast.final_seconds
        )

    most = min(int(max(seconds, 0.0) / forecast.step_seconds), UNPLANNED - 1 - done)
    fitting = bisect_right(range(done + 1, done + most + 1), seconds, key=taken)
    return done + max(fitting, 1)


def lay_out(scheduler: Any, args: Any, steps: int, warmup_steps: int) -> None:
    """Let a running scheduler go on as one that was made for ``steps``.

    One that goes by a metric (reduce_lr_on_plateau, greedy) stays as it is.
    """
    if not hasattr(scheduler, "lr_lambdas"):
        return
    optimizer = scheduler.optimizer
    other = torch.optim.SGD([torch.zeros(1)], lr=optimizer.defaults["lr"])
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    made: Any = get_scheduler(kind, other, warmup_steps, steps, options)
    (factor,) = made.lr_lambdas
    scheduler.lr_lambdas = [factor for _ in scheduler.base_lrs]
    rates = [rate * factor(scheduler.last_epoch) for rate in scheduler.base_lrs]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def mean_step(
    seconds: Sequence[float], cells: Sequence[int], mean_cells: float | None
) -> float:
    """Return the seconds of a mean step from those of the first ones.

    Args:
        cells: tokens of each step, with padding.
        mean_cells: of all steps; None: those that were timed are like the others.
    """
    if mean_cells is None:
        return fmean(seconds)
    if len(seconds) > 2 * _TIMED and np.std(cells) > 0.05 * np.mean(cells):
        slope, intercept = np.polyfit(cells, seconds, 1)
        if slope > 0 and intercept > 0:
            return float(intercept + slope * mean_cells)
    return sum(seconds) / sum(cells) * mean_cells


class TimeLimit(TrainerCallback, ExportableState):
    """Plans the steps of a training, and corrects the plan once after a tenth of them.

    Args:
        limit: such as 5m.
        seconds: what is left of it.
        trial: what a trial has found; None: the first steps are the trial.

    Attributes:
        cells: tokens of all batches so far, with padding; the trainer counts them.
        plan_at: the step after which the plan is made or corrected; None when it stays.
    """

    cells = 0
    plan_at: int | None = None

    def __init__(
        self, limit: str, seconds: float, trial: Forecast | None = None
    ) -> None:
        self.limit, self.trial = limit, trial
        self._made = time.time()
        self.deadline = self._made + seconds
        self._warmup_steps: int | None = None
        self._since, self._cells_before = 0.0, 0
        self._evaluated_before = False
        self._step_cells: list[int] = []
        self._taken: dict[str, list[float]] = {"step": [], "evaluate": [], "save": []}

    @classmethod
    def from_args(cls, args: Any, trial: Forecast | None = None) -> TimeLimit:
        """Return the one that ``TrainingArguments`` of llmft ask for."""
        return cls(args.time_limit, seconds_left(args.time_limit), trial)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {
            "seconds_left": self.deadline - time.time(),
            "plan_at": self.plan_at,
            "warmup_steps": self._warmup_steps,
            "trial": self.trial and asdict(self.trial),
        }
        return {"args": {}, "attributes": kept}

    def begin(self, trainer: Any) -> None:
        """Set ``max_steps`` of the trainer's arguments, from what is known by now.

        A run that is resumed keeps that of its checkpoint.
        """
        args, train = trainer.args, trainer.train_dataset
        self._batch = args.train_batch_size * args.gradient_accumulation_steps
        has_length = hasattr(train, "__len__")
        self.steps_per_epoch = epoch_steps(args, train) if has_length else None
        self._mean_cells = None
        if args.train_sampling_strategy == "group_by_length" and has_length:
            if "length" in train.column_names:  # the longest come first
                self._mean_cells = fmean(train["length"][:]) * self._batch
        self._evaluation_batches = len(trainer.eval_dataset or ()) / self._batch
        weights = [(p.nbytes, p.requires_grad) for p in trainer.model.parameters()]
        self._bytes = sum(size * (1 + 2 * trained) for size, trained in weights)
        if args.resume_from_checkpoint:
            args.max_steps = saved_state(args).max_steps
            return
        args.max_steps, self.plan_at = UNPLANNED, _TIMED
        if self.trial is not None:
            left = self.deadline - time.time()
            args.max_steps = steps_within(left, self.trial, self.steps_per_epoch, args)
            self._correct_after_a_tenth(args.max_steps, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Begin to time; take over what the checkpoint to resume has."""
        self._before = time.time() - self._made
        if self._warmup_steps is None:
            self._warmup_steps = args.get_warmup_steps(state.max_steps)
        # Trainer saves the state of those only that the checkpoint has.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        kept = saved.get("attributes") or {}
        if state.global_step and kept:
            self.deadline += kept["seconds_left"] - duration(self.limit)
            self._warmup_steps = kept["warmup_steps"]
            if kept["trial"] and not self.trial:
                self.trial = Forecast(**kept["trial"])
            lay_out(kw["lr_scheduler"], args, state.max_steps, self._warmup_steps)
            self.plan_at = kept["plan_at"]
            if self.plan_at is not None:
                self.plan_at = max(self.plan_at, state.global_step + _TIMED)
        self._first = state.global_step
        self._train_seconds = self.deadline - time.time()
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Make or correct the plan where it is time."""
        if self.plan_at is None or state.global_step == self._first:
            return
        left = self.deadline - time.time()
        slow = state.max_steps == UNPLANNED and left < 0.9 * self._train_seconds
        if state.global_step >= self.plan_at or slow:
            self._plan(left, args, state, kw["lr_scheduler"])

    def _plan(self, left: float, args: Any, state: Any, scheduler: Any) -> None:
        done, before = state.global_step, state.max_steps
        forecast = self._forecast(args)
        steps = steps_within(left, forecast, self.steps_per_epoch, args, done)
        warmup_steps = args.get_warmup_steps(steps)
        if warmup_steps > done:  # else it is over in either plan
            warmup_steps = min(warmup_steps, self._warmup_steps or 0)
        self._warmup_steps = warmup_steps
        args.max_steps = state.max_steps = steps
        state.compute_steps(args, steps)
        if self.steps_per_epoch:
            state.num_train_epochs = math.ceil(steps / self.steps_per_epoch)
        lay_out(scheduler, args, steps, warmup_steps)
        self.plan_at = None
        if before == UNPLANNED:
            self._correct_after_a_tenth(steps, done)
        self._say(steps, before, done, forecast)

    def _correct_after_a_tenth(self, steps: int, done: int) -> None:
        tenth = max(math.ceil(steps / 10), done + _TIMED)
        self.plan_at = tenth if tenth < steps else None

    def _forecast(self, args: Any) -> Forecast:
        """Return what was measured, and of the trial, or guessed, what was not."""
        skip = 1 if len(self._taken["step"]) > 1 else 0  # the first is slower
        timed, cells = self._taken["step"][skip:], self._step_cells[skip:]
        step = mean_step(timed, cells, self._mean_cells)
        found = self.trial or self._guess(step, args)
        measured = {"step_seconds": step}
        for name, kind in (("evaluation", "evaluate"), ("save", "save")):
            if self._taken[kind]:
                measured[f"{name}_seconds"] = fmean(self._taken[kind])
        return replace(found, **measured)

    def _guess(self, step: float, args: Any) -> Forecast:
        """Return what else takes time, if one step takes so many seconds.

        A forward pass is a third of a step; what came before training, such as samples
        of the model, comes after it again.
        """
        evaluation = step / 3 * self._evaluation_batches
        save = self._bytes / _BYTES_A_SECOND
        evaluations = args.do_eval + args.do_predict - self._evaluated_before
        final = self._before + max(evaluations, 0) * evaluation + save + _END_SECONDS
        return Forecast(step, evaluation, save, final)

    def _say(self, steps: int, before: int, done: int, forecast: Forecast) -> None:
        if steps == before:
            return
        epochs = ""
        if self.steps_per_epoch:
            epochs = f", {steps / self.steps_per_epoch:.3g} epochs"
        verb = "fit into" if before == UNPLANNED else f"(not {before:,}) fit into"
        with tqdm.external_write_mode():  # takes the bar away meanwhile
            say(
                f"  step {done:,}: {steps:,} steps {verb} {self.limit}{epochs}, at"
                f" {forecast.step_seconds:.3g} s a step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Time the step, and count its tokens."""
        self._lap("step")
        self._step_cells.append(self.cells - self._cells_before)
        self._cells_before = self.cells

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Leave out what stood before the epoch."""
        self._since = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Time the evaluation, if it is one in training."""
        if self._since:
            self._lap("evaluate")
        else:
            self._evaluated_before = True

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Time the checkpoint."""
        self._lap("save")

    def _lap(self, kind: str) -> None:
        now = time.perf_counter()
        self._taken[kind].append(now - self._since)
        self._since = now
