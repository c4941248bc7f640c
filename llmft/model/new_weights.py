"""Which weights of a loaded model are new, and how they start."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from llmft.console import say, warn
from llmft.data.read.labels import REGRESSION
from llmft.data.tokens.stream import Stream
from llmft.errors import ConfigError, listed
from llmft.model.probes import embeddings_of

_MOST = 4  # names in a list of weights
_FIRST_BLOCKS = 2000


def in_body(model: PreTrainedModel, name: str) -> bool:
    """Return whether a weight is one of the model below its head."""
    return name.startswith(f"{model.base_model_prefix}.")


def output_layers(
    model: PreTrainedModel, outputs: int | None
) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of a model's head that have so many outputs, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not in_body(model, name)
        if module.out_features == outputs
    }


def new_weights(
    model: PreTrainedModel, loaded: dict[str, Any], place: str, other_head: bool
) -> list[str]:
    """Return the names of the weights that the file did not give, in model order.

    Args:
        loaded: as ``from_pretrained(output_loading_info=True)`` gives it.
        other_head: whether the head may have another shape than in the file.

    Raises:
        ConfigError: the body is not as in the file. A pooler may be missing.
    """
    there = dict.fromkeys(loaded["missing_keys"], "not")
    there |= {n: _size(shape) for n, shape, _ in loaded["mismatched_keys"]}
    weights = model.state_dict()
    new = [name for name in weights if name in there]
    for name in new:
        body, missing = in_body(model, name), there[name] == "not"
        if (body and "pooler" not in name) if missing else (body or not other_head):
            raise ConfigError(
                f"config.json does not fit the weights: {name} is {there[name]} in the"
                f" weights and {_size(weights[name].shape)} by config.json; expected"
                " the config.json that they were saved with; copy the folder again",
                path=place,
            )
    return new


def renew_classifier(model: PreTrainedModel, new: Collection[str]) -> list[str]:
    """Make the layer that gives the classes new, as far as it is not in ``new``.

    Its weights are normal, its bias is zero: as transformers itself starts most.
    Returned are the names of the weights that this made new.
    """
    spread = getattr(model.config, "initializer_range", 0.02)
    renewed = []
    for layer, module in output_layers(model, model.config.num_labels).items():
        for part, weight in module.named_parameters(prefix=layer):
            if part not in new:
                torch.nn.init.normal_(weight, std=spread if weight.ndim > 1 else 0)
                renewed.append(part)
    return renewed


def say_loaded(
    model: PreTrainedModel, new: list[str], unused: Iterable[str], note: str = ""
) -> None:
    """Tell what was loaded, what is new, and what of the file was left."""
    size = sum(p.numel() for p in model.parameters()) / 1e6
    say(f"model      {type(model).__name__}, {size:.1f} M parameters")
    if new:
        say(f"           new weights, to be trained: {modules(new)}")
    if note:
        say(f"           {note}")
    left = {n for n in unused if in_body(model, n) and "pooler" not in n}
    if others := set(unused) - left:
        say(f"           weights of the file not used here: {modules(others)}")
    if left:
        warn(f"config.json leaves out weights of the model's body: {modules(left)}")


def modules(names: Iterable[str]) -> str:
    """Return the modules that hold weights, each layer of a stack as one, in short."""
    found = set()
    for name in names:
        parts = name.split(".")[:-1] or [name]
        numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
        found.add(".".join(parts[: numbers[0] + 1] if numbers else parts))
    outer = [m for m in sorted(found) if not any(m.startswith(f"{o}.") for o in found)]
    return listed(outer, _MOST, str)


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def init_mlm_head_as_identity(model: PreTrainedModel, new: list[str]) -> None:
    """Let a new masked-LM head start from what the encoder's states already say.

    Its square layers, random otherwise, stand between the encoder and the tied word
    embeddings. With ``init_output_bias_from_frequencies``, one epoch of the default run
    reached perplexity 130 on validation; 177 with the frequencies alone; two epochs of
    a random head 124.
    """
    for name, weight in model.named_parameters(remove_duplicate=False):
        is_square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
        if is_square and name in new and not in_body(model, name):
            torch.nn.init.eye_(weight)


class _FullPrecision(torch.nn.Linear):
    """A layer that autocast does not round: bf16 has steps of 0.5 at a rating of 80."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.to(self.weight.dtype))


def init_regression_head(model: PreTrainedModel, train: Dataset | None) -> None:
    """Let the output of a regression have full precision; else do nothing.

    The bias of a new head is set to the mean of the training ``labels``: AdamW moves a
    weight by little more than the learning rate a step, which is far from a rating of
    80. A head whose bias is zero is new; others stay as they are.
    """
    outputs = [*output_layers(model, 1).values()]
    if model.config.problem_type != REGRESSION or not outputs:
        return
    outputs[-1].__class__ = _FullPrecision
    bias = outputs[-1].bias
    if train is None or bias is None or bias.any():
        return
    mean = float(np.mean(train["labels"][:]))
    with torch.no_grad():
        bias.fill_(mean)
    say(f"           the new head starts at the mean training label, {mean:.4g}")


def init_output_bias_from_frequencies(
    model: PreTrainedModel, blocks: Dataset | Stream
) -> None:
    """Set the output bias of a new masked-LM head to the log frequency of each token.

    A head whose bias is all zero is new; others, and heads without a bias for each
    token, stay as they are. Counts are those in ``input_ids`` of ``blocks``, plus one.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None or bias.any() or len(bias) != embeddings_of(model):
        return
    counts = torch.ones(len(bias), dtype=torch.float64)
    parts: Iterable[np.ndarray]
    if isinstance(blocks, Dataset):
        tables = blocks.select_columns(["input_ids"]).with_format("arrow").iter(1000)
        parts = (t["input_ids"].combine_chunks().flatten().to_numpy() for t in tables)
    else:  # of a stream, its first blocks
        in_order = islice(blocks.in_order(), _FIRST_BLOCKS)
        parts = iter([np.concatenate([block["input_ids"] for block in in_order])])
    for ids in parts:
        counts += torch.from_numpy(np.bincount(ids, minlength=len(bias)))
    with torch.no_grad():
        bias.copy_((counts / counts.sum()).log())
    say("the new head's bias starts at the token frequencies of the training data")
