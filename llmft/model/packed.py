"""Linear layers for inference, their weights in the layout that oneDNN reads fastest.

One token at a time, reading the weights is what takes the time. torch reads plain ones
at 16 GB/s in fp32 and at 9 to 31 in bf16, packed ones at 19 to 52 and at 13 to 69 (2
cores, AMD EPYC with AVX512-BF16, whose memory gives 77; layers of SmolLM2-135M).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PackedLinear(nn.Module):
    """Computes what ``linear`` does, without gradients; it has no parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias
        # For one row at a time; others are computed, too. As torch.compile does it.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return states of shape (..., in_features) with (..., out_features)."""
        return torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, "none", [], ""
        )


def pack_linear_layers(model: Any) -> Any:
    """Put a ``PackedLinear`` in the place of each linear layer; return the model.

    Weights that other modules use, as the embeddings do, stay there as they were.
    Raises what torch does where it has no such layers for the dtype or the machine.
    """
    for module in model.modules():
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, PackedLinear(layer))
    return model
