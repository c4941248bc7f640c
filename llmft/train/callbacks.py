"""What hooks into Trainer: the log, the masks' epoch, the best checkpoint."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from transformers import EarlyStoppingCallback as _EarlyStoppingCallback
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from llmft.config.convert import duration
from llmft.console import say, warn
from llmft.files import finite, read_object, to_json
from llmft.machine.plan import Forecast
from llmft.train import checkpoint, resume
from llmft.train.progress import Progress, has_epochs
from llmft.train.time_limit import TimeLimit, seconds_left


class MetricsLog(TrainerCallback):
    """Append every logged event to ``metrics.jsonl`` as strict JSON.

    With a loss go the samples/s of the steps since the one before, and the memory.

    Args:
        leg: 1, and one more after each resume.
        done: the step up to which a resumed run has logged there.
    """

    def __init__(self, path: Path, leg: int, done: int = 0) -> None:
        self.path, self.leg, self.done = path, leg, done
        self.seconds, self.began, self.since = 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Start the clock of a step."""
        if not self.seconds:
            self.since = state.global_step
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self.began

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any
    ) -> None:
        """Write one line; values that are not finite become null."""
        if state.global_step < self.done:  # measured before training, once more
            return
        event = {
            "step": state.global_step,
            "leg": self.leg,
            "time": round(time.time(), 3),
            **(logs or {}),
        }
        if "loss" in event and self.seconds:
            data = getattr(kw.get("train_dataloader"), "dataset", None)
            steps = state.global_step, self.since
            examples = resume.examples_seen(args, data, *steps)
            event["samples_per_second"] = round(examples / self.seconds, 3)
            event["rss_bytes"] = psutil.Process().memory_info().rss
            self.seconds = 0.0
        line = to_json({name: finite(value) for name, value in event.items()})
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")


class TensorBoard(TensorBoardCallback):
    """Trainer's, in ``logs`` of a run; shows a curve once where the run is resumed.

    Args:
        done: as of ``MetricsLog``. What was logged from that step on is purged, and
            what the checkpoint knows of the step itself is logged again.
    """

    def __init__(self, logs: Path, done: int) -> None:
        super().__init__()
        self.logging_dir, self.done = str(logs), done

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Begin where the checkpoint ends."""
        plain: Any = self._SummaryWriter
        purging: Any = partial(plain, purge_step=self.done or None)
        self._SummaryWriter = purging
        super().on_train_begin(args, state, control, **kw)
        self._SummaryWriter = plain  # another one, of what follows, purges nothing
        for event in state.log_history if self.done else ():
            if event["step"] == self.done:
                logs = {n: value for n, value in event.items() if n != "step"}
                super().on_log(args, state, control, logs=logs)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any
    ) -> None:
        """Log what is new."""
        if state.global_step >= self.done:
            super().on_log(args, state, control, logs=logs, **kw)


class MaskEpoch(TrainerCallback):
    """Tell the collator the epoch, on which its masks depend."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Set the epoch, counted from 0."""
        collator = kw["train_dataloader"].collate_fn
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(math.floor((state.epoch or 0) + 1e-6))


class Checkpoints(TrainerCallback):
    """Publish what Trainer saves, and say which one the model is from at the end.

    Args:
        root: their folder; Trainer's ``output_dir`` is one of ``checkpoint.saving``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Find the best one of a resumed run again; its folder may have moved."""
        if not state.best_global_step:
            return
        roots = [self.root, Path(str(args.resume_from_checkpoint)).parent]
        if state.best_model_checkpoint:
            roots.append(Path(state.best_model_checkpoint).parent)
        folders = [root / f"checkpoint-{state.best_global_step}" for root in roots]
        there = [str(folder) for folder in folders if folder.is_dir()]
        state.best_model_checkpoint = there[0] if there else None
        if not there and args.load_best_model_at_end:
            warn(
                f"{folders[0]}, the best so far, is gone: the run ends with its last"
                " model unless a better one follows"
            )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kw: Any
    ) -> None:
        """Have the best so far saved, also where evaluations are more than saves.

        Trainer calls best what was never saved then, and ends with another model.
        """
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        value, best = (metrics or {}).get(name), state.best_metric
        if args.load_best_model_at_end and value is not None:
            is_better = best is None or (value > best) is bool(args.greater_is_better)
            control.should_save |= is_better and value != best

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Publish it. Raises NonFiniteError, see ``checkpoint.require_finite``."""
        if kw.get("model") is not None:
            checkpoint.require_finite(kw["model"], state.global_step)
        checkpoint.publish(args, state, self.root)

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Name the best checkpoint, which Trainer has loaded by now."""
        if args.early_stopping_patience and state.global_step < state.max_steps:
            name = args.metric_for_best_model.removeprefix("eval_")
            at = f"step {state.global_step:,} of {state.max_steps:,}"
            say(
                f"stopped    at {at}: {name} did not improve in"
                f" {args.early_stopping_patience} evaluations"
                " (early_stopping_patience, early_stopping_threshold)"
            )
        if not args.load_best_model_at_end:
            return
        if not state.best_model_checkpoint:
            gone = f"checkpoint-{state.best_global_step} is gone"
            why = gone if state.best_global_step else "no checkpoint was measured"
            say(f"best       {why}: the model is the last one")
            return
        epochs = [
            event["epoch"]
            for event in state.log_history
            if event.get("step") == state.best_global_step and "epoch" in event
            if has_epochs(kw)
        ]
        epoch = f" (epoch {epochs[-1]:.3g})" if epochs else ""
        name = args.metric_for_best_model.removeprefix("eval_")
        folder = Path(state.best_model_checkpoint).name
        say(f"best       {folder}{epoch}: {name} {state.best_metric:.4g}")


class SaveAfterEvaluation(TrainerCallback):
    """Let a checkpoint at the end of an epoch wait for the evaluation there.

    Saved before, it would not know what the evaluation says, nor that the loss of the
    epoch was logged, and a resume would go on otherwise than the run did.
    """

    _waits = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Put off what is due in the last step of an epoch, or of the training."""
        # Of a stream, the first steps are a tiny part of an epoch.
        whole = state.epoch > 0.5 and abs(state.epoch - round(state.epoch)) < 1e-6
        by_epoch = "epoch" in (args.eval_strategy, args.logging_strategy)
        last = control.should_training_stop or state.global_step >= state.max_steps
        if control.should_save and by_epoch and (whole or last):
            control.should_save, self._waits = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Have it saved; Trainer evaluates first."""
        if self._waits:
            control.should_save, self._waits = True, False


class SaveByClock(TrainerCallback):
    """Save after some time without a checkpoint; what that takes is measured.

    Args:
        seconds: so long; longer where saving would take more than ``SHARE`` of it.
    """

    SHARE = 0.05

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._saved = self._since = time.monotonic()

    @classmethod
    def from_args(cls, args: Any) -> list[SaveByClock]:
        """Return the one that ``TrainingArguments`` of llmft ask for, if any."""
        off = args.save_seconds in (None, "0") or args.save_strategy == "no"
        return [] if off else [cls(duration(args.save_seconds))]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Save where it is time."""
        self._since = time.monotonic()
        control.should_save |= self._since - self._saved >= self.seconds

    def _pass_over(self, *args: Any, **kw: Any) -> None:
        self._since = time.monotonic()

    on_log = on_evaluate = on_epoch_end = _pass_over

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Measure what it took; be content with fewer where that is much."""
        self._saved = time.monotonic()
        took = self._saved - self._since
        self._since = self._saved
        least = took / self.SHARE
        if least > self.seconds:
            self.seconds = least
            warn(
                f"a checkpoint takes {took:.3g} s: by the clock there is one every"
                f" {least:.3g} s, not {args.save_seconds} (save_seconds)"
            )


class EndOfPass(TrainerCallback):
    """Evaluate and save by epoch where a pass over a stream ends.

    To Trainer a stream is one pass; it says itself when a later one has begun.
    """

    due, done = False, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Have done what is due, unless the training ends, too."""
        if self.due and state.global_step < state.max_steps:
            self.done = state.global_step
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Do nothing twice, where early stopping ends the training with a pass."""
        if self.done == state.global_step > 0:
            control.should_evaluate &= args.eval_strategy != "epoch"
            control.should_save &= args.save_strategy != "epoch"


class EarlyStoppingCallback(_EarlyStoppingCallback):
    """Stops after evaluations without gain; counts on where a run is resumed.

    Args:
        early_stopping_patience: so many evaluations; None never stops.
        early_stopping_threshold: the smallest gain that is one.
    """

    def __init__(
        self,
        early_stopping_patience: int | None,
        early_stopping_threshold: float = 0.0,
    ) -> None:
        super().__init__(early_stopping_threshold=early_stopping_threshold)
        self.early_stopping_patience: Any = early_stopping_patience

    @classmethod
    def from_args(cls, args: Any) -> EarlyStoppingCallback:
        """Return the one that ``TrainingArguments`` of llmft ask for."""
        return cls(args.early_stopping_patience, args.early_stopping_threshold)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Take the count over. Trainer could restore it, with the older patience."""
        # The checkpoint may be of a run without early stopping.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if self.early_stopping_patience is not None:
            super().on_train_begin(args, state, control, **kw)
            counted = resume.evaluations_without_gain(state)
            self.early_stopping_patience_counter = counted

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, **kw: Any
    ) -> None:
        """Count, and stop where it is time."""
        if self.early_stopping_patience is not None:
            super().on_evaluate(args, state, control, **kw)


def for_run(
    folder: Path, args: Any, leg: int = 1, trial: Forecast | None = None
) -> list[TrainerCallback]:
    """Return what sends log, curves, progress and checkpoints to a run folder.

    Args:
        folder: of the run. leg: see ``MetricsLog``.
        args: its ``llmft.config.fields.TrainingArguments``.
        trial: what a trial says of its time; ``TimeLimit`` needs it.
    """
    found: list[TrainerCallback] = [] if args.disable_tqdm else [Progress()]
    resumed, done = args.resume_from_checkpoint, 0
    if resume.is_of(resumed, folder):
        done = read_object(Path(resumed) / TRAINER_STATE_NAME).get("global_step", 0)
    found.append(MetricsLog(folder / "metrics.jsonl", leg, done))
    if "tensorboard" in args.report_to:
        found.append(TensorBoard(folder / "logs", done))
    found.append(Checkpoints(folder / "checkpoints"))
    found += [*SaveByClock.from_args(args), SaveAfterEvaluation(), MaskEpoch()]
    # The last one, so that what the others do is in the time that it takes.
    if args.time_limit:
        assert trial is not None
        left = seconds_left(args.time_limit)
        found.append(TimeLimit(args.time_limit, left, trial))
    return found
