"""Where a text of a causal model ends: at any of its end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmft.console import warn
from llmft.data.read.messages import MESSAGES
from llmft.data.tokens.chat import Layout
from llmft.errors import DataFormatError


def set_ends(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chat: bool | None,
    examples: Mapping[str, Any] | None = None,
) -> None:
    """Let texts end at the model's own ends, and at the tokenizer's eos.

    They go into ``model.generation_config``, which is saved with the model.

    Args:
        chat: also at what the chat template ends a turn with.
        examples: by split, whose labels should have an end; else this warns.
    """
    ends = {*ends_of(model), tokenizer.eos_token_id}
    if chat:
        ends.add(_turn_end(tokenizer))
    found = sorted(ends - {None})
    kept = found[0] if len(found) == 1 else found or None  # it fails at an empty list
    model.generation_config.eos_token_id = kept
    shown = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(found))) or "an end"
    for split, data in (examples or {}).items():
        if "labels" not in data.column_names:
            continue  # texts of which all is learnt
        if all(set(found).isdisjoint(row) for row in data["labels"]):
            warn(
                f"{split}: no turn of the assistant ends with {shown}, so that the"
                " model does not learn to stop; expected a chat template of this"
                " tokenizer"
            )


def ends_of(model: Any) -> list[int]:
    """Return the ids of the tokens at which a text of the model ends."""
    ids = model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that comes after what the assistant said, if any."""
    said = [("user", "question"), ("assistant", "the answer")]
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        text = Layout(tokenizer, MESSAGES).render(messages)[0]
    except DataFormatError:  # a template that wants a system turn
        return None
    _, answered, after = text.rpartition("the answer")
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"][:1]
    if not answered or not ids:
        return None
    added = tokenizer.added_tokens_decoder.get(ids[0])
    special = ids[0] in tokenizer.all_special_ids or (added and added.special)
    return ids[0] if special else None


def length(ids: torch.Tensor, ends: list[int]) -> int:
    """Return the number of tokens up to the first end, which shorter rows end with."""
    found = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype)).nonzero()
    return int(found[0, 0]) + 1 if len(found) else len(ids)
