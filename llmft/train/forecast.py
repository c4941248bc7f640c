"""What a training will take, from what its trial took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
from peft import PeftModel

from llmft.config.fields import TrainingArguments
from llmft.machine.measure import write_seconds
from llmft.machine.plan import END_SECONDS, Forecast
from llmft.train.batches import Batches
from llmft.train.trials import Trial

# What Trainer does beside each batch, its loader included (2 cores, AMD EPYC: about 9
# ms with a model of two layers, a sixth of its step).
LOOP_SECONDS = 0.01


def predicted(
    args: TrainingArguments,
    model: Any,
    trial: Trial,
    optimizer: tuple[float, int],
    batches: Batches,
    held_out: Mapping[str, Batches],
    probed: Batches | None = None,
) -> Forecast:
    """Return the seconds of a step, an evaluation and a checkpoint, and the memory.

    A batch takes time in proportion to its length, between and beyond those that were
    tried.

    Args:
        optimizer: what ``optimizer_cost`` gives.
        batches: those to train on. held_out: by split, those to evaluate on.
        probed: examples that a linear probe encodes before; it is evaluated, too.
    """
    if not args.do_train:
        parts = [_by_length(trial, b.lengths).sum() for b in held_out.values()]
        return Forecast(
            step_seconds=0.0,
            final_seconds=float(sum(parts)) + END_SECONDS,
            peak_bytes=trial.peak_bytes,
            trial_seconds=trial.took,
        )
    # An adapter is saved alone, frozen embeddings with the rest.
    saved_weights = sum(
        p.numel()
        for p in model.parameters()
        if p.requires_grad or not isinstance(model, PeftModel)
    )
    seconds, kept = optimizer
    batch = float(np.mean(_by_length(trial, batches.lengths))) + LOOP_SECONDS
    evaluations = {split: _evaluation(trial, b) for split, b in held_out.items()}
    saved = 4 * saved_weights + (0 if args.save_only_model else kept)
    peak = trial.peak_bytes
    if args.load_best_model_at_end:  # read beside the last weights and the optimizer
        held = psutil.Process().memory_info().rss
        peak = max(peak, held + kept + 4 * saved_weights)
    return Forecast(
        step_seconds=args.gradient_accumulation_steps * batch + seconds,
        evaluation_seconds=evaluations.get("validation", 0.0),
        save_seconds=write_seconds(saved),
        final_seconds=sum(evaluations.values())
        + write_seconds(4 * saved_weights)
        + END_SECONDS,
        probe_seconds=sum(evaluations.values()) + _evaluation(trial, probed)
        if probed
        else 0.0,
        peak_bytes=peak,
        example_bytes=trial.example_bytes,
        checkpoint_bytes=saved,
        model_bytes=4 * sum(p.numel() for p in model.parameters()),
        trial_seconds=trial.took,
    )


def _evaluation(trial: Trial, batches: Batches) -> float:
    """Return the seconds of an evaluation on all of ``batches``."""
    cells = batches.lengths * batches.sizes
    return trial.evaluation * float(cells.sum() / cells[len(batches) // 2])


def _by_length(trial: Trial, lengths: np.ndarray) -> np.ndarray:
    """Return the seconds of batches of these lengths, on the line through those tried.

    No batch takes less than its share of the shortest that was tried.
    """
    if len(trial.lengths) == 1:
        return trial.batches[0] * lengths / trial.lengths[0]
    (short, long), (low, high) = trial.lengths, trial.batches
    slope = max(high - low, 0.0) / max(long - short, 1)
    line = low + slope * (lengths - short)
    return np.maximum(line, low * lengths / short)
