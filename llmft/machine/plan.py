"""What a run will take: time, memory and disk, ahead of it."""

from __future__ import annotations

from dataclasses import dataclass

# The end of a command, beside what is evaluated and saved (2 cores, AMD EPYC).
END_SECONDS = 2.0


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take.

    Attributes:
        step_seconds: one optimizer step, in the mean.
        evaluation_seconds: one evaluation in training.
        save_seconds: one checkpoint.
        final_seconds: what follows the training.
        probe_seconds: what comes before it, where a classifier starts from a probe.
        peak_bytes: the most memory that the process will hold; 0 where not known.
        example_bytes: what each example of a batch takes of it; 0 where not known.
        checkpoint_bytes, model_bytes: what a checkpoint, and the model need on disk.
        trial_seconds: what finding out took.
    """

    step_seconds: float
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    final_seconds: float = 0.0
    probe_seconds: float = 0.0
    peak_bytes: int = 0
    example_bytes: int = 0
    checkpoint_bytes: int = 0
    model_bytes: int = 0
    trial_seconds: float = 0.0


def duration_text(seconds: float) -> str:
    """Return a time in words: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
