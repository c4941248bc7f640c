"""What a run chose by itself, with the reason that the plan and run.json show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One setting of the run, and why it is what it is."""

    name: str
    value: str
    reason: str
