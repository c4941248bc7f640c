"""Losses that compute only what training needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmft.data.collate import IGNORED

# Positions whose logits are held at a time: 256 x 151,936 (Qwen) in fp32 is 156 MB.
LOGIT_ROWS = 256


@contextmanager
def labelled_positions_only(
    base_model: nn.Module, labels: torch.Tensor
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
    """
    positions = (labels.flatten() != IGNORED).nonzero()[:, 0]
    padded = torch.zeros(-(-max(len(positions), 1) // 64) * 64, dtype=torch.int64)
    padded[: len(positions)] = positions

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0].flatten(0, 1)[padded]
        return output

    handle = base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def transformers_model(model: Any) -> Any:
    """Return the transformers model inside DistributedDataParallel and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def labelled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross entropy per label over the whole accumulated batch.

    The losses inside BertForMaskedLM and BertForSequenceClassification are means over
    one micro-batch that Trainer takes for already scaled: with accumulation the
    gradient is then that many times too large.

    Args:
        logits: as ``labelled_logits`` takes them.
        labels: int64, -100 where there is none.
        num_items_in_batch: labels in all micro-batches of the step; None: in this.
        label_smoothing: as in ``torch.nn.functional.cross_entropy``.

    Returns:
        a scalar; 0 with zero gradients where nothing is labelled.
    """
    logits, wanted = labelled_logits(logits, labels)
    total = nn.functional.cross_entropy(
        logits.float(), wanted, reduction="sum", label_smoothing=label_smoothing
    )
    count = len(wanted) if num_items_in_batch is None else num_items_in_batch
    return total / max(int(count), 1)


def labelled_logits(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of shape (labels, classes) and the labels that they predict.

    Args:
        logits: (batch, classes), (batch, length, classes), or what comes of
            ``labelled_positions_only``.
        labels: (batch,) or (batch, length), int64, -100 where there is none.
    """
    keep = labels != IGNORED
    wanted = labels[keep]
    if logits.shape[:-1] == labels.shape:
        return logits[keep], wanted
    return logits[: len(wanted)], wanted


def token_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Reduce the logits of a batch to what ``metrics.TokenPrediction`` needs.

    So an evaluation never keeps logits.

    Args:
        logits: as ``labelled_logits`` takes them.
        labels: (batch, length), -100 where there is none.

    Returns:
        float64 of shape (batch, 3): summed negative log-likelihood, labelled
        tokens, right guesses.
    """
    logits, wanted = labelled_logits(logits, labels)
    owner = (labels != IGNORED).nonzero()[:, 0]
    sums = torch.zeros(len(labels), 3, dtype=torch.float64)
    return sums.index_add_(0, owner, token_columns(logits, wanted))


def token_columns(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return float64 (tokens, 3): negative log-likelihood, 1, and whether it is right.

    Args:
        logits: (tokens, vocabulary). wanted: (tokens,), the right ids.
    """
    nll = nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
    right = logits.argmax(-1) == wanted
    return torch.stack([nll.double(), torch.ones_like(nll).double(), right.double()], 1)


@contextmanager
def last_position_only(base_model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Let a ``*ForCausalLM`` run its head at the last position only.

    Inside the block each forward pass appends the hidden states that its head would
    have seen, shape (batch, length, hidden), to the list that is yielded.
    """
    states: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        states.append(output[0])
        output["last_hidden_state"] = output[0][:, -1:]
        return output

    handle = base_model.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


@torch.no_grad()
def plain_head(model: Any) -> nn.Linear | None:
    """Return the output layer of a causal model whose logits are just what it gives.

    None where the model also scales or caps its logits (Gemma 2, Cohere, Granite), or
    has no such layer. This is tried on one position with large hidden states, since
    a cap shows at large logits only.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    states = torch.full((1, 1, head.in_features), 100.0, dtype=head.weight.dtype)

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = states
        return output

    training = model.training
    model.eval()
    handle = model.base_model.register_forward_hook(replace)
    try:
        ids = torch.zeros((1, 1), dtype=torch.int64)
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
        model.train(training)
    return head if torch.allclose(head(states), logits, rtol=1e-3) else None


def next_token_loss(
    states: torch.Tensor,
    head: nn.Linear,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the next-token cross entropy without ever holding all logits.

    Args:
        states: hidden states before the head, shape (batch, length, hidden).
        head: the output layer, as ``plain_head`` returns it.
        labels: (batch, length), int64, -100 where there is none; position t predicts
            the label of t + 1.
        num_items_in_batch: as in ``labelled_cross_entropy``.
    """
    wanted = labels[:, 1:].flatten()
    keep = (wanted != IGNORED).nonzero()[:, 0]
    count = len(keep) if num_items_in_batch is None else int(num_items_in_batch)
    rows = states[:, :-1].flatten(0, 1)
    if len(keep) < len(wanted):
        rows, wanted = rows[keep], wanted[keep]
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else rows.dtype
    total = _ChunkedCrossEntropy.apply(rows, head.weight, head.bias, wanted, dtype)
    return total / max(count, 1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear layer, ``LOGIT_ROWS`` rows at a time.

    Gradients are made together with the loss, while the logits are there. Products
    are in ``dtype``, sums in float32. torch's own ``linear_cross_entropy`` also sums
    in bf16: its loss was 9 % off for 32,768 tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wanted: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return the sum over ``rows`` (n, hidden) for ``weight`` (classes, hidden)."""
        inputs, matrix = rows.detach().to(dtype), weight.detach().to(dtype)
        total = torch.zeros((), dtype=torch.float64)
        of_rows = torch.empty_like(inputs)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(inputs), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            logits = (inputs[part] @ matrix.T).float()
            if bias is not None:
                logits += bias.detach()
            chosen = wanted[part, None]
            norms = logits.logsumexp(-1, keepdim=True)
            total += (norms - logits.gather(1, chosen)).sum(dtype=torch.float64)
            slope = logits.sub_(norms).exp_()
            slope.scatter_add_(1, chosen, torch.full_like(norms, -1.0))
            if of_bias is not None:
                of_bias += slope.sum(0)
            slope = slope.to(dtype)
            of_rows[part] = slope @ matrix
            if of_weight is not None and dtype == of_weight.dtype:
                of_weight.addmm_(slope.T, inputs[part])
            elif of_weight is not None:
                of_weight += slope.T @ inputs[part]
        ctx.gradients = (of_rows.to(rows.dtype), of_weight, of_bias)
        return total.float()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        """Scale the gradients; they are used up."""
        found = [None if g is None else g.mul_(scale) for g in ctx.gradients]
        del ctx.gradients
        return (*found, None, None)


def next_token_statistics(
    states: torch.Tensor, head: nn.Linear, labels: torch.Tensor
) -> torch.Tensor:
    """As ``token_statistics``, from hidden states, ``LOGIT_ROWS`` positions at a time.

    Args: as ``next_token_loss`` takes them.
    """
    wanted = labels[:, 1:]
    owner, position = (wanted != IGNORED).nonzero(as_tuple=True)
    sums = torch.zeros(len(labels), 3, dtype=torch.float64)
    for start in range(0, len(owner), LOGIT_ROWS):
        rows = owner[start : start + LOGIT_ROWS]
        places = position[start : start + LOGIT_ROWS]
        logits = head(states[rows, places])
        sums.index_add_(0, rows, token_columns(logits, wanted[rows, places]))
    return sums
