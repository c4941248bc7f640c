"""The one Trainer subclass: what llmft needs inside the step, and no more."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.trainer
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch.utils.data import Subset
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from llmft.config.facts import BY_METRIC
from llmft.data.tokens.stream import Passes, Stream
from llmft.errors import CheckpointError, NonFiniteError, brief, listed
from llmft.files import failpoint
from llmft.machine.choose import release_memory
from llmft.model.adapters import how_to_save
from llmft.signals import interruptible, postponed
from llmft.train import resume
from llmft.train.batches import lengths_of
from llmft.train.callbacks import EndOfPass
from llmft.train.guards import Guards
from llmft.train.objectives import Objective
from llmft.train.randomness import drawing_apart
from llmft.train.time_limit import ENDLESS, TimeLimit
from llmft.train.whole_steps import WholeSteps, from_its_position


class LongestFirst(Subset):
    """The examples of a data set by length.

    Args:
        examples: a ``datasets.Dataset``.
    """

    def __init__(self, examples: Any) -> None:
        lengths = np.zeros(len(examples))
        if "input_ids" in examples.column_names:  # else features of a frozen encoder
            lengths = lengths_of(examples)
        super().__init__(examples, np.argsort(-lengths, kind="stable").tolist())

    def undo(self, values: Any) -> Any:
        """Return an array of one row an example in the order of the data set."""
        if values is None:
            return None
        ordered = np.empty_like(values)
        ordered[self.indices] = values
        return ordered


class GroupedByLength(LengthGroupedSampler):
    """Draws its order from seed and epoch, as accelerate does for a random order.

    That of Trainer goes on with torch's generator, which in the middle of an epoch is
    not where it was at its start. Trainer also hands over a column of the data set,
    from which the sampler reads each length by itself: 2.8 s an epoch for 50,000 rows,
    0.01 s with a list.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        lengths, generator = sampler.lengths[:], torch.Generator()
        super().__init__(sampler.batch_size, lengths=lengths, generator=generator)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch; Trainer calls this."""
        self.generator.manual_seed(self.seed + epoch)


class LlmftTrainer(Trainer):
    """``transformers.Trainer`` that computes only what a loss needs, and stops at NaN.

    Args:
        objective: what is computed of a model and a batch.
        callbacks: one that is given takes the place of Trainer's own of that class, or
            of one that it derives from; nothing is printed or drawn without one.
        Otherwise as Trainer. Evaluations take the longest examples first, and what
        ``compute_metrics`` gets is in the order of the data again.
    """

    loss_is_scaled_for_ga = True  # by the labels of the whole step

    def __init__(
        self,
        *,
        objective: Objective,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ):
        if compute_metrics is not None:
            kwargs["compute_metrics"] = lambda found: compute_metrics(
                EvalPrediction(*self.in_order(found.predictions, found.label_ids))
            )
        kwargs.setdefault("preprocess_logits_for_metrics", _logits_alone)
        if isinstance(stream := kwargs.get("train_dataset"), Stream):
            kwargs["train_dataset"] = Passes(stream)
        self.loaders: dict[int, tuple[Any, Any]] = {}  # by the data set they evaluate
        self.end_of_pass = EndOfPass()
        self.whole_steps = WholeSteps(self)
        given = [*(callbacks or []), self.end_of_pass, self.whole_steps]
        guards = [c for c in given if isinstance(c, Guards)]
        self.guards = guards[0] if guards else Guards(kwargs["args"])
        given += [] if guards else [self.guards]
        limits = [c for c in given if isinstance(c, TimeLimit)]
        self.time_limit = limits[0] if limits else None
        if self.time_limit:  # of a stream, Trainer wants them here
            kwargs["args"].max_steps = ENDLESS
        self.objective: Objective = objective
        _set_mode(kwargs["args"])
        super().__init__(callbacks=given, **kwargs)
        self.model_accepts_loss_kwargs = False  # the count of labels is the objective's
        self.label_names = ["labels"]  # LUKE has others, too, and would go without loss
        theirs = {base for ours in given for base in type(ours).__mro__}
        # In a notebook it is another one.
        theirs |= {PrinterCallback, transformers.trainer.DEFAULT_PROGRESS_CALLBACK}
        self.callback_handler.callbacks = [
            callback
            for callback in self.callback_handler.callbacks
            if type(callback) not in theirs or any(callback is ours for ours in given)
        ]
        self.last_norm: float | None = None  # of the last step that was taken

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Return the autocast of the model for the loss, which has the head in it."""
        return self.accelerator.autocast()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; after Ctrl-C or SIGTERM, save the last whole step and raise it."""
        with postponed():
            try:
                return super().train(*args, **kwargs)
            except BaseException as error:
                self.whole_steps.save_before(error)
                raise

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run it, unless the evaluation that a resume makes up for ends the training.

        A stream goes on from its position; Trainer would read what came before again.
        """
        if not self.control.should_training_stop:
            with from_its_position(self.train_dataset):
                super()._run_epoch(*args, **kwargs)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Plan no epoch where the checkpoint to resume is of the end of its run.

        Trainer would take one step more than was asked for, or early stopping allows.
        Within a time, as many as it takes: a correction may ask for more.
        """
        if self.time_limit:
            self.time_limit.begin(self)
        epochs, *others, max_steps = super().set_initial_training_values(
            args, dataloader
        )
        if self.time_limit:
            epochs = sys.maxsize
            if self.time_limit.steps_per_epoch is None:  # a stream is one epoch
                others[0] = ENDLESS
                others[4] = ENDLESS * args.gradient_accumulation_steps
        if resume.is_over(args, max_steps):
            epochs = 0
        return epochs, *others, max_steps

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> Any:
        """Return the batches of a step, and what the loss of each is divided by.

        Trainer takes a number of -100 for no label, and knows no weights.
        """
        with interruptible():
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.time_limit:
            self.time_limit.cells += sum(map(_cells, batches))
        begins = [b.pop("begins_epoch") for b in batches if "begins_epoch" in b]
        if places := [b.pop("position") for b in batches if "position" in b]:
            self.whole_steps.position = places[-1][-1].tolist()
        self.end_of_pass.due = any(bool(found.any()) for found in begins)
        counts = [self.objective.label_count(b) for b in batches if "labels" in b]
        return batches, torch.stack(counts).sum().to(device) if counts else None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; of a training, the mean loss of all its steps.

        Trainer's is of those since a resume. Within a time it counts the examples of
        the first plan; here they are those of the steps.
        """
        if "train_loss" in logs:
            logs["train_loss"] = self.whole_steps.mean_loss()
        if self.time_limit and "train_samples_per_second" in logs:
            examples = self.get_total_train_batch_size(self.args)
            rate = logs["train_steps_per_second"] * examples
            logs["train_samples_per_second"] = round(rate, 3)
        super().log(logs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as the objective says."""
        smoothing = self.args.label_smoothing_factor
        if return_outputs:
            return self.objective.evaluate(model, inputs, smoothing)
        count: Any = num_items_in_batch
        return self.objective.loss(model, inputs, count, smoothing)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluate the longest examples first, so that a batch has little padding."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.get_test_dataloader(data)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Evaluate the longest examples first, so that a batch has little padding."""
        args: Any = self.args
        known, loader = self.loaders.get(id(test_dataset), (None, None))
        if args.dataloader_persistent_workers and known is test_dataset:
            return loader  # its workers live on
        strategy = args.train_sampling_strategy
        args.train_sampling_strategy = "sequential"  # Trainer heeds it here, too
        try:
            loader = super().get_test_dataloader(LongestFirst(test_dataset))
        finally:
            args.train_sampling_strategy = strategy
        if args.dataloader_persistent_workers:
            self.loaders[id(test_dataset)] = test_dataset, loader
        return loader

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict, in the order of the data.

        Raises:
            NonFiniteError: a loss or, without labels, a prediction is not a number.
        """
        release_memory()
        self.objective.begin_evaluation()
        with drawing_apart(), interruptible():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        found = output.metrics or {}
        losses = {n: x for n, x in found.items() if n.endswith("_loss")}
        if not losses and not np.isfinite(output.predictions).all():
            losses = {"prediction": math.nan}
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"{name} is {loss} after {self.state.global_step} steps",
                    "expected a finite number",
                    "weights of the model that are not finite give this, or bf16 where"
                    " fp32 is needed: try --precision fp32, or another model",
                )
        predictions, label_ids = self.in_order(output.predictions, output.label_ids)
        return EvalLoopOutput(
            predictions, label_ids, output.metrics, output.num_samples
        )

    def in_order(self, predictions: Any, label_ids: Any) -> tuple[Any, Any]:
        """Return what the last evaluation gave in the order of the data, by text."""
        loader: Any = self.callback_handler.eval_dataloader
        data: LongestFirst = loader.dataset
        return self.objective.by_text(
            data.undo(predictions), data.undo(label_ids), data.dataset
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save a checkpoint with the names that the model has for its weights.

        Its family may have others for its files (ESM, mixtures of experts). Trainer
        would write these, and leave out what it does not know when it reads them.
        """
        model: Any = self.model
        how = how_to_save(model) or {"save_original_format": False}
        vars(model)["save_pretrained"] = partial(model.save_pretrained, **how)
        failpoint("save.begin")
        try:
            super()._save(output_dir, state_dict)
        finally:
            vars(model).pop("save_pretrained", None)
        for name in ("save.file.open", "save.file.half", "save.file.close"):
            failpoint(name, Path(str(output_dir)))

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(folder, model)
        except StrictDataclassError as error:  # it reads any config as a plain one
            raise CheckpointError(
                f"transformers cannot resume this family: {brief(error)}",
                hint="go on from its weights alone, as --model_name_or_path",
                path=folder,
            ) from error
        _load_factors(self.model, folder)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        _load_factors(self.model, str(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise CheckpointError where a checkpoint has not the weights of the model.

        Those that share their memory with another one are saved once.
        """
        model: Any = self.model
        weights, missing = model.state_dict(), set(load_result.missing_keys)
        there = {x.data_ptr() for name, x in weights.items() if name not in missing}
        unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        lost = [n for n in missing - unsaved if weights[n].data_ptr() not in there]
        _require_same_weights([*lost, *load_result.unexpected_keys])

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run a micro-batch; what is not finite never reaches the weights."""
        self.guards.begin(self, model, inputs, num_items_in_batch)
        with interruptible():
            loss = super().training_step(model, inputs, num_items_in_batch)
        return self.guards.of_loss(loss, self)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Return the norm, known just before the optimizer steps, if it is a number.

        Callbacks of that moment do not see it. They would read all gradients once more
        (22 M weights on 2 cores: 2.3 ms), and know of clipped ones only.
        """
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.accelerator.scaler is None:  # that of fp16 skips such a step itself
            norm = self.guards.of_gradient(norm, self)
        if not self.guards.fault:
            self.last_norm = float(norm)
        return norm

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one of Trainer; by length, in an order that a resume has too."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.data_seed
            return GroupedByLength(sampler, self.args.seed if seed is None else seed)
        return sampler


def _require_same_weights(odd: Iterable[str]) -> None:
    if odd := sorted(odd):
        raise CheckpointError(
            f"the checkpoint has other weights than the model: {listed(odd, 3)}",
            hint="resume with the llmft that wrote it, or train anew",
        )


@torch.no_grad()
def _load_factors(model: Any, folder: str) -> None:
    """Load the LoRA factors of a checkpoint by the names that they were saved with.

    peft takes them for names of the family's files, and leaves out those that it turns
    into what the model has not (the shared experts of Laguna).
    """
    if not isinstance(model, PeftModel):
        return
    # It shares its memory with the model.
    own = get_peft_model_state_dict(model, **how_to_save(model))
    saved = load_file(Path(folder) / SAFETENSORS_WEIGHTS_NAME)
    _require_same_weights(own.keys() ^ saved.keys())
    for name, weight in saved.items():
        own[name].copy_(weight)


def _cells(batch: dict[str, torch.Tensor]) -> int:
    """Return the tokens of a batch with padding, or its numbers where it has none."""
    return batch.get("input_ids", next(iter(batch.values()))).numel()


def _logits_alone(outputs: Any, labels: Any) -> torch.Tensor:
    """Return the logits of a model that also returns states (BART)."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _set_mode(args: Any) -> None:
    """Let a schedule that follows the metric know whether greater is better."""
    if args.lr_scheduler_type in BY_METRIC:
        mode = {"mode": "max" if args.greater_is_better else "min"}
        args.lr_scheduler_kwargs = mode | (args.lr_scheduler_kwargs or {})
