"""What one task is; the instances stand in ``llmft/tasks/`` and are handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """What one task is, so that no module below ``tasks/`` spells its name.

    Attributes:
        name: masked-lm, classification or causal-lm.
        recipe: the recipe's file without its ending, such as mlm.
        auto_class: of transformers, such as ``AutoModelForMaskedLM``.
        pipeline_tag: as the hub has it, such as fill-mask.
        embedded_model: the ``pypi:`` name that needs no hub.
        metrics: what it measures, each with whether greater is better.
    """

    name: str
    recipe: str
    auto_class: Any
    pipeline_tag: str
    embedded_model: str
    metrics: Mapping[str, bool]
