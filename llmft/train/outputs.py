"""The output layer of a classifier, and what it is given of each text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from llmft.model.features import last_tokens
from llmft.model.new_weights import output_layers
from llmft.train.narrow import transformers_model


def output_layer(model: Any) -> nn.Linear | None:
    """Return the last linear layer of a classifier; None where it has none."""
    core = transformers_model(model)
    layers = output_layers(core, core.config.num_labels)
    return [None, *layers.values()][-1]


def has_new_output(model: Any, new: Collection[str]) -> bool:
    """Return whether the weights of the output layer are among the ``new`` ones."""
    layer = output_layer(model)
    named = transformers_model(model).named_parameters()
    return any(layer is not None and w is layer.weight and n in new for n, w in named)


def vectors_of_texts(
    given: list[torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    layer: nn.Linear,
    logits: torch.Tensor,
) -> torch.Tensor | None:
    """Return what a layer was given for each text: of all its tokens, for the last.

    Args:
        given: its inputs in the order of its calls: (batch, size), or (batch, length,
            size) for a layer that is asked about every token.
        logits: of the model, (batch, classes).

    Returns:
        (batch, size); None where the logits are not what ``layer`` makes of that.
    """
    if not given or given[-1].ndim not in (2, 3):
        return None
    vectors = given[-1]
    if vectors.ndim == 3:
        last = last_tokens(batch["attention_mask"])
        vectors = vectors[torch.arange(len(last), device=last.device), last]
    with torch.no_grad():
        wanted = nn.functional.linear(vectors.float(), layer.weight, layer.bias)
        near = 0.05 * wanted.norm() + 1e-3  # in bf16
        same = logits.shape == wanted.shape and (wanted - logits).norm() <= near
    return vectors if same else None
