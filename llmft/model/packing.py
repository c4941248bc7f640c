"""Keeping the documents of a packed block apart from each other."""

from __future__ import annotations

from typing import TypeAlias

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from llmft.console import say
from llmft.data.tokens.stream import Stream

Blocks: TypeAlias = Dataset | Stream


@torch.no_grad()
def separates_documents(model: PreTrainedModel) -> bool:
    """Return whether position ids that start again keep documents apart.

    Tried on two documents of four tokens: packed in one row, the second must be seen
    as it is alone. transformers does this for most causal models.
    """
    ids = torch.arange(8) % model.config.vocab_size
    positions = torch.arange(8) % 4
    training = model.training
    model.eval()
    try:
        packed = model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False
        ).logits[0, 4:]
        alone = model(input_ids=ids[None, 4:], use_cache=False).logits[0]
    except TypeError:  # no position_ids: BLOOM, MPT
        return False
    finally:
        model.train(training)
    return torch.allclose(packed, alone, atol=1e-3, rtol=1e-3)


def keep_documents_apart(
    model: PreTrainedModel, blocks: dict[str, Blocks]
) -> dict[str, Blocks]:
    """Return ``blocks``, without ``seq_lengths`` where the model makes no use of them.

    Then the attention of a packed block goes across its documents, which is said.
    """
    packed = any("seq_lengths" in data.column_names for data in blocks.values())
    if not packed or separates_documents(model):
        return blocks
    say("  this model attends across the documents of a packed block")
    return {split: data.remove_columns("seq_lengths") for split, data in blocks.items()}
