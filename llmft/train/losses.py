"""Losses that compute only what training needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.tokens.collate import IGNORED
from llmft.train.tally import TokenTally

# Logits that are held at a time, about: 134 MB in fp32.
LOGITS = 2**25
# Rows of a product with the head are a multiple of this: oneDNN makes and keeps a
# kernel for every new shape, and the heap is left with gaps. 150 steps of 307 +- 16
# labels to 30,522 classes grew by 890 MB without, by 80 MB with it, in the same time (2
# cores, AMD EPYC with AVX512-BF16).
_ROWS = 32
# How far the contrastive loss looks. Accuracy in the mean of 16 draws (8 to 64 texts a
# class): 0.470 after 8 passes and 0.467 after 20; 0.456 and 0.470 with 0.3 and half the
# weight; without the loss 0.412 and 0.430.
TEMPERATURE = 0.1


def labelled_cross_entropy(
    values: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    head: nn.Linear | None = None,
) -> torch.Tensor:
    """Return the cross entropy per label over the whole accumulated batch.

    The losses inside BertForMaskedLM and BertForSequenceClassification are means over
    one micro-batch that Trainer takes for already scaled: with accumulation the
    gradient is then that many times too large.

    Args:
        values: logits, or with ``head`` its inputs, as ``labelled_rows`` takes them.
        labels: int64, -100 where there is none.
        num_items_in_batch: labels in all micro-batches of the step; None: in this.
        label_smoothing: as in ``torch.nn.functional.cross_entropy``; not with ``head``.
        head: the output layer, of whose logits only a few rows are ever held.

    Returns:
        a scalar; 0 with zero gradients where nothing is labelled.
    """
    rows, wanted = labelled_rows(values, labels)
    count = len(wanted) if num_items_in_batch is None else num_items_in_batch
    count = max(int(count), 1)
    if head is None:
        total = nn.functional.cross_entropy(
            rows.float(), wanted, reduction="sum", label_smoothing=label_smoothing
        )
        return total / count
    parameters = (head.weight, head.bias, wanted, 1 / count, product_dtype(rows))
    return _ChunkedCrossEntropy.apply(rows, *parameters)


def product_dtype(values: torch.Tensor) -> torch.dtype:
    """Return the type that autocast, where it is on, has products of ``values`` in."""
    device = values.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return values.dtype


def label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor | None = None,
    problem_type: str = SINGLE,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the loss of a classifier over the whole accumulated batch.

    It is what torch's ``cross_entropy(weight=...)``, ``BCEWithLogitsLoss(pos_weight=
    ...)`` and ``mse_loss`` give for all examples of a step at once, without smoothing;
    without weights it is what transformers computes.

    Args:
        logits: (batch, classes), or (batch, 1) for a regression.
        labels: as ``DataCollatorForClassification`` makes them.
        count: the sum of ``label_count`` over the step; None: of these labels.
        weights: (classes,): of each class, or its ``pos_weight`` among several labels.
        label_smoothing: of a single label, as in ``cross_entropy``; a text has the
            weight of its class all the same.
    """
    if count is None:
        count = label_count(labels, problem_type, weights)
    logits, functional = logits.float(), nn.functional
    if problem_type == REGRESSION:
        total = functional.mse_loss(logits[:, 0], labels, reduction="sum")
    elif problem_type == MULTI:
        total = functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weights, reduction="sum"
        )
    else:
        # torch would weigh the smoothed part by the class that it goes to, which moves
        # the optimum: balanced, 10 texts would outweigh 400 in these parts.
        total = _weighed(
            functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=label_smoothing
            ),
            labels,
            weights,
        ).sum()
    return total / count


def _weighed(
    each: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    return each if weights is None else each * weights[labels]


def contrastive_loss(
    vectors: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the supervised contrastive loss of a batch (Khosla et al. 2020).

    It is L_out of equation 2 there, arXiv 2004.11362: each text should be nearer to the
    others of its class than to the rest of the batch. One that is alone adds nothing.

    Args:
        vectors: (batch, size), of any length. labels: class ids, (batch,).
        count, weights: as ``label_loss`` of a single label takes them.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = nn.functional.normalize(vectors.float(), dim=1)
        near = unit @ unit.T / TEMPERATURE
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    least = torch.finfo(unit.dtype).min  # of infinities, a batch of one makes nan
    near = near.masked_fill(itself, least)
    others = (labels[:, None] == labels) & ~itself
    surprise = near.logsumexp(1, keepdim=True) - near
    each = surprise.masked_fill(~others, 0).sum(1) / others.sum(1).clamp(min=1)
    return _weighed(each, labels, weights).sum() / count


def label_count(
    labels: torch.Tensor, problem_type: str, weights: torch.Tensor | None
) -> torch.Tensor:
    """Return what the summed loss of ``labels`` is divided by to be torch's mean.

    The sum of the weights of their classes, where a text has one class and classes
    have weights; otherwise the labels, of which a text may have several.
    """
    if weights is not None and problem_type == SINGLE:
        return weights[labels].sum()
    return torch.tensor(float(labels.numel()), device=labels.device)


def labelled_rows(
    values: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of shape (labels, size) and the labels that they predict.

    Args:
        values: (batch, size), (batch, length, size), or what comes of
            ``narrow.labelled_positions_only``.
        labels: (batch,) or (batch, length), int64, -100 where there is none.
    """
    keep = labels != IGNORED
    wanted = labels[keep]
    if values.shape[:-1] != labels.shape:
        return values[: len(wanted)], wanted
    return values.flatten(0, -2) if keep.all() else values[keep], wanted


def token_statistics(
    values: torch.Tensor,
    labels: torch.Tensor,
    head: nn.Linear | None = None,
    tally: TokenTally | None = None,
) -> torch.Tensor:
    """Reduce the logits of a batch to what ``metrics.tokens.TokenPrediction`` needs.

    So an evaluation never keeps logits.

    Args:
        values, head: as ``labelled_cross_entropy`` takes them.
        labels: (batch, length), -100 where there is none.
        tally: is told of each token, too.

    Returns:
        float64 of shape (batch, 3), on the device of ``values``: summed negative
        log-likelihood, labelled tokens, right guesses.
    """
    rows, wanted = labelled_rows(values, labels)
    owner, places = (labels != IGNORED).nonzero().T
    sums = rows.new_zeros(len(labels), 3, dtype=_widest(rows.device))
    rows = rows if head is None else _padded(rows)
    for part in _parts(rows, rows.shape[-1] if head is None else head.out_features):
        logits, chosen = rows[part], wanted[part]
        if head is not None:  # not by a call, which may have hooks
            logits = nn.functional.linear(logits, head.weight, head.bias)
        # argmax of bf16 takes 31 ms for 640 x 30,522, of the same in fp32 5 (2 cores
        # with AVX512-BF16): a seventh of an evaluation.
        logits = logits[: len(chosen)].float()
        nll = nn.functional.cross_entropy(logits, chosen, reduction="none")
        columns = (nll, torch.ones_like(nll), logits.argmax(-1) == chosen)
        found = torch.stack([column.to(sums.dtype) for column in columns], 1)
        sums.index_add_(0, owner[part], found)
        if tally is not None:
            tally.add(chosen, places[part], found)
    return sums


def _widest(device: torch.device) -> torch.dtype:
    """Return the widest float there is; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear layer, ``LOGITS`` logits at a time.

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
        scale: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return ``scale`` times the sum, over ``rows`` of shape (n, hidden).

        ``weight`` has shape (classes, hidden), ``wanted`` (n,).
        """
        inputs, matrix = _padded(rows.detach().to(dtype)), weight.detach().to(dtype)
        added = None if bias is None else bias.detach().to(dtype)
        wide = _widest(rows.device)
        total = rows.new_zeros((), dtype=wide)
        of_rows = torch.empty_like(inputs)
        of_weight = None
        of_bias = None if bias is None else torch.zeros_like(bias)
        for part in _parts(inputs, len(weight)):
            logits = nn.functional.linear(inputs[part], matrix, added).float()
            torch.log_softmax(logits, -1, out=logits)
            chosen = wanted[part, None]  # none of rows that were added
            total -= logits.gather(1, chosen).sum(dtype=wide)
            slope = logits.exp_()
            slope.scatter_add_(1, chosen, slope.new_full(chosen.shape, -1.0))
            slope[len(chosen) :] = 0
            if of_bias is not None:
                of_bias.add_(slope.sum(0), alpha=scale)
            slope = slope.to(dtype)
            torch.mm(slope, matrix, out=of_rows[part])
            if not ctx.needs_input_grad[1]:
                continue
            scaled = inputs[part] * scale
            if of_weight is None:  # no zeros to write and to read
                of_weight = (slope.T @ scaled).to(weight.dtype)
            elif dtype == weight.dtype:
                of_weight.addmm_(slope.T, scaled)
            else:
                of_weight += slope.T @ scaled
        of_rows = of_rows[: len(rows)].to(rows.dtype).mul_(scale)
        ctx.gradients = (of_rows, of_weight, of_bias)
        return (total * scale).float()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        """Scale the gradients; they are used up."""
        found = ctx.gradients
        if slope != 1:
            found = [None if g is None else g.mul_(slope) for g in found]
        del ctx.gradients
        return (*found, None, None, None)


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows``, (n, size), with zeros up to a multiple of ``_ROWS``."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % _ROWS))


def _parts(rows: torch.Tensor, classes: int) -> Iterator[slice]:
    """Yield equal parts of ``rows`` with ``LOGITS`` logits each, at least one part."""
    count = max(math.ceil(len(rows) * classes / LOGITS), 1)
    size = max(math.ceil(len(rows) / count / _ROWS), 1) * _ROWS
    for start in range(0, max(len(rows), 1), size):
        yield slice(start, start + size)
