"""The first module of a model whose output is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

_IDS = 5  # of an embedding, that are listed

Described = dict[str, Any]


def trace(
    model: nn.Module, run: Callable[[], object], tokenizer: Any = None
) -> tuple[Described | None, Described | None]:
    """Run ``run``; return the first module that gives numbers that are not finite.

    The second of the two is the first of a backward pass, by the gradient of its
    output. Modules are taken in the order in which they end: those within one come
    before it.
    """
    found: list[Described | None] = [None, None]

    def backward(name: str, module: nn.Module, gradient: torch.Tensor) -> None:
        if found[1] is None and not gradient.isfinite().all():
            found[1] = _of_module(name, module) | {"gradient": _stats(gradient)}

    def forward(name: str, module: nn.Module, args: Any, given: Any, out: Any) -> None:
        tensors = list(_floats(out))
        if found[0] is None and not all(x.isfinite().all() for x in tensors):
            taken = list(_tensors([*args, given]))
            found[0] = _of_module(name, module) | {
                "inputs": [_stats(x) for x in taken],
                # A mask has -inf for good reasons.
                "gets": any((x.isnan() | x.isposinf()).any().item() for x in taken),
                "outputs": [_stats(x) for x in tensors],
                "tokens": _tokens(module, args, tokenizer),
            }
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(backward, name, module))

    handles = [
        module.register_forward_hook(partial(forward, name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0], found[1]


def _of_module(name: str, module: nn.Module) -> Described:
    weights = [
        {"name": name, **_stats(weight)}
        for name, weight in module.named_parameters(recurse=False)
    ]
    shown = name or "the model itself"
    return {"module": shown, "kind": type(module).__name__, "weights": weights}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a module was given, or gives."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _floats(value: Any) -> Iterator[torch.Tensor]:
    return (x for x in _tensors(value) if x.is_floating_point())


@torch.no_grad()
def _stats(tensor: torch.Tensor) -> Described:
    """Return shape and type of a tensor, the limits of what is finite, and the rest."""
    values = tensor.detach()
    found: Described = {"shape": list(values.shape), "dtype": str(values.dtype)[6:]}
    finite = values.isfinite()
    some = values[finite].double()
    found |= {"values": values.numel(), "not_finite": int((~finite).sum())}
    if some.numel():
        found |= {"min": float(some.min()), "max": float(some.max())}
    return found


@torch.no_grad()
def _tokens(module: nn.Module, args: Any, tokenizer: Any) -> list[str]:
    """Return the tokens that an embedding was given whose weights are not finite."""
    if not isinstance(module, nn.Embedding) or not args:
        return []
    bad = ~module.weight.isfinite().all(1)
    ids = args[0].unique()
    ids = ids[bad[ids]].tolist()[:_IDS]
    size = len(tokenizer) if tokenizer is not None else 0
    named = size > 0 and module.num_embeddings >= size
    return [
        f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" if named else str(i)
        for i in ids
    ]
