"""Compiled layers: one graph for all of a model's repeated layers."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn


def repeated_layers(model: Any) -> list[nn.Module]:
    """Return the layers of the first list of modules in ``model.base_model``."""
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    return list(next((found for found in lists if len(found)), []))


def why_not_compiled(model: Any) -> str:
    """Return why the layers of ``model`` cannot be compiled here; "" where they can."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler"
    layers = repeated_layers(model)
    if len({type(layer) for layer in layers}) != 1:
        return "its layers are of several kinds"
    return "its layers run twice" if model.is_activation_checkpointing else ""


def compile_layers(model: Any, batch_size: int, length: int) -> None:
    """Let layers run compiled in training, on batches of that many rows and tokens.

    Other shapes, evaluations and sampling run as written: a graph for each would take
    longer to compile than it saves. Until ``plain_layers``.
    """
    for layer in repeated_layers(model):
        found = vars(layer).get("forward")
        if isinstance(found, _Either):
            found.shape = (batch_size, length)
        else:
            layer.forward = _Either(layer.forward, (batch_size, length))


def plain_layers(model: Any) -> None:
    """Undo ``compile_layers``."""
    for layer in repeated_layers(model):
        if isinstance(vars(layer).get("forward"), _Either):
            del layer.forward


class _Either:
    """A forward that runs compiled where that pays."""

    def __init__(self, plain: Any, shape: tuple[int, int]) -> None:
        self.plain, self.shape = plain, shape
        self.compiled = torch.compile(plain, dynamic=False)

    def __call__(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        trains = self.plain.__self__.training and torch.is_grad_enabled()
        pays = trains and states.shape[:2] == self.shape
        return (self.compiled if pays else self.plain)(states, *args, **kwargs)
