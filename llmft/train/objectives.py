"""What a task computes of a model and a batch: one objective a task.

``LlmftTrainer`` knows no task. It asks an objective for ``loss``, ``evaluate``,
``label_count`` and ``by_text``, and says ``begin_evaluation``; another task needs these
five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from llmft.data.read.labels import SINGLE
from llmft.data.tokens.collate import IGNORED
from llmft.model.probes import last_meeting, plain_head
from llmft.train import losses
from llmft.train.narrow import (
    first_position_only,
    head_inputs,
    labelled_positions_only,
    transformers_model,
)
from llmft.train.outputs import output_layer, vectors_of_texts
from llmft.train.tally import TokenTally

Batch: TypeAlias = dict[str, Any]


class _LanguageModel:
    """The cross entropy of the tokens that have a label, over logits of a few at once.

    ``masked`` tokens are guessed where they stand, and the end of the model runs there
    only; others are each predicted from those before.
    """

    masked: bool

    def __init__(self) -> None:
        self.tally = TokenTally()  # of the last evaluation
        # A model with its last_meeting and plain_head, as its first batch shows them.
        self.tried: tuple[Any, nn.Module | None, nn.Linear | None] | None = None

    def loss(
        self,
        model: Any,
        batch: Batch,
        count: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss of a batch, divided by ``count``; None: by its own labels."""
        values, labels, head = self._run(model, batch, plain=not label_smoothing)
        return losses.labelled_cross_entropy(
            values, labels, count, label_smoothing, head
        )

    def evaluate(
        self, model: Any, batch: Batch, label_smoothing: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, never smoothed, and ``losses.token_statistics``."""
        statistics = losses.token_statistics(*self._run(model, batch), self.tally)
        nll, count, _ = statistics.sum(0)
        return (nll / count.clamp(min=1)).float(), {"statistics": statistics}

    def begin_evaluation(self) -> None:
        """Forget the tokens of the evaluation before."""
        self.tally = TokenTally()

    def label_count(self, batch: Batch) -> torch.Tensor:
        """Return what the loss of ``batch`` is divided by; those of a step add up."""
        labels = batch["labels"] if self.masked else batch["labels"][:, 1:]
        return (labels != IGNORED).sum()

    def by_text(
        self, predictions: Any, label_ids: Any, data: Dataset
    ) -> tuple[Any, Any]:
        """Return what was found of each example of ``data`` as it is."""
        return predictions, label_ids

    def _run(
        self, model: Any, batch: Batch, plain: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, nn.Linear | None]:
        """Return values, labels and head as ``losses`` takes them.

        Where the head is not ``plain``, values are logits and it has run.
        """
        inputs, labels = _without_labels(batch), batch["labels"]
        core = transformers_model(model)

        def narrow(point: Any, labels: torch.Tensor) -> AbstractContextManager[Any]:
            if not self.masked:
                return nullcontext()
            return labelled_positions_only(core.base_model, labels, point)

        if self.tried is None or self.tried[0] is not core:
            point = last_meeting(core, inputs, narrow, 3) if self.masked else None
            self.tried = core, point, plain_head(core, inputs)
        _, point, head = self.tried
        head = head if plain else None
        with narrow(_usable(point, core), labels), head_inputs(head) as states:
            if "position_ids" in inputs:  # with a cache, documents would not be apart
                inputs["use_cache"] = False
            outputs = model(**inputs)
        values = outputs["logits"] if head is None else states[-1]
        if self.masked:
            return values.flatten(0, -2), labels, head
        return values[:, :-1], labels[:, 1:], head


class MaskedLM(_LanguageModel):
    """Guesses the tokens that are masked."""

    masked = True


class CausalLM(_LanguageModel):
    """Predicts each token from those before it."""

    masked = False


class Classification:
    """A class, several labels or a number for each text.

    Args:
        problem_type, class_weights: see ``losses.label_loss``.
        contrast: how much the contrastive loss of what the output layer is given
            counts in training beside it; of a single label only. Texts are compared
            within a batch of the device: with accumulation, each with fewer others.
    """

    def __init__(
        self,
        problem_type: str = SINGLE,
        class_weights: Sequence[float] | None = None,
        contrast: float = 0.0,
    ) -> None:
        self.problem_type = problem_type
        self.contrast = contrast if problem_type == SINGLE else 0.0
        self.weights = None if class_weights is None else torch.tensor(class_weights)
        # A model with its last_meeting, as its first batch shows it.
        self.tried: tuple[Any, nn.Module | None] | None = None

    def loss(
        self,
        model: Any,
        batch: Batch,
        count: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss of a batch, divided by ``count``; None: by its own labels."""
        layer = output_layer(model) if self.contrast else None
        if layer is None:
            return self.evaluate(model, batch, label_smoothing, count)[0]
        given: list[torch.Tensor] = []
        with layer.register_forward_pre_hook(lambda _, args: given.extend(args)):
            loss, output = self.evaluate(model, batch, label_smoothing, count)
        vectors = vectors_of_texts(given, batch, layer, output["logits"])
        if vectors is None or not vectors.requires_grad:
            return loss
        labels = batch["labels"]
        count = self.label_count(batch) if count is None else count
        weights = self._weights(labels)
        apart = losses.contrastive_loss(vectors, labels, count, weights)
        return loss + self.contrast * apart

    def evaluate(
        self,
        model: Any,
        batch: Batch,
        label_smoothing: float = 0.0,
        count: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss, and the output of the model with its logits."""
        labels, output = batch["labels"], self.output(model, _without_labels(batch))
        loss = losses.label_loss(
            output["logits"],
            labels,
            count,
            self.problem_type,
            self._weights(labels),
            label_smoothing,
        )
        return loss, output

    def output(self, model: Any, inputs: Batch) -> Any:
        """Return the output of the model, whose end runs where its head looks."""
        core = transformers_model(model)
        if self.tried is None or self.tried[0] is not core:
            point = last_meeting(core, inputs, lambda p, _: first_position_only(p))
            self.tried = core, point
        with first_position_only(_usable(self.tried[1], core)):
            return model(**inputs)

    def begin_evaluation(self) -> None:
        """Keep nothing: what is predicted is kept by the trainer."""

    def label_count(self, batch: Batch) -> torch.Tensor:
        """Return what the loss of ``batch`` is divided by; those of a step add up."""
        labels = batch["labels"]
        return losses.label_count(labels, self.problem_type, self._weights(labels))

    def by_text(
        self, predictions: Any, label_ids: Any, data: Dataset
    ) -> tuple[Any, Any]:
        """Average the logits of the examples of a text, where ``data`` has its ``row``.

        Their label is the same.
        """
        if "row" in data.column_names and predictions is not None:
            rows = np.asarray(data["row"][:])
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            sizes = np.diff(starts, append=len(rows))[:, None]
            predictions = np.add.reduceat(predictions, starts) / sizes
            label_ids = None if label_ids is None else label_ids[starts]
        return predictions, label_ids

    def _weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        return None if self.weights is None else self.weights.to(labels.device)


Objective: TypeAlias = MaskedLM | CausalLM | Classification


def _without_labels(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != "labels"}


def _usable(point: nn.Module | None, model: Any) -> nn.Module | None:
    """Return ``point`` unless layers run again in the backward pass.

    They must then see what they saw before.
    """
    return None if model.training and model.is_activation_checkpointing else point
