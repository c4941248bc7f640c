"""``--check_inputs``: whether a batch is one that its model can take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.data.tokens.collate import IGNORED
from llmft.errors import DataError
from llmft.train.narrow import transformers_model
from llmft.train.rows import places_of_rows

Batch = dict[str, torch.Tensor]


def check_batch(trainer: Any, batch: Batch, when: str, source: Any = None) -> None:
    """Raise DataError where a batch is not what the model of a trainer expects.

    Shapes agree, ids are of the embedding, a mask is of 0 and 1 and not empty, labels
    are in their range or -100, and numbers are finite.

    Args:
        when: such as ``step 3``. source: of the training data; tells where rows stand.
    """
    wrong = _shapes(batch)
    bad: torch.Tensor | None = None
    if not wrong:
        core = transformers_model(trainer.model)
        for name, values in batch.items():
            said, bad = _values(name, values, core, trainer.objective)
            if said:
                wrong = f"{name} {said}"
                break
    if not wrong:
        return
    rows = [] if bad is None else sorted({int(i) for i in bad.nonzero()[:, 0]})
    where = ""
    if rows:
        places = places_of_rows(batch, trainer.train_dataset, source)
        shown = [", ".join(places[i]) or f"row {i} of the batch" for i in rows[:5]]
        where = f" ({'; '.join(shown)}{'; ...' * (len(rows) > 5)})"
    raise DataError(
        f"the batch of {when} is not what the model takes: {wrong}{where}",
        hint="see to the collator and the data set that made it",
    )


def _shapes(batch: Batch) -> str:
    """Return what does not agree in the shapes of a batch, or ""."""
    sizes = {name: tuple(values.shape) for name, values in batch.items()}
    shown = ", ".join(f"{name} {shape}" for name, shape in sizes.items())
    if len({shape[:1] for shape in sizes.values()}) > 1:
        return f"its parts have unlike numbers of rows: {shown}"
    wanted = sizes.get("input_ids")
    along = ("attention_mask", "token_type_ids", "position_ids")
    if wanted and any(sizes.get(name, wanted) != wanted for name in along):
        return f"their shapes differ: {shown}"
    return ""


def _values(
    name: str, values: torch.Tensor, core: Any, objective: Any
) -> tuple[str, torch.Tensor | None]:
    """Return what is wrong with the values of a part, and which of them."""
    if values.is_floating_point():
        if (bad := ~values.isfinite()).any():
            return "has numbers that are not finite", bad
    elif name == "attention_mask":
        if (bad := (values != 0) & (values != 1)).any():
            return f"has {values[bad][0].item()}, expected 0 or 1", bad
        if (bad := (values.sum(1) == 0)[:, None]).any():
            return "is 0 in a whole row", bad
    if name == "labels":
        return _labels(values, core, objective)
    limit = _limit(name, core)
    if limit is not None:
        if values.is_floating_point():
            return f"is {values.dtype}, expected whole numbers", None
        if (bad := (values < 0) | (values >= limit)).any():
            return f"has {values[bad][0].item()}, expected 0 to {limit - 1:,}", bad
    return "", None


def _limit(name: str, core: Any) -> int | None:
    """Return how many values a part of a batch may have, None where any."""
    if name == "input_ids":
        table = _own(core.get_input_embeddings)
        return getattr(table, "num_embeddings", None)  # None: features stand in for it
    if name == "token_type_ids":
        return getattr(core.config, "type_vocab_size", None) or None
    if name == "position_ids":
        return getattr(core.config, "max_position_embeddings", None)
    return None


def _own(find: Callable[[], Any]) -> Any:
    """Return embeddings of a model; None of one that has no such table (CANINE)."""
    try:
        return find()
    except NotImplementedError:
        return None


def _labels(
    labels: torch.Tensor, core: Any, objective: Any
) -> tuple[str, torch.Tensor | None]:
    kind = getattr(objective, "problem_type", None)
    if kind in (MULTI, REGRESSION):
        if not labels.is_floating_point():
            return f"are {labels.dtype}, expected numbers with fractions", None
        if kind == MULTI and (bad := (labels < 0) | (labels > 1)).any():
            return f"have {labels[bad][0].item()}, expected 0 to 1", bad
        return "", None
    if labels.is_floating_point():
        return f"are {labels.dtype}, expected whole numbers", None
    head = _own(core.get_output_embeddings) if kind is None else None
    size = getattr(core.config.get_text_config(), "vocab_size", math.inf)
    limit: Any = core.config.num_labels if kind == SINGLE else None
    limit = limit or getattr(head, "out_features", size)
    if (bad := ((labels < 0) & (labels != IGNORED)) | (labels >= limit)).any():
        said = f"have {labels[bad][0].item()}, expected 0 to {limit - 1:,}"
        return said + (", or -100" if kind is None else ""), bad
    if (labels == IGNORED).all():
        return "are all -100: there is nothing to learn", None
    return "", None
