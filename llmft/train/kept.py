"""Where a run keeps the batches of steps that were not finite. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "debug_batch"  # in that of the run
_PLACES = 5  # of a text that are shown
BATCH, TENSORS, MODEL = "batch.json", "batch.safetensors", "model"


def kept(folder: Path) -> list[Path]:
    """Return the folders of batches in that of a run, the newest first."""
    found = [p for p in (folder / FOLDER).glob("step-*") if (p / BATCH).is_file()]
    return sorted(found, key=lambda path: (path / BATCH).stat().st_mtime, reverse=True)


def place_of(row: Mapping[str, Any]) -> str:
    """Return where a row of a batch stands, "" where that is not known.

    A block of several documents stands from the first to the last; a text that is there
    several times may be any of them.
    """
    places = list(dict.fromkeys(row["places"]))
    if len(row["examples"]) == 1 and len(places) > 1:
        return f"{places[0]} to {places[-1]}"
    more = f" or {len(places) - _PLACES:,} more" if len(places) > _PLACES else ""
    return " or ".join(places[:_PLACES]) + more
