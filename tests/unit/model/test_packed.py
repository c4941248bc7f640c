"""Packed linear layers against torch's own."""

import copy

import pytest
import tiny
import torch
from torch import nn

from llmft.tasks.fast_writing import PackedLinear, pack_linear_layers

RNG = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5)])
def test_a_layer_gives_what_the_plain_one_does(shape, bias):
    plain = nn.Linear(24, 40, bias=bias)
    states = torch.randn(*shape, 24, generator=RNG)
    with torch.no_grad():
        found, wanted = PackedLinear(plain)(states), plain(states)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_writes_the_same_tokens():
    """Its embeddings stay, which the packed head shares."""
    plain = tiny.model("llama", "causal-lm", 60, tie_word_embeddings=True).eval()
    packed = pack_linear_layers(copy.deepcopy(plain))
    ids = torch.tensor([[5, 7, 11]])
    args = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    assert packed.generate(ids, **args).tolist() == plain.generate(ids, **args).tolist()
    linear = [m for m in packed.modules() if type(m) is nn.Linear]
    left = {name for name, _ in packed.named_parameters()}
    assert not linear
    assert left < {name for name, _ in plain.named_parameters()}
    assert packed.get_input_embeddings().weight.equal(
        plain.get_input_embeddings().weight
    )
