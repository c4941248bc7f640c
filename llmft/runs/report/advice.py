"""What to try next: only what follows from what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmft.runs.record import RunRecord
from llmft.runs.report.answers import Answers
from llmft.runs.report.parts import Section


def advice(
    run: RunRecord,
    events: list[dict[str, Any]],
    parts: Mapping[str, Answers],
    groups: Sequence[Any],
    doubted: Sequence[Any],
) -> Section:
    return Section("What to try next")
