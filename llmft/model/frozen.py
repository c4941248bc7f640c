"""Leaving the token embeddings of a model as they are, while all else is trained.

Of a model with many languages they are most of it: of Gemma 3 270M, 168 of 268 M
weights, a quarter of a million rows of which a data set needs some thousand.
"""

from __future__ import annotations

from typing import Any

from llmft.config.choice import Choice


def freeze_embeddings(model: Any) -> None:
    """Let no gradient reach the token embeddings, nor an output layer tied to them."""
    model.get_input_embeddings().weight.requires_grad_(False)


def frozen_choice(model: Any) -> Choice:
    """Return what the plan says of ``freeze_embeddings``."""
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    frozen = sum(count for count, trains in weights if not trains)
    total = sum(count for count, _ in weights)
    head, said = model.get_output_embeddings(), "the token embeddings"
    if head is not None and head.weight is model.get_input_embeddings().weight:
        said += ", and the output layer, which is tied to them"
    return Choice("frozen", f"{frozen:,} of {total:,} weights", said)
