"""As many optimizer steps as fit into a time, and a learning rate to match."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, get_scheduler
from transformers.trainer_callback import ExportableState

from llmft import process
from llmft.config.convert import duration
from llmft.config.fields import TrainingArguments
from llmft.console import say
from llmft.machine.plan import Forecast
from llmft.train.batches import Batches
from llmft.train.resume import epoch_steps, evaluations_and_saves, saved_state

ENDLESS = 2**31 - 1  # more steps than any training has
_TIMED = 4  # steps that a correction is made from, at the least; the first is slower
_ERRORS = 2.0  # standard errors that a step has to be below the planned one


def seconds_left(limit: str) -> float:
    """Return what is left of a time that began with this process, or as it says."""
    began = process.began.get() or psutil.Process().create_time()
    return began + duration(limit) - time.time()


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

    def taken(last: int) -> float:
        evaluations, saves = evaluations_and_saves(args, last, steps_per_epoch, done)
        return (
            (last - done) * forecast.step_seconds
            + evaluations * forecast.evaluation_seconds
            + saves * forecast.save_seconds
            + forecast.final_seconds
        )

    most = min(int(max(seconds, 0.0) / forecast.step_seconds), ENDLESS - 1 - done)
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
    seconds: list[float], cells: list[int], mean_cells: float
) -> tuple[float, float]:
    """Return the seconds of a mean step from those of the first ones, and its error.

    Args:
        cells: tokens of each step, with padding.
        mean_cells: of all steps: where the longest come first, the first have more.
    """
    degree = int(len(seconds) > _TIMED and np.std(cells) > 0.05 * np.mean(cells))
    x = np.array(cells) - mean_cells
    line, covariance = np.polyfit(x, seconds, degree, cov=True)
    return float(line[-1]), math.sqrt(covariance[-1, -1])


class TimeLimit(TrainerCallback, ExportableState):
    """Lays out the steps of a training; corrects them after a tenth, and at half.

    Args:
        limit: such as 5m.
        seconds: what is left of it.
        trial: what steps that were tried say of the whole run.

    Attributes:
        cells: tokens of all batches so far, with padding; the trainer counts them.
        not_again: seconds before the training of what does not come after it again, or
            is among what follows it already.
        correct_at: the step after which steps are corrected; None when they stay.
    """

    cells = 0
    not_again = 0.0
    correct_at: int | None = None

    def __init__(self, limit: str, seconds: float, trial: Forecast) -> None:
        self.limit, self.forecast = limit, trial
        self._made = time.time()
        self.deadline = self._made + seconds
        self._warmup_steps: int | None = None
        self._since, self._cells_before = 0.0, 0
        self._step_cells: list[int] = []
        self._taken: dict[str, list[float]] = {"step": [], "evaluation": [], "save": []}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {
            "seconds_left": self.deadline - time.time(),
            "correct_at": self.correct_at,
            "warmup_steps": self._warmup_steps,
        }
        return {"args": {}, "attributes": kept}

    def begin(self, trainer: Any) -> None:
        """Set ``max_steps`` of the trainer's arguments, from what was tried.

        A run that is resumed keeps that of its checkpoint.
        """
        args, train = trainer.args, trainer.train_dataset
        has_length = hasattr(train, "__len__")
        self.steps_per_epoch = epoch_steps(args, train) if has_length else None
        self._mean_cells = _mean_cells(trainer) if has_length else None
        # Samples before training come after it again.
        samples = max(time.time() - self._made - self.not_again, 0.0)
        final = self.forecast.final_seconds + samples
        self.forecast = replace(self.forecast, final_seconds=final)
        if args.resume_from_checkpoint:
            args.max_steps = saved_state(args).max_steps
            return
        left = self.deadline - time.time()
        steps = steps_within(left, self.forecast, self.steps_per_epoch, args)
        tenth = max(math.ceil(steps / 10), _TIMED)
        args.max_steps, self.correct_at = steps, tenth if tenth < steps else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Begin to time; take over what the checkpoint to resume has."""
        if self._warmup_steps is None:
            self._warmup_steps = args.get_warmup_steps(state.max_steps)
        # Trainer saves the state of those only that the checkpoint has.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        kept = saved.get("attributes") or {}
        if state.global_step and kept:
            self.deadline += kept["seconds_left"] - duration(self.limit)
            self._warmup_steps = kept["warmup_steps"]
            lay_out(kw["lr_scheduler"], args, state.max_steps, self._warmup_steps)
            self.correct_at = kept.get("correct_at")
            if self.correct_at is not None:
                early = _is_early(self.correct_at, state.max_steps)
                at = max(self.correct_at, state.global_step + _TIMED)
                self.correct_at = at if early else None  # once corrected, they stay
        self._since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Correct the steps where it is time."""
        done, before = state.global_step, state.max_steps
        if self.correct_at is None or done < self.correct_at:
            return
        left, forecast = self.deadline - time.time(), self._measured()
        steps = steps_within(left, forecast, self.steps_per_epoch, args, done)
        warmup_steps, early = args.get_warmup_steps(steps), _is_early(done, steps)
        if warmup_steps > done or not early:  # else it is over in either plan
            warmup_steps = min(warmup_steps, self._warmup_steps or 0)
        self._warmup_steps = warmup_steps
        self.correct_at = steps // 2 if early else None
        args.max_steps = state.max_steps = steps
        state.compute_steps(args, steps)
        epochs = ""
        if self.steps_per_epoch:
            state.num_train_epochs = math.ceil(steps / self.steps_per_epoch)
            epochs = f", {steps / self.steps_per_epoch:.3g} epochs"
        lay_out(kw["lr_scheduler"], args, steps, warmup_steps)
        if steps != before:
            with tqdm.external_write_mode():  # takes the bar away meanwhile
                say(
                    f"  step {done:,}: {steps:,} steps (not {before:,}) fit into"
                    f" {self.limit}{epochs}, at {forecast.step_seconds:.3g} s a step"
                )

    def _measured(self) -> Forecast:
        """Return the forecast with what was measured by now.

        A step is taken for shorter than planned only as far as that is no chance. What
        makes it longer does so to all that follows: a machine that others use.
        """
        timed, cells = self._taken["step"][1:], self._step_cells[1:]  # the first: slow
        mean, error = mean_step(timed, cells, self._mean_cells or fmean(cells))
        planned = self.forecast.step_seconds
        step = max(mean, min(mean + _ERRORS * error, planned))
        found: dict[str, Any] = {"step_seconds": step}
        slower = max(step / planned, 1.0)
        for kind in ("evaluation", "save", "final"):
            name, taken = f"{kind}_seconds", self._taken.get(kind)
            found[name] = (
                fmean(taken) if taken else slower * getattr(self.forecast, name)
            )
        return replace(self.forecast, **found)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Time the step, and count its tokens."""
        self._lap("step")
        self._step_cells.append(self.cells - self._cells_before)
        self._cells_before = self.cells

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Leave out what stood before the epoch."""
        self._since = time.perf_counter()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kw: Any
    ) -> None:
        """Time the evaluation."""
        if self._since:
            self._lap("evaluation")
        else:
            self.not_again += metrics["before_runtime"]

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Time the checkpoint."""
        self._lap("save")

    def _lap(self, kind: str) -> None:
        now = time.perf_counter()
        self._taken[kind].append(now - self._since)
        self._since = now


def _is_early(done: int, steps: int) -> bool:
    return 4 * done <= steps


def _mean_cells(trainer: Any) -> float:
    """Return the tokens of a mean step, with padding."""
    args = trainer.args
    strategy = args.train_sampling_strategy
    batches = Batches(trainer.train_dataset, args.train_batch_size, strategy, args.seed)
    multiple = getattr(trainer.data_collator, "pad_to_multiple_of", None) or 1
    lengths = -(-batches.lengths // multiple) * multiple
    cells = lengths * batches.sizes
    return float(cells.mean()) * args.gradient_accumulation_steps
