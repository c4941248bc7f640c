"""Where a run keeps the batches of steps that were not finite. Without torch."""

from __future__ import annotations

from pathlib import Path

FOLDER = "debug_batch"  # in that of the run
BATCH, TENSORS, MODEL = "batch.json", "batch.safetensors", "model"


def kept(folder: Path) -> list[Path]:
    """Return the folders of batches in that of a run, the newest first."""
    found = [p for p in (folder / FOLDER).glob("step-*") if (p / BATCH).is_file()]
    return sorted(found, key=lambda path: (path / BATCH).stat().st_mtime, reverse=True)
