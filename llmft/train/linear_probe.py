"""A linear probe: the output layer of a classifier, fitted on frozen features.

Where fine-tuning starts from it (linear probing, then fine-tuning: Kumar et al. 2022,
arXiv 2202.10054), the first steps have no random layer whose errors spoil the rest.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold
from threadpoolctl import threadpool_limits
from torch import nn

from llmft.config.fields import TrainingArguments
from llmft.data.read.labels import MULTI, REGRESSION
from llmft.metrics.calibration import log_loss
from llmft.model.features import encoded
from llmft.train.objectives import Classification
from llmft.train.outputs import output_layer, vectors_of_texts

# Regularisations that are tried, as sklearn's C (of a ridge, 1 / alpha), with so many
# folds on at the most so many rows.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS, ROWS = 3, 3000
# Rows that are encoded, at the most: some, and more of each output. Encoding costs a
# third of an epoch of training, and where rows are many, training goes further anyway.
ENCODED, MORE = 4000, 100
# A feature counts as no smaller than this part of them all: weights stay bounded where
# a feature hardly differs between texts, as in a model that was never trained.
_FLOOR = 0.01
# Weight, bias and regularisation.
Fit: TypeAlias = tuple[np.ndarray, np.ndarray, float]


def fit_linear_probe(
    model: Any,
    objective: Classification,
    collator: Any,
    train: Dataset,
    args: TrainingArguments,
) -> int | None:
    """Fit the output layer of ``model`` on what it is given for the training examples.

    All other weights stay as they are. The regularisation is one of ``STRENGTHS``, by
    the loss in a cross-validation. Examples count as the class weights of the objective
    say. Of many examples, some are drawn.

    Returns:
        how many examples were used; None for a model whose logits are not what a linear
        layer makes of one vector a text.
    """
    layer = output_layer(model)
    if layer is None:
        return None
    train = drawn(train, layer.out_features, args.seed)
    features = encode(model, layer, objective, collator, train, args)
    if features is None:
        return None
    weights = None if objective.weights is None else objective.weights.numpy()
    kind, outputs = objective.problem_type, layer.out_features
    labels, has_bias = np.asarray(train["labels"][:]), layer.bias is not None
    texts = np.asarray(train["row"][:]) if "row" in train.column_names else None
    how = kind, outputs, weights, has_bias, texts
    weight, bias, _ = fitted(features, labels, *how)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return len(train)


def drawn(train: Dataset, outputs: int, seed: int) -> Dataset:
    """Return the examples that a probe is fitted on: of many, some by ``seed``."""
    most = ENCODED + MORE * outputs
    if len(train) <= most:
        return train
    rows = np.random.default_rng(seed).permutation(len(train))[:most]
    return train.select(np.sort(rows))


def encode(
    model: Any,
    layer: nn.Linear,
    objective: Classification,
    collator: Any,
    data: Dataset,
    args: TrainingArguments,
) -> np.ndarray | None:
    """Return what ``layer`` is given for each example, float32 (examples, in_features).

    None where it is given more than one vector a text, or is not what gives the logits.
    """
    given: list[torch.Tensor] = []
    bf16 = args.bf16 and args.device.type == "cpu"

    def vectors(rows: list[int]) -> torch.Tensor | None:
        batch = collator([data[i] for i in rows])
        batch = {name: x.to(model.device) for name, x in batch.items()}
        given.clear()
        _, output = objective.evaluate(model, batch)
        return vectors_of_texts(given, batch, layer, output["logits"])

    lengths = [len(ids) for ids in data["input_ids"]]
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        layer.register_forward_pre_hook(lambda _, args: given.extend(args)),
    ):
        found = encoded(model, lengths, vectors)
    return None if found is None else found.float().cpu().numpy()


# For matrices this small, threads of OpenBLAS cost more than they give: 1.6 s, 9.8 with
# two, for 1,800 x 384 and 50 classes on two shared cores.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fitted(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    outputs: int,
    class_weights: np.ndarray | None = None,
    has_bias: bool = True,
    texts: np.ndarray | None = None,
) -> Fit:
    """Return weight, bias and regularisation of a linear layer fitted to ``labels``.

    Args:
        features: (examples, in_features).
        labels: class ids, (examples,); 0 and 1, (examples, outputs); or numbers.
        class_weights: (outputs,), as the loss has them.
        has_bias: whether the layer has one; else that is 0.
        texts: the text of each example, where one may have several.
    """
    mean, least = features.mean(0) * has_bias, _FLOOR * np.sqrt(np.mean(features**2))
    spread = np.maximum(features.std(0), max(least, 1e-6))
    x = ((features - mean) / spread).astype(np.float64)
    if problem_type == REGRESSION:
        parts = None  # each example by itself
        if texts is not None and FOLDS <= len(np.unique(texts)) < len(x):
            parts = GroupKFold(FOLDS).split(x, None, texts)
        strengths = [1 / c for c in STRENGTHS[::-1]]
        ridge = RidgeCV(strengths, fit_intercept=has_bias, cv=parts)
        ridge = ridge.fit(x, labels.reshape(-1))
        coefficients, constants = ridge.coef_[None], np.array([ridge.intercept_])
        strength = float(1 / ridge.alpha_)
    else:
        how = problem_type, class_weights, has_bias
        strength = _strength(x, labels, *how, texts)
        coefficients, constants = _logistic(x, labels, outputs, strength, *how)
    weight = coefficients / spread
    bias = constants - weight @ mean
    return weight.astype(np.float32), bias.astype(np.float32), strength


def _strength(
    x: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    class_weights: np.ndarray | None,
    has_bias: bool,
    texts: np.ndarray | None = None,
) -> float:
    """Return the strength with the lowest loss on texts that were not learnt.

    Weaker regularisations, which take longest, are not tried once the loss rises.
    """
    rows = np.random.default_rng(0).permutation(len(x))[:ROWS]
    x, labels = x[rows], labels[rows]
    if len(x) < 2 * FOLDS:
        return STRENGTHS[0]
    folds: Any = KFold(FOLDS)
    counts = np.unique(labels, return_counts=True)[1]
    if problem_type != MULTI and counts.min() > 1 and counts.max() >= FOLDS:
        folds = StratifiedKFold(FOLDS)
    of_text = None if texts is None else texts[rows]
    if of_text is not None and FOLDS <= len(np.unique(of_text)) < len(x):
        folds = GroupKFold(FOLDS)  # parts of a text are alike
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes of few rows
        parts = list(folds.split(x, labels, of_text))
    outputs = int(labels.max()) + 1
    if problem_type == MULTI:
        outputs = labels.shape[1]
    losses: list[float] = []
    for strength in STRENGTHS:
        if losses and losses[-1] > min(losses):
            break
        found = []
        for learnt, held_out in parts:
            how = problem_type, class_weights, has_bias
            weight, bias = _logistic(x[learnt], labels[learnt], outputs, strength, *how)
            logits = x[held_out] @ weight.T + bias
            found.append(log_loss(logits, labels[held_out], problem_type))
        losses.append(float(np.mean(found)))
    return STRENGTHS[int(np.argmin(losses))]


def _logistic(
    x: np.ndarray,
    labels: np.ndarray,
    outputs: int,
    strength: float,
    problem_type: str,
    class_weights: np.ndarray | None,
    has_bias: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients (outputs, in_features) and constants of the logits."""
    model = LogisticRegression(
        C=strength, max_iter=200, tol=1e-3, fit_intercept=has_bias
    )
    weight, bias = np.zeros((outputs, x.shape[1])), np.zeros(outputs)
    if problem_type == MULTI:
        for i, column in enumerate(labels.T):
            bias[i] = _log_odds(column)
            if 0 < column.sum() < len(column):
                each = None
                if class_weights is not None:
                    each = np.where(column > 0, class_weights[i], 1.0)
                model.fit(x, column, each)
                weight[i], bias[i] = model.coef_[0], model.intercept_[0]
        return weight, bias
    there = np.unique(labels)
    if len(there) < 2:
        bias[there] = _log_odds(np.ones(len(x)))
        return weight, bias
    each = None if class_weights is None else class_weights[labels]
    model.fit(x, labels, each)
    coefficients, constants = model.coef_, model.intercept_
    if len(there) == 2:  # sklearn gives one row, of the second class
        coefficients = np.vstack([-coefficients, coefficients]) / 2
        constants = np.concatenate([-constants, constants]) / 2
    # A class without an example is as unlikely as one that none of them had.
    bias[:] = constants.min() - _log_odds(np.ones(len(x)))
    weight[there], bias[there] = coefficients, constants
    return weight, bias


def _log_odds(column: np.ndarray) -> float:
    """Return the log odds of a label, counted once more on either side."""
    return float(np.log((column.sum() + 1) / (len(column) - column.sum() + 1)))
