"""llmft: fine-tune language models on the CPU you already have."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Return ``load`` when it is asked for: torch need not be there before."""
    if name == "load":
        return import_module("llmft.tasks.loaded").load
    raise AttributeError(f"module 'llmft' has no attribute {name!r}")
