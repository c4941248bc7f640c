"""Where a training can stop, and what it needs to go on exactly from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.trainer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from llmft.console import warn
from llmft.data.tokens.stream import Passes
from llmft.errors import brief
from llmft.signals import postponed, stopped_by
from llmft.train.randomness import generator_states, set_generators


class WholeSteps(TrainerCallback, ExportableState):
    """Keeps in checkpoints what Trainer leaves out, and saves one before a signal ends.

    That is the loss since the last line of the log, an evaluation that was due, and
    the place in a stream. A signal may come in the middle of a step: what is saved is
    the end of the one before, with the random numbers of that moment.

    Attributes:
        position: of the last block of the step in hand, as ``Passes`` has it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._forget()

    def _forget(self) -> None:
        self.position: list[int] | None = None
        self._position: list[int] | None = None  # of the last whole step
        self._generators: tuple[Any, ...] | None = None
        self._before: tuple[float, float, Any] | None = None  # None: between steps
        self._saved, self._tried = 0, False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        trainer = self.trainer
        if not hasattr(trainer, "_tr_loss"):  # before the first training
            return {"args": {}, "attributes": {}}
        kept = {
            "loss": float(trainer._tr_loss),
            "total_loss": trainer._total_loss_scalar,
            "logged_step": trainer._globalstep_last_logged,
            "evaluates": bool(trainer.control.should_evaluate),
            "position": self._position,
        }
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Take over what the checkpoint that is resumed has."""
        self._forget()
        # Trainer saves the state of those only that the checkpoint has.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        kept = saved.get("attributes") or {}
        trainer, stream = self.trainer, self.trainer.train_dataset
        self._saved = state.global_step
        if state.global_step:
            args.eval_on_start = False  # it was done before the first step
            state.compute_steps(args, state.max_steps)  # not those of before
        else:
            kept = {}
        self._position = kept.get("position")
        if isinstance(stream, Passes):
            stream.position = self._position
        if not kept:
            return
        trainer._tr_loss.fill_(kept["loss"])
        trainer._total_loss_scalar = kept["total_loss"]
        trainer._globalstep_last_logged = kept["logged_step"]
        if kept["evaluates"]:
            # Trainer sets the generators later, and this is saved once more.
            trainer._load_rng_state(args.resume_from_checkpoint)
            control.should_evaluate = True
            control.should_save = args.save_strategy != SaveStrategy.NO
            loss, model = trainer._tr_loss, trainer.model_wrapped
            trainer._maybe_log_save_evaluate(loss, None, model, None, 0, None, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Note what the batches of a step add to."""
        trainer = self.trainer
        seen = state.num_input_tokens_seen
        self._before = float(trainer._tr_loss), trainer.current_flos, seen

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, **kw: Any
    ) -> None:
        """Nothing is whole until the step has ended."""
        self._generators = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Note the random numbers and the place in a stream."""
        self._generators, self._before = generator_states(), None
        self._position = self.position

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Note what need not be saved again."""
        self._saved = state.global_step

    def mean_loss(self) -> float:
        """Return the loss of all steps, at their end, also of those before a resume."""
        trainer = self.trainer
        return trainer._total_loss_scalar / max(trainer.state.global_step, 1)

    def save_before(self, error: BaseException) -> None:
        """Save the last whole step, if a signal is what ended the training.

        Not where nothing is to be saved (``save_strategy no``).
        """
        trainer = self.trainer
        state, args = trainer.state, trainer.args
        whole = self._generators is not None and self._saved != state.global_step
        if not stopped_by() or not whole or args.save_strategy == SaveStrategy.NO:
            return
        if self._tried:  # a second Ctrl-C
            return
        self._tried = True
        assert self._generators is not None
        set_generators(self._generators)
        if self._before is not None:
            loss, trainer.current_flos, state.num_input_tokens_seen = self._before
            trainer._tr_loss.fill_(loss)
        try:
            with postponed():
                trainer._save_checkpoint(trainer.model_wrapped, trial=None)
                handler, control = trainer.callback_handler, trainer.control
                trainer.control = handler.on_save(args, state, control)
        except Exception as fault:
            warn(f"step {state.global_step:,} could not be saved: {brief(fault)}")


@contextmanager
def from_its_position(data: Any) -> Iterator[None]:
    """Have Trainer skip no batches where ``data`` begin where a resume goes on."""
    skip = transformers.trainer.skip_first_batches
    if isinstance(data, Passes) and data.position is not None:
        transformers.trainer.skip_first_batches = lambda loader, count: loader
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skip
