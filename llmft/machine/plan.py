"""What a training is going to take, by its parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """Seconds that the parts of a training take.

    Attributes:
        step_seconds: one optimizer step.
        evaluation_seconds: one evaluation in training.
        save_seconds: one checkpoint.
        final_seconds: all that comes after training.
    """

    step_seconds: float
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    final_seconds: float = 0.0
