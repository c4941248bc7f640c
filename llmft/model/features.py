"""Training a classifier's head on features that the frozen encoder made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from llmft.console import say
from llmft.data.tokens.collate import by_length
from llmft.model.probes import evaluating

_PROBES = 4
_INPUTS = ("input_ids", "token_type_ids")
Text = tuple[tuple[int, ...], ...]  # its values in the order of _INPUTS


class CachedBackbone(nn.Module):
    """Stands in for an encoder: ``input_ids`` of shape (batch, 1) are row numbers.

    ``states`` of shape (rows, hidden) are what the head reads of each text, through the
    encoder's own ``pooler`` if it has one.
    """

    states: torch.Tensor

    def __init__(self, states: torch.Tensor, pooler: nn.Module | None) -> None:
        super().__init__()
        self.register_buffer("states", states, persistent=False)  # not to be saved
        self.pooler = pooler

    def forward(self, input_ids: torch.Tensor, **unused: Any) -> Any:
        """Return the features of the rows."""
        states = self.states[input_ids]
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states,
            pooler_output=None if self.pooler is None else self.pooler(states),
        )


def freeze_backbone(
    model: Any, features: dict[str, Dataset], collate: Any
) -> dict[str, Dataset]:
    """Leave the head to be trained, on features that the encoder makes of each text.

    A pooler counts as part of the head: sentence encoders come with an untrained one.

    Equal texts are encoded once, texts of like length together. Where the head reads
    more than the first or the last state of a text, nothing is cached, which is said.

    Args:
        features: ``input_ids``, ``token_type_ids`` of pairs, and what else an example
            has, by split. Returned are such data whose ``input_ids`` are row numbers;
            see ``whole_model``.
        collate: makes a batch of examples with ``input_ids``; pads to no multiple then.
    """
    for name, weight in model.base_model.named_parameters():
        weight.requires_grad_(name.startswith("pooler."))
    rows: dict[Text, int] = {}
    numbers = {
        split: [rows.setdefault(text, len(rows)) for text in _texts(data)]
        for split, data in features.items()
    }
    texts = list(rows)
    place = _place_that_the_head_reads(model, texts, collate)
    if place is None:
        say("  the head reads whole texts: features of the encoder are not cached")
        return features
    states = _encode(model, texts, collate, place)
    total = sum(map(len, numbers.values()))
    say(f"  features   {len(texts):,} different texts of {total:,} encoded once")
    _replace(model, states)
    collate.pad_to_multiple_of = None  # a row number is no token
    return {
        split: data.remove_columns(
            [n for n in (*_INPUTS, "length") if n in data.column_names]
        ).add_column("input_ids", [[i] for i in numbers[split]])
        for split, data in features.items()
    }


def _texts(data: Dataset) -> list[Text]:
    """Return what an encoder reads of each example, in the order of ``_INPUTS``."""
    names = [name for name in _INPUTS if name in data.column_names]
    columns = [map(tuple, data[name]) for name in names]
    return list(zip(*columns, strict=True))


def _batch(model: Any, texts: list[Text], collate: Callable) -> dict[str, Any]:
    examples = [
        {name: list(ids) for name, ids in zip(_INPUTS, text, strict=False)}
        for text in texts
    ]
    return {name: x.to(model.device) for name, x in collate(examples).items()}


def _replace(model: Any, states: torch.Tensor) -> None:
    if "llmft_backbone" not in vars(model):
        # Outside of the registered modules: neither saved nor trained meanwhile.
        object.__setattr__(model, "llmft_backbone", model.base_model)
    pooler = getattr(model.base_model, "pooler", None)
    setattr(model, model.base_model_prefix, CachedBackbone(states, pooler))


@contextmanager
def whole_model(model: Any) -> Iterator[None]:
    """Have the encoder in its place in the block, where features stand in for it."""
    name = model.base_model_prefix
    cached, backbone = getattr(model, name), vars(model).get("llmft_backbone")
    if backbone is not None:
        setattr(model, name, backbone.to(model.device))
    try:
        yield
    finally:
        setattr(model, name, cached)


def _place_that_the_head_reads(
    model: Any, texts: list[Text], collate: Callable
) -> str | None:
    """Return ``first`` or ``last`` if the logits follow from that state alone."""
    probes, backbone = texts[:: -(-len(texts) // _PROBES)], model.base_model
    batch = _batch(model, probes, collate)
    with evaluating(model), torch.no_grad():
        wanted = model(**batch).logits
        for place in ("first", "last"):
            _replace(model, _encode(model, probes, collate, place, quiet=True))
            rows = torch.arange(len(probes), device=model.device)[:, None]
            mask = torch.ones_like(rows)
            try:
                given = model(input_ids=rows, attention_mask=mask).logits
            except (ValueError, TypeError, RuntimeError, AttributeError):
                continue  # a head that looks at the ids themselves (BART)
            finally:
                setattr(model, model.base_model_prefix, backbone)
            if torch.allclose(given, wanted, atol=1e-4, rtol=1e-3):
                return place
    return None


def last_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Return the place of the last token of each text, by its attention mask."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def _encode(
    model: Any, texts: list[Text], collate: Callable, place: str, quiet: bool = False
) -> Any:
    """Return the state at ``place`` of each text, shape (texts, hidden)."""

    def states(rows: list[int]) -> torch.Tensor:
        batch = _batch(model, [texts[i] for i in rows], collate)
        mask = batch["attention_mask"]  # of some tokenizers, padding comes first
        at = mask.argmax(1) if place == "first" else last_tokens(mask)
        found: torch.Tensor = model.base_model(**batch)[0]
        return found[torch.arange(len(rows), device=at.device), at]

    return encoded(model, [len(text[0]) for text in texts], states, quiet)


@torch.no_grad()
def encoded(
    model: Any,
    lengths: list[int],
    vectors_of: Callable[[list[int]], torch.Tensor | None],
    quiet: bool = False,
) -> torch.Tensor | None:
    """Return the vectors of texts, (texts, size), the longest encoded first.

    ``vectors_of`` makes those of some, by their places; where it gives None, so do we.
    """
    made: dict[int, torch.Tensor] = {}
    bar = tqdm(total=len(lengths), desc="encoding", unit="text", disable=quiet or None)
    with evaluating(model), bar:
        for rows in by_length(lengths):
            if (found := vectors_of(rows)) is None:
                return None
            made |= zip(rows, found, strict=True)
            bar.update(len(rows))
    return torch.stack([made[i] for i in range(len(lengths))])
