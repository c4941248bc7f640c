"""What all metrics share: ``evaluate.Metric``, with a standard error of each.

Metrics are ``evaluate.Metric`` classes of this package: ``evaluate.load`` would fetch
its code from the hub. Each value ``x`` comes with ``x_stderr``, and all with ``n``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate
from transformers import EvalPrediction

from llmft.metrics.bootstrap import Measure, with_errors
from llmft.sources import catalog

F64 = datasets.Value("float64")
F64S = datasets.List(F64)


class Metric(evaluate.Metric):
    """An ``evaluate.Metric`` that is ``compute_metrics`` of Trainer, as it is.

    A subclass gives its ``columns`` and ``measure``.
    """

    columns: ClassVar[dict[str, Any]]

    def measure(self, predictions: Any, references: Any) -> Measure:
        """Return the metrics as functions of how often each text counts."""
        raise NotImplementedError

    def __init__(self) -> None:
        # evaluate makes the folder, though nothing is kept there.
        folder = str(catalog.cache_home() / "metrics")
        super().__init__(keep_in_memory=True, cache_dir=folder)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics of the predictions and labels that Trainer gathered."""
        return self.compute(
            predictions=prediction.predictions, references=prediction.label_ids
        )

    def _compute(self, **columns: Any) -> dict[str, float]:
        predictions, references = columns["predictions"], columns["references"]
        return with_errors(self.measure(predictions, references), len(references))

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.Features(self.columns)
        return evaluate.MetricInfo(self.__doc__ or "", citation="", features=columns)
