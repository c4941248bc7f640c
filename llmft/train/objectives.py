"""What a task computes of a model and a batch: one objective a task.

Whoever trains on another task writes the four methods of ``Objective``; the trainer
knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

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

Batch = dict[str, Any]


class Objective(Protocol):
    """What ``LlmftTrainer`` asks of a task."""

    def loss(
        self,
        model: Any,
        batch: Batch,
        count: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss of a batch, divided by ``count``; None: by its own."""
        ...

    def evaluate(
        self, model: Any, batch: Batch, label_smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss, and what ``compute_metrics`` gets of each example."""
        ...

    def label_count(self, batch: Batch) -> torch.Tensor:
        """Return what the loss is divided by; a step sums it over its batches."""
        ...

    def by_text(
        self, predictions: Any, label_ids: Any, data: Dataset
    ) -> tuple[Any, Any]:
        """Return what was found of the examples of ``data``, in their order, by text.

        A text may have several examples.
        """
        ...


@dataclass(frozen=True)
class _Shortcuts:
    """What a model allows, tried with its first batch.

    Attributes:
        point: see ``probes.last_meeting``. head: see ``probes.plain_head``.
    """

    model: Any
    point: nn.Module | None = None
    head: nn.Linear | None = None

    def usable_point(self) -> nn.Module | None:
        """Return ``point`` unless layers run again in the backward pass.

        They must then see what they saw before.
        """
        again = self.model.training and self.model.is_activation_checkpointing
        return None if again else self.point


class _LanguageModel:
    """The loss of the tokens that have a label, over logits of a few at a time.

    Evaluations give ``losses.token_statistics`` and never keep logits.
    """

    def __init__(self) -> None:
        self._shortcuts: _Shortcuts | None = None

    def loss(
        self,
        model: Any,
        batch: Batch,
        count: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the cross entropy per label; see ``losses.labelled_cross_entropy``."""
        values, labels, head = self._run(model, batch, whole=bool(label_smoothing))
        return losses.labelled_cross_entropy(
            values, labels, count, label_smoothing, head
        )

    def evaluate(
        self, model: Any, batch: Batch, label_smoothing: float = 0.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, never smoothed, and the statistics of each example."""
        statistics = losses.token_statistics(*self._run(model, batch))
        nll, count, _ = statistics.sum(0)
        return (nll / count.clamp(min=1)).float(), {"statistics": statistics}

    def label_count(self, batch: Batch) -> torch.Tensor:
        """Return the number of labels that are predicted."""
        return (self._targets(batch["labels"]) != IGNORED).sum()

    def by_text(
        self, predictions: Any, label_ids: Any, data: Dataset
    ) -> tuple[Any, Any]:
        """Return them as they are: an example is a block of text."""
        return predictions, label_ids

    def _run(
        self, model: Any, batch: Batch, whole: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, nn.Linear | None]:
        """Return values, labels and head as ``losses`` takes them.

        ``whole`` asks for logits: the head is None, and has run.
        """
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        core = transformers_model(model)
        if self._shortcuts is None or self._shortcuts.model is not core:
            self._shortcuts = self._try(core, inputs)
        head = None if whole else self._shortcuts.head
        only = self._only(core, batch["labels"], self._shortcuts.usable_point())
        with only, head_inputs(head) as states:
            outputs = model(**inputs)
        values = outputs["logits"] if head is None else states[-1]
        return self._predicting(values), self._targets(batch["labels"]), head

    def _try(self, model: Any, inputs: Batch) -> _Shortcuts:
        return _Shortcuts(model, head=plain_head(model, inputs))

    def _only(
        self, model: Any, labels: torch.Tensor, point: nn.Module | None
    ) -> AbstractContextManager[Any]:
        """Return a context in which the end of ``model`` runs where it is needed."""
        return head_inputs(None)

    def _predicting(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        return labels


class MaskedLM(_LanguageModel):
    """Masked tokens are guessed; the end of the model runs at these only."""

    def _try(self, model: Any, inputs: Batch) -> _Shortcuts:
        def narrow(
            point: nn.Module, labels: torch.Tensor
        ) -> AbstractContextManager[None]:
            return self._only(model, labels, point)

        point = last_meeting(model, inputs, narrow, every=3)
        return _Shortcuts(model, point, plain_head(model, inputs))

    def _only(
        self, model: Any, labels: torch.Tensor, point: nn.Module | None
    ) -> AbstractContextManager[Any]:
        return labelled_positions_only(model.base_model, labels, point)


class CausalLM(_LanguageModel):
    """Each token is predicted from those before it: position t, the label of t + 1."""

    def _predicting(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, :-1]

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[:, 1:]


class Classification:
    """A class, several labels or a number for each text.

    Examples of one text (data with a column ``row``) are averaged in an evaluation.

    Args:
        problem_type, class_weights: see ``losses.label_loss``.
    """

    def __init__(
        self,
        problem_type: str = SINGLE,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.problem_type = problem_type
        self.weights = None if class_weights is None else torch.tensor(class_weights)
        self._shortcuts: _Shortcuts | None = None

    def loss(
        self,
        model: Any,
        batch: Batch,
        count: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss; see ``losses.label_loss``."""
        logits = self._run(model, batch)["logits"]
        return self._of_logits(logits, batch["labels"], count, label_smoothing)

    def evaluate(
        self, model: Any, batch: Batch, label_smoothing: float = 0.0
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss and the model's output, logits of shape (batch, classes)."""
        output = self._run(model, batch)
        labels = batch["labels"]
        return self._of_logits(output["logits"], labels, None, label_smoothing), output

    def label_count(self, batch: Batch) -> torch.Tensor:
        """Return the number of labels, or the sum of their weights."""
        labels = batch["labels"]
        return losses.label_count(labels, self.problem_type, self._weights(labels))

    def by_text(
        self, predictions: Any, label_ids: Any, data: Dataset
    ) -> tuple[Any, Any]:
        """Average the logits of the examples of a text; their label is the same."""
        if "row" in data.column_names:
            rows = np.asarray(data["row"][:])
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            sizes = np.diff(starts, append=len(rows))[:, None]
            predictions = np.add.reduceat(predictions, starts) / sizes
            label_ids = None if label_ids is None else label_ids[starts]
        return predictions, label_ids

    def _run(self, model: Any, batch: Batch) -> Any:
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        core = transformers_model(model)
        if self._shortcuts is None or self._shortcuts.model is not core:
            point = last_meeting(core, inputs, lambda p, _: first_position_only(p))
            self._shortcuts = _Shortcuts(core, point)
        with first_position_only(self._shortcuts.usable_point()):
            return model(**inputs)

    def _of_logits(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        count: torch.Tensor | None,
        label_smoothing: float,
    ) -> torch.Tensor:
        weights = self._weights(labels)
        return losses.label_loss(
            logits, labels, count, self.problem_type, weights, label_smoothing
        )

    def _weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        return None if self.weights is None else self.weights.to(labels.device)
