"""What one task is; the instances stand in ``llmft/tasks/`` and are handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """What one task is, so that no module below ``tasks/`` spells its name."""

    recipe: str  # the recipe's file without its ending, such as mlm
    auto_class: Any  # of transformers, such as AutoModelForMaskedLM
    pipeline_tag: str  # as the hub has it, such as fill-mask
    embedded_model: str  # the pypi: name that needs no hub
    metrics: Mapping[str, bool]  # what it measures, and whether greater is better
