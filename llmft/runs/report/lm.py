"""What a language model learnt: by kind, frequency and position; its texts."""

from __future__ import annotations

from llmft.runs.record import RunRecord
from llmft.runs.report.parts import Section


def sections(run: RunRecord) -> list[Section]:
    """Return what ``metrics.json`` says beyond the curves."""
    return []
