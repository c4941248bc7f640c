"""What a training does about losses and gradients that are no finite numbers."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from llmft.config.facts import FAR_TOO_HIGH
from llmft.console import logger, say, warn
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.read.store import Source
from llmft.data.tokens.collate import IGNORED
from llmft.errors import DataError, EnvironmentFault, NonFiniteError, brief, listed
from llmft.machine.plan import Forecast
from llmft.model.probes import embeddings_of
from llmft.train import checkpoint, debug_batch
from llmft.train.debug_batch import Found, Part
from llmft.train.loss_watch import LossWatch
from llmft.train.memory import out_of_memory_fault
from llmft.train.narrow import transformers_model
from llmft.train.rows import places_of_rows

_TOLD = 5  # skipped steps that are told one by one; the log has all
_ROWS = 20  # rows whose count a checkpoint keeps
_LOWER = "lower learning_rate, or raise warmup_steps"
_OTHER = "use another model, or --precision fp32"


class Guards(TrainerCallback, ExportableState):
    """Stops at a step whose loss or gradient is not finite, or passes over it.

    The weights and the optimizer stay as they were before it. A step that is passed
    over counts as one: the learning rate goes on as planned, and the run ends where it
    would have. In the log it stands with the loss of the step before and a gradient of
    0.

    Args:
        args: ``TrainingArguments`` of llmft.
        folder: of the run, in which batches are kept; None keeps none.
        source: of the training data; tells where rows stand.
        forecast: what a trial says of memory.

    Attributes:
        skipped: steps that were passed over, through every resume.
        watch: warns of losses that are finite, but odd.
    """

    def __init__(
        self,
        args: Any,
        folder: Path | None = None,
        source: Source | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        self.args, self.folder, self.source = args, folder, source
        self.forecast, self.watch = forecast, LossWatch()
        self.skipped, self.in_a_row, self.last_loss = 0, 0, 0.0
        self.rows: Counter[str] = Counter()
        self.step = 0
        self._forget()

    def _forget(self) -> None:
        self.parts: list[Part] = []  # of this step: its micro-batches
        self.loss, self.fault = 0.0, ""
        self.places: list[str] = []  # of this step: its rows that are at fault
        self.total_before: Any = None  # of the losses that the next log averages

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "last_loss": self.last_loss,
            "rows": dict(self.rows.most_common(_ROWS)),
        }
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Go on from the checkpoint that is resumed; see what the model came with."""
        # Trainer saves the state of those only that the checkpoint has.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        kept = (saved.get("attributes") or {}) if state.global_step else {}
        self.skipped, self.in_a_row = kept.get("skipped", 0), kept.get("in_a_row", 0)
        self.last_loss = kept.get("last_loss", 0.0)
        self.rows = Counter(kept.get("rows", {}))
        self.watch.begin(resumed=state.global_step > 0)
        found = checkpoint.not_finite(kw["model"])
        setattr(kw["model"], checkpoint.AT_START, found)
        if found:
            shown = listed((f"{n:,} of {name}" for name, n in found.items()), 3, str)
            warn(f"values of the weights are not finite before training: {shown}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Forget the step before."""
        self._forget()
        self.step = state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Let the step go: what an evaluation runs into is not its fault."""
        self._forget()

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Say how many steps were passed over, and why."""
        if self.skipped:
            rows = (f"{row} ({n:,})" for row, n in self.rows.most_common(5))
            of = f"{self.skipped:,} of {state.global_step:,} steps"
            said = f"skipped    {of}, whose loss or gradient was not finite"
            say(": ".join(filter(None, [said, ", ".join(rows)])))

    def begin(self, trainer: Any, model: Any, batch: Any, count: Any) -> None:
        """Take note of a micro-batch before it runs; see ``--check_inputs``."""
        if self.total_before is None:
            self.total_before = trainer._tr_loss.clone()
        self.parts.append(Part(model, batch, count, torch.get_rng_state()))
        if self.args.check_inputs:
            check_batch(trainer, batch, f"step {self.step}", self.source)

    def of_loss(self, loss: torch.Tensor, trainer: Any) -> torch.Tensor:
        """Return the loss of a micro-batch; 0 for one that is passed over.

        Raises:
            NonFiniteError: it is not finite, and the training stops.
        """
        if math.isfinite(loss):
            self.loss += float(loss)
            return loss
        if not self.fault:
            self._found("loss", float(loss), trainer)
        return torch.zeros_like(loss)

    def of_gradient(self, norm: Any, trainer: Any) -> Any:
        """Return the norm of a step's gradient; 0 for one that is passed over.

        Raises:
            NonFiniteError: it is not finite, and the training stops.
        """
        if not self.fault and math.isfinite(norm):
            self.in_a_row, self.last_loss = 0, self.loss
            if said := self.watch.add(self.loss, self.step):
                _warn(said)
            return norm
        if not self.fault:
            self._found("gradient", float(norm), trainer)
        for weight in trainer.model.parameters():
            weight.grad = None  # an optimizer passes over those that have none
        trainer._tr_loss.copy_(self.total_before + self.last_loss)
        # Not before: a signal may end the step, and a resume takes it again.
        self.rows.update(self.places)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        return torch.zeros(())

    def _found(self, what: str, value: float, trainer: Any) -> None:
        """Look into a step, keep its batch, and stop or say that it is passed over."""
        self.fault = what
        found = self._looked_into(what, value, trainer)
        stops = self.args.on_nonfinite == "stop"
        over = not stops and self.in_a_row >= self.args.max_nonfinite_steps
        kept = False
        if self.folder is not None and found.rows:
            kept = debug_batch.keep(self.folder, found, trainer, stops or over)
        if stops or over:
            raise self._error(found, kept, over)
        self.places = found.places_alone
        said = f"step {self.step} is skipped: the {what} is {value}{_rows(found)}"
        if self.skipped < _TOLD:
            _warn(said)
        else:
            logger.warning("%s", said)

    def _looked_into(self, what: str, value: float, trainer: Any) -> Found:
        """Return what is known of a step; a model that cannot tell hides nothing."""
        try:
            return debug_batch.look_into(trainer, self.parts, what, value, self.source)
        except Exception as error:  # whatever a model says of a single row
            warn(f"the batch could not be looked into: {brief(error)}")
            logger.debug("the batch could not be looked into", exc_info=True)
            return Found.of(trainer, what, value)

    def _error(self, found: Found, kept: bool, over: bool) -> NonFiniteError:
        said = f"the {found.what} is {found.value} in step {self.step}"
        if over:
            said += f", after {self.in_a_row} in a row were skipped"
        known = [f"learning rate {found.learning_rate:.3g}"]
        if found.last_norm is not None:
            known.append(f"gradient norm {found.last_norm:.3g} in the step before")
        alone = bool(found.places_alone)
        hint = _OTHER if found.features or (found.gets and alone) else _LOWER
        if found.weights:
            hint = "weights of the model are not finite: use another model"
            if alone:
                hint += ", or --on_nonfinite skip"
        elif alone and not over and self.args.learning_rate <= FAR_TOO_HIGH:
            hint = "--on_nonfinite skip goes on without that step; or " + hint
        if kept and self.folder is not None:
            hint += f"; `llmft inspect {self.folder}` shows the batch"
        return NonFiniteError(said, ", ".join(known) + _rows(found), hint)

    def out_of_memory(self, error: BaseException) -> EnvironmentFault | None:
        """Return what to say of an error that is one of memory in a training."""
        if not self.parts:
            return None
        shape = self.parts[-1].shape
        return out_of_memory_fault(error, self.step, shape, self.args, self.forecast)


def _warn(said: str) -> None:
    with tqdm.external_write_mode(sys.stderr):  # takes the bar away meanwhile
        warn(said)


def _rows(found: Found) -> str:
    """Return which rows a step was made of, or which of them is at fault alone."""
    first = f"; the first module to give one is {found.module}" if found.module else ""
    if found.features:
        first = "; the features that the frozen encoder gave for it are not finite"
    elif found.gets:
        first = f"{first}, which gets numbers that are not finite"
    if found.places_alone or found.alone:
        shown = found.places_alone or [f"row {i} of the batch" for i in found.alone]
        more = ", ..." * (len(shown) > 5)
        verb = "gives" if len(shown) == 1 else "each give"
        return f", {', '.join(shown[:5])}{more} alone {verb} it{first}"
    if not found.examples:
        return first
    shown = [str(i) for i in found.examples[:5]]
    more = ", ..." * (len(found.examples) > 5)
    return f", examples {', '.join(shown)}{more} of train{first}"


Batch = dict[str, torch.Tensor]


def check_batch(trainer: Any, batch: Batch, when: str, source: Any = None) -> None:
    """Raise DataError where a batch is not what the model of a trainer expects.

    Shapes agree, ids are of the embedding, a mask is of 0 and 1 and not empty, labels
    are in their range or -100, and numbers are finite.

    Args:
        when: such as ``step 3``. source: of the training data; tells where rows stand.
    """
    wrong = _shapes(batch)
    bad: torch.Tensor | None = None
    if not wrong:
        core = transformers_model(trainer.model)
        for name, values in batch.items():
            said, bad = _values(name, values, core, trainer.objective)
            if said:
                wrong = f"{name} {said}"
                break
    if not wrong:
        return
    rows = [] if bad is None else sorted({int(i) for i in bad.nonzero()[:, 0]})
    where = ""
    if rows:
        places = places_of_rows(batch, trainer.train_dataset, source)
        shown = [", ".join(places[i]) or f"row {i} of the batch" for i in rows[:5]]
        where = f" ({'; '.join(shown)}{'; ...' * (len(rows) > 5)})"
    raise DataError(
        f"the batch of {when} is not what the model takes: {wrong}{where}",
        hint="see to the collator and the data set that made it",
    )


def _shapes(batch: Batch) -> str:
    """Return what does not agree in the shapes of a batch, or ""."""
    sizes = {name: tuple(values.shape) for name, values in batch.items()}
    shown = ", ".join(f"{name} {shape}" for name, shape in sizes.items())
    if len({shape[:1] for shape in sizes.values()}) > 1:
        return f"its parts have unlike numbers of rows: {shown}"
    wanted = sizes.get("input_ids")
    along = ("attention_mask", "token_type_ids", "position_ids")
    if wanted and any(sizes.get(name, wanted) != wanted for name in along):
        return f"their shapes differ: {shown}"
    return ""


def _values(
    name: str, values: torch.Tensor, core: Any, objective: Any
) -> tuple[str, torch.Tensor | None]:
    """Return what is wrong with the values of a part, and which of them."""
    if values.is_floating_point():
        if (bad := ~values.isfinite()).any():
            return "has numbers that are not finite", bad
    elif name == "attention_mask":
        if (bad := (values != 0) & (values != 1)).any():
            return f"has {values[bad][0].item()}, expected 0 or 1", bad
        if (bad := (values.sum(1) == 0)[:, None]).any():
            return "is 0 in a whole row", bad
    if name == "labels":
        return _labels(values, core, objective)
    limit = _limit(name, core)
    if limit is not None:
        if values.is_floating_point():
            return f"is {values.dtype}, expected whole numbers", None
        if (bad := (values < 0) | (values >= limit)).any():
            return f"has {values[bad][0].item()}, expected 0 to {limit - 1:,}", bad
    return "", None


def _limit(name: str, core: Any) -> int | None:
    """Return how many values a part of a batch may have, None where any."""
    if name == "input_ids":
        return embeddings_of(core)  # None: features stand in for it
    of = {"token_type_ids": "type_vocab_size"}
    of["position_ids"] = "max_position_embeddings"
    return getattr(core.config, of.get(name, ""), None) or None


def _labels(
    labels: torch.Tensor, core: Any, objective: Any
) -> tuple[str, torch.Tensor | None]:
    kind = getattr(objective, "problem_type", None)
    if kind in (MULTI, REGRESSION):
        if not labels.is_floating_point():
            return f"are {labels.dtype}, expected numbers with fractions", None
        if kind == MULTI and (bad := (labels < 0) | (labels > 1)).any():
            return f"have {labels[bad][0].item()}, expected 0 to 1", bad
        return "", None
    if labels.is_floating_point():
        return f"are {labels.dtype}, expected whole numbers", None
    head = core.get_output_embeddings() if kind is None else None
    size = getattr(core.config.get_text_config(), "vocab_size", math.inf)
    limit: Any = core.config.num_labels if kind == SINGLE else None
    limit = limit or getattr(head, "out_features", size)
    if (bad := ((labels < 0) & (labels != IGNORED)) | (labels >= limit)).any():
        said = f"have {labels[bad][0].item()}, expected 0 to {limit - 1:,}"
        return said + (", or -100" if kind is None else ""), bad
    if (labels == IGNORED).all():
        return "are all -100: there is nothing to learn", None
    return "", None
