"""What a training shows while it runs: one bar, and a line for each evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.utils import is_in_notebook

from llmft.console import say
from llmft.train.resume import examples_seen

_REDRAW_SECONDS, _LOG_SECONDS = 0.2, 15.0
_LINE = "{desc}: {percentage:.0f}% of {total_fmt}, {elapsed}, {remaining} left{postfix}"


class _Lines:
    """Standard error for bars where it is a file: each state on a line of its own.

    What moves the cursor is left out, and so is a state that stands there already.
    """

    last = ""

    def write(self, text: str) -> None:
        plain = text.replace("\x1b[A", "")
        for state in filter(None, map(str.strip, plain.split("\r"))):
            if state.partition(",")[0] != self.last:
                self.last = state.partition(",")[0]
                sys.stderr.write(f"  {state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int | None, doing: str, unit: str, leave: bool = True) -> tqdm:
    """Return a bar on standard error: one that moves in a terminal or a notebook.

    Elsewhere, as in a log file, it is a line every 15 seconds, none before.
    """
    options: dict[str, Any] = {"mininterval": _REDRAW_SECONDS, "dynamic_ncols": True}
    if not (sys.stderr.isatty() or is_in_notebook()):
        options = {"mininterval": _LOG_SECONDS, "delay": _LOG_SECONDS}
        options |= {"maxinterval": _LOG_SECONDS, "bar_format": _LINE, "file": _Lines()}
    return tqdm(total=total, desc=doing, unit=unit, leave=leave, **options)


class Progress(ProgressCallback):
    """One bar with loss, samples/s and the remaining time; a line an evaluation.

    The line has the loss and the metric that decides which checkpoint is the best, how
    much it changed, and whether it is the best so far. All metrics are in the log.
    """

    training_bar: Any
    prediction_bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Open the bar."""
        self.training_bar = progress_bar(state.max_steps, "training", "step")
        self._started, self._first_step = time.perf_counter(), state.global_step
        self.training_bar.update(state.global_step)
        self.current_step = state.global_step
        self._shown: dict[str, str] = {}
        # Of what a resumed run did before, where it did.
        name = _decides(args)
        seen = [event[name] for event in state.log_history if name in event]
        self._last, self._best = (seen[-1:] or [None])[0], state.best_metric

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Advance the bar and its samples/s."""
        data = getattr(kw.get("train_dataloader"), "dataset", None)
        examples = examples_seen(args, data, state.global_step, self._first_step)
        seconds = time.perf_counter() - self._started
        self._shown["samples/s"] = f"{examples / seconds:.1f}"
        self.training_bar.set_postfix(self._shown, refresh=False)
        self.training_bar.total = state.max_steps  # a time limit corrects them
        super().on_step_end(args, state, control, **kw)

    def on_prediction_step(
        self, *args: Any, eval_dataloader: Any = None, **kw: Any
    ) -> None:
        """Advance the bar of an evaluation."""
        if self.prediction_bar is None:
            batches = len(eval_dataloader)
            self.prediction_bar = progress_bar(batches, "evaluating", "batch", False)
        self.prediction_bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any
    ) -> None:
        """Show the loss in the bar, and each evaluation on a line of its own."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
        if "eval_loss" in logs:
            epochs = has_epochs(kw) and "epoch" in logs
            at = f"epoch {logs['epoch']:.3g}" if epochs else f"step {state.global_step}"
            said = f"  {at:<11} {self._evaluated(args, logs)}"
            with tqdm.external_write_mode():  # takes the bars away meanwhile
                say(said)

    def _evaluated(self, args: Any, logs: dict[str, float]) -> str:
        """Return what an evaluation found, in a line."""
        name = _decides(args)
        said = f"loss {logs['eval_loss']:.4g}"
        if name not in logs:
            return said
        value, last = logs[name], self._last
        self._last = value
        if name != "eval_loss":
            said += f", {name.removeprefix('eval_')} {value:.4g}"
        if last is not None:
            said += f" ({value - last:+.2g})"
        above = 1 if args.greater_is_better else -1
        if self._best is None or above * (value - self._best) > 0:
            self._best = value
            said += ", the best so far" if last is not None else ""
        return said


def _decides(args: Any) -> str:
    """Return the metric that decides which checkpoint is the best, as it is logged."""
    return f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"


def close(callbacks: Iterable[TrainerCallback]) -> None:
    """Leave the bars as they are, so that what is said next has its own line."""
    for callback in callbacks:
        if isinstance(callback, Progress):
            for bar in (callback.prediction_bar, callback.training_bar):
                if bar is not None:
                    bar.close()


def has_epochs(given: dict[str, Any]) -> bool:
    """Tell from what a callback is given whether it trains on more than a stream."""
    train = getattr(given.get("train_dataloader"), "dataset", None)
    return hasattr(train, "__len__")
