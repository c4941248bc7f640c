"""Prompts that are continued together are continued as each by itself, or alone."""

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.tasks.prompts import _padded, _pads_well

RWKV = {"attention_hidden_size": 32, "context_length": 64, "use_cache": False}


@pytest.mark.parametrize(
    ("kind", "changes", "together"),
    [("gpt2", {}, True), ("llama", {}, True), ("rwkv", RWKV, False)],
)
def test_a_model_that_reads_its_padding_gets_none(kind, changes, together):
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sizes = {**tiny.SIZES, "vocab_size": 100, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, **special, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data.mul_(8)  # a random model hardly looks at what it is given
    ids = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
    assert _pads_well(model, ids) is together
    assert _pads_well(model, [[5, 6], [7, 8]])


def test_padding_is_a_token_that_is_there():
    found = _padded([[5, 6, 7], [8]], "cpu")
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_text_that_ends_at_once_is_padded_all_the_same():
    """The end of the shortest, and not of the longest, is no other padding."""
    model = tiny.model("gpt2", "causal-lm", 50).eval()
    ids = [[5, 6, 7, 8], [9]]
    ends = model.generate(torch.tensor([ids[1]]), max_new_tokens=1, do_sample=False)
    model.generation_config.eos_token_id = int(ends[0, -1])
    assert _pads_well(model, ids)
