"""The states of the random generators that a training draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generator_states() -> tuple[Any, ...]:
    """Return the states of Python's, numpy's and torch's generator; 20 us."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_generators(states: tuple[Any, ...]) -> None:
    """Put the generators back to where they were."""
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)


@contextmanager
def drawing_apart() -> Iterator[None]:
    """Put the generators back after the block: what it draws moves no training."""
    states = generator_states()
    try:
        yield
    finally:
        set_generators(states)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put back the generators, and the buffers of a model, after the block."""
    buffers = {name: x.clone() for name, x in model.named_buffers()}
    try:
        with drawing_apart():
            yield
    finally:
        with torch.no_grad():
            for name, x in model.named_buffers():
                x.copy_(buffers[name])
