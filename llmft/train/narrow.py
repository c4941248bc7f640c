"""Run the end of a model only at the positions whose output a loss needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from llmft.data.tokens.collate import IGNORED

# Where all positions meet for the last time in the last layer, by the name of the
# module: what comes after it treats each position alone. BERT, RoBERTa, ELECTRA and
# DeBERTa; DistilBERT; MPNet.
_LAST_MEETINGS = ("attention.output", "sa_layer_norm", "attention.LayerNorm")
# Relative, for the same numbers in bf16 from products of other shapes.
_SAME = 0.05


def transformers_model(model: Any) -> Any:
    """Return the transformers model inside DistributedDataParallel and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def labelled_positions_only(
    base_model: nn.Module, labels: torch.Tensor, point: nn.Module | None = None
) -> Iterator[None]:
    """Let a ``*ForMaskedLM`` run its head at the labelled positions only.

    Inside the block the encoder returns hidden states of shape (positions, hidden)
    instead of (batch, length, hidden), so that the logits have shape (positions,
    vocabulary). The positions are those with a label, then repeats of the first token
    up to a multiple of 64: oneDNN makes and keeps a kernel for every new shape (peak
    of an epoch of the default run: 4.2 GB without, 2.1 GB with). With 15 % of the
    tokens masked the hook doubled the speed of training (580 to 1,134 tokens/s on 2
    cores with AVX512-BF16, 1,080 to 2,041 with AMX).

    Args:
        base_model: ``model.base_model``.
        labels: shape (batch, length), int64, -100 where there is none.
        point: where the other positions are dropped, see ``last_meeting``; None: after
            the last layer.
    """
    positions = (labels.flatten() != IGNORED).nonzero()[:, 0]
    padded = torch.zeros(-(-max(len(positions), 1) // 64) * 64, dtype=torch.int64)
    padded[: len(positions)] = positions

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0].flatten(0, 1)[padded]
        return output

    if point is not None:
        with _inputs(point, lambda states: states.flatten(0, 1)[padded]):
            yield
        return
    handle = base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def first_position_only(point: nn.Module) -> AbstractContextManager[None]:
    """Let a classifier that reads its first token run its end there only.

    Args:
        point: where the other positions are dropped, see ``last_meeting``.
    """
    return _inputs(point, lambda states: states[:, :1])


@contextmanager
def _inputs(
    module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return tuple(change(x) if isinstance(x, torch.Tensor) else x for x in args)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _trial(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield two rows of a batch, cut to an odd length, for the model in eval mode.

    BigBird and Longformer pad inside to an even length and cut that off at the end.
    """
    length = inputs["input_ids"].shape[1]
    cut = length - 1 + length % 2
    rows = {
        name: x[:2, :cut] if x.shape[1:2] == (length,) else x[:2]
        for name, x in inputs.items()
        if name != "labels"
    }
    training = model.training
    model.eval()
    try:
        yield rows
    finally:
        model.train(training)


@torch.no_grad()
def last_meeting(model: Any, inputs: dict[str, Any], task: str) -> nn.Module | None:
    """Return the module of the last layer that may see the needed positions only.

    Of the last layer only keys, values and the attention over them need all positions.
    Dropping the others behind that saves 0.85 * 9/12 of the layer where 15 % have a
    label, for the same result. Two rows are run to see that the needed logits do not
    hear of the other positions, and that they come out when those are dropped; so a
    classifier that does not read its first token alone gets None.

    Args:
        model: a ``*ForMaskedLM``, or a ``*ForSequenceClassification``.
        inputs: a batch, with or without labels.
        task: ``masked-lm`` or ``classification``.
    """
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    layers = next((found for found in lists if len(found)), None)
    modules = {} if layers is None else dict(layers[-1].named_modules())
    point = next((modules[n] for n in _LAST_MEETINGS if n in modules), None)
    if point is None:
        return None
    with _trial(model, inputs) as rows:
        labels = torch.full_like(rows["input_ids"], IGNORED)
        labels[:, :: 3 if task == "masked-lm" else labels.shape[1]] = 0
        keep = labels != IGNORED
        only = first_position_only(point)
        if task == "masked-lm":
            only = labelled_positions_only(model.base_model, labels, point)

        def silence(states: torch.Tensor) -> torch.Tensor:
            return states.masked_fill(~keep[..., None], torch.nan)

        try:
            with _inputs(point, silence):
                wanted = model(**rows).logits
            with only:
                found = model(**rows).logits
        except Exception:  # whatever a model says that cannot do it
            return None
    if task == "masked-lm":
        wanted, found = wanted[keep], found[: int(keep.sum())]
    if found.shape != wanted.shape or not wanted.isfinite().all():
        return None
    return point if (found - wanted).norm() <= _SAME * wanted.norm() else None


@contextmanager
def head_inputs(head: nn.Linear | None) -> Iterator[list[torch.Tensor]]:
    """Let an output layer run at a single position, and keep what it was given.

    Inside the block each forward pass appends the hidden states that the layer would
    have seen to the list that is yielded, shape (..., positions, hidden).

    Args:
        head: as ``plain_head`` returns it; None changes nothing.
    """
    states: list[torch.Tensor] = []

    def keep(given: torch.Tensor) -> torch.Tensor:
        states.append(given)
        return given[..., -1:, :][:1]

    with nullcontext() if head is None else _inputs(head, keep):
        yield states


def plain_head(model: Any, inputs: dict[str, Any]) -> nn.Linear | None:
    """Return the output layer of a language model whose logits are just what it gives.

    None where the model also scales or caps its logits (Gemma 2, Cohere, Granite), adds
    a bias of its own (ESM), or has no such layer. This is tried with large hidden
    states, since a cap shows at large logits only.

    Args:
        inputs: a batch, of which two rows are tried.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    states = torch.full((1, 1, head.in_features), 100.0, dtype=head.weight.dtype)
    own = {id(p) for p in head.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    with _trial(model, inputs) as rows:
        try:
            with torch.enable_grad(), _inputs(head, lambda given: states):
                logits = model(**rows).logits
                total = logits.sum()
        except Exception:  # whatever a model says that cannot do it
            return None
    if total.requires_grad and others:
        reached = torch.autograd.grad(total, others, allow_unused=True)
        if any(gradient is not None for gradient in reached):
            return None
    with torch.no_grad():
        wanted = head(states).float()
        same = logits.shape == wanted.shape
        return head if same and torch.allclose(wanted, logits.float(), 1e-3) else None
