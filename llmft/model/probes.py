"""Whether a model fits its tokenizer, the length of the examples, and the task."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmft.errors import ConfigError


def check_fits(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> None:
    """Raise ConfigError where token ids or positions would run out of the tables."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model embeddings for"
            f" {rows:,}: use the tokenizer that the model was made with"
        )
    positions = position_limit(model)
    if positions is not None and max_seq_length > positions:
        raise ConfigError(
            f"max_seq_length is {max_seq_length}, this model has {positions} positions"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the model's position table allows, if any."""
    limit = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if limit is not None and padding is not None:
        return limit - padding - 1  # RoBERTa counts from padding_idx + 1
    return limit


@torch.no_grad()
def require_causal(model: PreTrainedModel, name: str) -> None:
    """Raise ConfigError for a model that sees what it should predict (BERT)."""
    training = model.training
    model.eval()
    ids = torch.tensor([[0, 1], [0, 2]]) % model.config.vocab_size
    first, second = model(input_ids=ids, use_cache=False).logits[:, 0]
    model.train(training)
    if not torch.equal(first, second) and not torch.allclose(first, second, atol=1e-3):
        raise ConfigError(
            f"{name} sees the words that it should predict: it is no causal"
            " model; use recipes/mlm.py for it"
        )
