"""How fast a run trains: the time of its steps alone, through every resume."""

from __future__ import annotations

import time
from typing import Any, cast

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from llmft.config.fields import TrainingArguments
from llmft.train.batches import lengths_of
from llmft.train.resume import examples_seen


class StepClock(TrainerCallback, ExportableState):
    """Counts the seconds of training steps, without evaluating and saving.

    Checkpoints keep the count, so that a resumed run goes on with it.

    Attributes:
        seconds: of all steps.
    """

    def __init__(self) -> None:
        self.seconds = self._since = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Go on from the checkpoint that was resumed."""
        # Trainer saves the state of those only that the checkpoint has.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        kept = saved.get("attributes") or {}
        self.seconds = kept["seconds"] if state.global_step else 0.0
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Add the time since the step before, or since what stood between."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def _pass_over(self, *args: Any, **kw: Any) -> None:
        self._since = time.perf_counter()

    on_evaluate = on_save = on_epoch_begin = _pass_over


def training_speed(trainer: Trainer, clock: StepClock) -> dict[str, Any]:
    """Return seconds, steps, samples/s and tokens/s of a training; {} without one."""
    steps, args = trainer.state.global_step, cast(TrainingArguments, trainer.args)
    if not clock.seconds:
        return {}
    rate = examples_seen(args, trainer.train_dataset, steps) / clock.seconds
    speed = {
        "train_seconds": round(clock.seconds, 3),
        "train_samples_per_second": round(rate, 3),
        "steps": steps,
    }
    train: Any = trainer.train_dataset
    if hasattr(train, "__len__"):
        speed["epochs"] = trainer.state.epoch
        lengths = lengths_of(train)
        if lengths.max() > 1:  # else they are cached features
            speed["train_tokens_per_second"] = round(rate * float(lengths.mean()), 1)
    return speed
