"""Temperature scaling of a classifier: probabilities as frequent as they say.

The saved model has the temperature in its head, and needs nothing new to be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from llmft.config.fields import ClassificationDataArguments
from llmft.console import say, warn
from llmft.data.read.labels import MULTI
from llmft.metrics.calibration import fit_temperature
from llmft.runs.folder import Run
from llmft.train.outputs import output_layer
from llmft.train.trainer import LlmftTrainer


def calibrate(
    trainer: LlmftTrainer,
    examples: Mapping[str, Dataset],
    data: ClassificationDataArguments,
    problem_type: str,
    run: Run,
) -> None:
    """Divide the output layer by the temperature that suits validation, if asked for.

    What that brought is measured on the model as it then is, and becomes a part of the
    run's metrics. Where it cannot be, a warning says why, and the model stays as it is.
    """
    if not data.calibrate:
        return
    layer = output_layer(trainer.model)
    if layer is None:
        return warn("not calibrated: the model has no linear output layer")
    before = trainer.predict(examples["validation"], metric_key_prefix="eval")
    logits, labels = np.asarray(before.predictions), np.asarray(before.label_ids)
    temperature = fit_temperature(logits, labels, problem_type)
    if temperature is None:
        return warn(
            "not calibrated: no temperature is the best for the validation rows, as"
            " where all are right, or few are wrong; the model stays as it is, and"
            " --validation_file gives more rows"
        )
    kept = [(weight, weight.detach().clone()) for weight in layer.parameters()]
    with torch.no_grad():
        for weight, _ in kept:
            weight.div_(temperature)
    after = trainer.predict(examples["validation"], metric_key_prefix="eval")
    off = np.linalg.norm(temperature * np.asarray(after.predictions) - logits)
    if off > 0.05 * np.linalg.norm(logits):  # bf16 has 3 digits
        with torch.no_grad():
            for weight, was in kept:
                weight.copy_(was)
        return warn("not calibrated: something follows the model's output layer")
    found: dict[str, Any] = {"temperature": temperature, "split": "validation"}
    said = []
    for name in ("log_loss", "calibration_error"):
        one, two = ((x.metrics or {})[f"eval_{name}"] for x in (before, after))
        found |= {name: {"before": one, "after": two}}
        said.append(f"{name.replace('_', ' ')} {one:.4g} -> {two:.4g}")
    run.more["calibration"] = found | {"n": len(labels)}
    on = f"the {len(labels):,} rows of validation that it was fitted to"
    say(f"  calibrated, temperature {temperature:.3g}: {', '.join(said)} on {on}")
    if problem_type == MULTI and data.multi_label_threshold != 0.5:
        least = data.multi_label_threshold
        say(f"  multi_label_threshold {least:g} is now of the calibrated probabilities")
