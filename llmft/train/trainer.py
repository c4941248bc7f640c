"""The one Trainer subclass: what llmft needs inside the step, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from llmft.data.read.labels import SINGLE
from llmft.data.tokens.collate import examples_of
from llmft.errors import NonFiniteError
from llmft.train import checkpoint, losses
from llmft.train.narrow import (
    first_position_only,
    head_inputs,
    labelled_positions_only,
    last_meeting,
    plain_head,
    transformers_model,
)


class LlmftTrainer(Trainer):
    """``transformers.Trainer`` that computes only what a loss needs, and stops at NaN.

    Args:
        task: ``masked-lm`` and ``classification`` run the end of the model at the
            positions that count only, language models their head at a few at a time;
            ``classification`` evaluates by length, and what examples of one text (data
            sets with a column ``row``) say of it is averaged.
        problem_type, class_weights: of a classifier, see ``losses.label_loss``.
        Otherwise as Trainer. What ``compute_metrics`` of a language model gets as
        predictions are the sums of ``losses.token_statistics`` for each example.
    """

    def __init__(
        self,
        *,
        task: Literal["masked-lm", "causal-lm", "classification"],
        problem_type: str = SINGLE,
        class_weights: Sequence[float] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        kwargs["compute_metrics"] = compute_metrics
        if compute_metrics is not None and task == "classification":
            kwargs["compute_metrics"] = lambda found: compute_metrics(
                EvalPrediction(*self._by_text(found.predictions, found.label_ids))
            )
        kwargs.setdefault("preprocess_logits_for_metrics", _logits_alone)
        super().__init__(compute_loss_func=self._loss, **kwargs)
        self.task = task
        self.problem_type = problem_type
        self._weights = None
        if class_weights is not None:
            self._weights = torch.tensor(class_weights).to(self.args.device)
        self.model_accepts_loss_kwargs = False  # the count of labels goes to our loss
        # last_meeting and plain_head, as the first batch shows them; None before.
        self._shortcuts: tuple[nn.Module | None, nn.Linear | None] | None = None
        self._states: list[torch.Tensor] = []
        self._statistics: torch.Tensor | None = None
        self._last_norm: float | None = None

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Return the autocast of the model for the loss, which has the head in it."""
        return self.accelerator.autocast()

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as ``task`` says; see the class."""
        self._evaluates = return_outputs and self.task != "classification"
        if self._shortcuts is None:
            self._shortcuts = self._find_shortcuts(inputs)
        point, head = self._shortcuts
        only = self._needed_positions(inputs, point)
        with only, head_inputs(head) as self._states:
            found = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._states = []
        if self._evaluates:
            return found[0], {"statistics": self._statistics}
        return found if return_outputs else found[0]

    def _find_shortcuts(self, inputs: Any) -> tuple[nn.Module | None, nn.Linear | None]:
        """Return what the model allows: ``last_meeting`` and ``plain_head``."""
        model = transformers_model(self.model)
        point = head = None
        if self.task != "causal-lm":
            point = last_meeting(model, inputs, self.task)
        if self.task != "classification" and not self.args.label_smoothing_factor:
            head = plain_head(model, inputs)
        return point, head

    def _needed_positions(
        self, inputs: Any, point: nn.Module | None
    ) -> AbstractContextManager[None]:
        """Return a context in which the model's end runs at these positions only."""
        model = transformers_model(self.model)
        # A layer that is run again in the backward pass must see what it saw before.
        if model.training and model.is_activation_checkpointing:
            point = None
        if self.task == "masked-lm":
            return labelled_positions_only(model.base_model, inputs["labels"], point)
        return nullcontext() if point is None else first_position_only(point)

    def _loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if self.task == "classification":
            return losses.label_loss(
                outputs["logits"],
                labels,
                num_items_in_batch,  # type: ignore[arg-type]
                self.problem_type,
                self._weights,
                self.args.label_smoothing_factor,
            )
        values = self._states[-1] if self._states else outputs["logits"]
        if self.task == "causal-lm":  # position t predicts the label of t + 1
            values, labels = values[:, :-1], labels[:, 1:]
        head = self._shortcuts[1] if self._shortcuts and self._states else None
        if self._evaluates:
            self._statistics = losses.token_statistics(values, labels, head)
            nll, count, _ = self._statistics.sum(0)
            return (nll / count.clamp(min=1)).float()
        smoothing = self.args.label_smoothing_factor
        return losses.labelled_cross_entropy(
            values, labels, num_items_in_batch, smoothing, head
        )

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> Any:
        """Return what the loss of a step is divided by, weights and all.

        Trainer takes a number of -100 for no label.
        """
        if self.task != "classification":
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = [
            losses.label_count(batch["labels"], self.problem_type, self._weights)
            for batch in batch_samples
            if "labels" in batch
        ]
        return torch.stack(counts).sum().to(device) if counts else None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the one of Trainer; by length, in an order that a resume has too."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.data_seed
            return _GroupedByLength(sampler, self.args.seed if seed is None else seed)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluate texts of like length together; ``evaluation_loop`` undoes that."""
        return _by_length(eval_dataset)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict, in the order of the data.

        Trainer leaves predictions as its sampler had them, by length where training
        groups by length, and they would then belong to other texts.

        Raises:
            NonFiniteError: a loss or, without labels, a prediction is not a number.
        """
        self._evaluated = dataloader.dataset
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        found = output.metrics or {}
        losses = {n: x for n, x in found.items() if n.endswith("_loss")}
        for name, loss in losses.items():
            if not math.isfinite(loss):
                self._refuse(name, loss)
        if not losses and not np.isfinite(output.predictions).all():
            self._refuse("prediction", math.nan)
        predictions, label_ids = self._by_text(output.predictions, output.label_ids)
        return EvalLoopOutput(
            predictions, label_ids, output.metrics, output.num_samples
        )

    def _by_text(self, predictions: Any, label_ids: Any) -> tuple[Any, Any]:
        """Return what an evaluation gave in the order of the data, one row a text.

        The logits of the examples of a text are averaged; their label is the same.
        """
        data = self._evaluated
        order = np.fromiter(_by_length(data), dtype=np.int64)
        found: list[Any] = [predictions, label_ids]
        for i, values in enumerate(found):
            if values is not None:
                found[i] = np.empty_like(values)
                found[i][order] = values
        predictions, label_ids = found
        if self.task == "classification" and "row" in data.column_names:
            rows = np.asarray(data["row"][:])
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            sizes = np.diff(starts, append=len(rows))[:, None]
            predictions = np.add.reduceat(predictions, starts) / sizes
            label_ids = None if label_ids is None else label_ids[starts]
        return predictions, label_ids

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that is whole or not there."""
        checkpoint.save(self)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless a checkpoint was resumed after which there is none.

        Trainer would take one step more than was asked for, or early stopping allows.
        """
        over = self.state.global_step >= self.state.max_steps
        if over or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run a micro-batch; raise NonFiniteError before it can reach the weights."""
        self._batch = inputs
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._require_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Return the norm, for the log; it is known just before the optimizer steps."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.accelerator.scaler is None:  # that of fp16 skips such a step itself
            self._require_finite("gradient", norm)
        self._last_norm = float(norm)
        return norm

    def _require_finite(self, name: str, value: Any) -> None:
        if math.isfinite(value):
            return
        known = [f"learning rate {self._get_learning_rate():.3g}"]
        if self._last_norm is not None:
            known.append(f"gradient norm {self._last_norm:.3g} in the step before")
        # With accumulation, an earlier batch may be to blame for a gradient.
        whole = name == "loss" or self.args.gradient_accumulation_steps == 1
        found = examples_of(self._batch, self.train_dataset) if whole else []
        if found:
            shown = ", ".join(map(str, found[:5])) + ", ..." * (len(found) > 5)
            known.append(f"examples {shown} of train")
        raise NonFiniteError(
            f"the {name} is {float(value)} in step {self.state.global_step + 1}",
            ", ".join(known),
            "lower learning_rate, or raise warmup_steps",
        )

    def _refuse(self, name: str, value: float) -> None:
        raise NonFiniteError(
            f"{name} is {value} after {self.state.global_step} steps",
            "expected a finite number",
            "weights of the model that are not finite give this, or bf16 where fp32"
            " is needed: try --precision fp32, or another model",
        )


def _logits_alone(outputs: Any, labels: Any) -> torch.Tensor:
    """Return the logits of a model that also returns states (BART)."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


class _GroupedByLength(LengthGroupedSampler):
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


class _Order(SequentialSampler):
    """Yields the rows in a fixed order."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _by_length(dataset: Any) -> Any:
    """Return a sampler of all rows, longest first where there is a length column."""
    if "length" not in dataset.column_names:
        return SequentialSampler(dataset)
    return _Order(np.argsort(-np.asarray(dataset["length"][:]), kind="stable").tolist())
