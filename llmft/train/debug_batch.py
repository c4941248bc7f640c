"""The batch whose loss or gradient was not finite: what is at fault, and keeping it.

All of it is found while the model is there, as it was before the step: ``llmft
inspect`` shows what was written, and needs no model.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from llmft.console import say, warn
from llmft.data.read.store import Source
from llmft.data.tokens.collate import examples_by_row, unmasked
from llmft.errors import LlmftError, brief
from llmft.files import publish_folder, write_json
from llmft.machine.detect import gib
from llmft.model.adapters import how_to_save
from llmft.model.features import CachedBackbone, whole_model
from llmft.train.kept import BATCH, FOLDER, MODEL, TENSORS, kept, place_of
from llmft.train.narrow import transformers_model
from llmft.train.randomness import undisturbed
from llmft.train.rows import places_of, rows_of_example

_KEPT = 3  # the newest
_CHARACTERS = 2000  # of a text
_NAMES = 10  # of weights that are listed


@dataclass(frozen=True)
class Part:
    """A micro-batch of a step, with what it takes to run it again.

    ``count`` is what its loss is divided by, ``rng`` torch's random state before it.
    """

    model: Any
    batch: Any
    count: Any
    rng: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens."""
        values = self.batch.get("input_ids", next(iter(self.batch.values())))
        return len(values), values.shape[1] if values.ndim > 1 else 1


@dataclass
class Found:
    """What is known of a step that is not finite; see ``batch.json``.

    Attributes:
        part: which micro-batch is at fault, from 0.
        alone: its rows that give the same when they run alone.
        examples: those of the training data that it was made of, in order.
        rows: of each, its examples, places, text, tokens, and its loss alone.
        forward, backward: the first module whose output, and the first the gradient of
            whose output, was not finite, as ``tracing`` describes it.
        features: whether those are not finite that a frozen encoder gave for the batch.
        weights, gradients: names of those that are not finite.
    """

    step: int
    what: str
    value: float
    learning_rate: float
    last_norm: float | None
    part: int = 0
    parts: int = 1
    alone: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    forward: dict[str, Any] | None = None
    backward: dict[str, Any] | None = None
    features: bool = False
    weights: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, trainer: Any, what: str, value: float) -> Found:
        """Return what is known of the step of a trainer without looking into it."""
        known = trainer.optimizer.param_groups[0]["lr"], trainer.last_norm
        return cls(trainer.state.global_step + 1, what, value, *known)

    @property
    def places_alone(self) -> list[str]:
        """Where the rows stand that are at fault alone."""
        return [*filter(None, (place_of(self.rows[i]) for i in self.alone))]

    @property
    def module(self) -> str:
        """The name of the first module that was not finite, or ""."""
        found = self.forward or self.backward
        return found["module"] if found else ""

    @property
    def gets(self) -> bool:
        """Whether that module was given numbers that were not finite already."""
        return self.forward is not None and self.forward["gets"]


def look_into(
    trainer: Any, parts: Sequence[Part], what: str, value: float, source: Source | None
) -> Found:
    """Run a step again, and its rows one by one; leave all but gradients as it was."""
    found = Found.of(trainer, what, value)
    found.parts, found.part = len(parts), len(parts) - 1
    backward = what == "gradient"
    # Compiled layers would run past the hooks of ``trace``.
    with undisturbed(trainer.model), torch.compiler.set_stance("force_eager"):
        if backward:  # an earlier micro-batch may be to blame
            bad = [_is_bad(trainer, part, part.batch) for part in parts]
            found.part = bad.index(True) if True in bad else found.part
        part = parts[found.part]
        size = part.shape[0]
        losses = [_loss(trainer, part, _row(part.batch, i, size)) for i in range(size)]
        bad = [not math.isfinite(loss) for loss in losses]
        if backward:
            rows = (_row(part.batch, i, size) for i in range(size))
            bad = [_is_bad(trainer, part, row) for row in rows]
        if size == 1 or not all(bad):
            found.alone = [i for i, is_bad in enumerate(bad) if is_bad]
        again = _is_bad if backward else _loss
        run = partial(again, trainer, part, part.batch)
        found.forward, found.backward = trace(trainer.model, run, _decoder(trainer))
        found.features = _has_bad_features(trainer.model, part.batch)
        named = list(trainer.model.named_parameters())
        found.weights = [n for n, w in named if not w.isfinite().all()]
        graded = ((n, w.grad) for n, w in named if w.grad is not None)
        found.gradients = [n for n, g in graded if backward and not g.isfinite().all()]
    found.rows = _described(trainer, part.batch, losses, source)
    found.examples = sorted({i for row in found.rows for i in row["examples"]})
    found.tensors = {
        name: values.detach().cpu().contiguous().clone()
        for name, values in part.batch.items()
        if isinstance(values, torch.Tensor)
    }
    found.tensors["rng_state"] = part.rng
    return found


def _row(batch: Mapping[str, Any], place: int, size: int) -> dict[str, Any]:
    """Return a row of a batch as a batch of its own."""
    return {
        name: values[place : place + 1]
        if isinstance(values, torch.Tensor) and values.ndim and len(values) == size
        else values
        for name, values in batch.items()
    }


def _computed(trainer: Any, part: Part, batch: Any) -> torch.Tensor:
    trainer.model.zero_grad()
    torch.set_rng_state(part.rng)
    with trainer.compute_loss_context_manager():
        loss: torch.Tensor = trainer.compute_loss(
            part.model, batch, num_items_in_batch=part.count
        )
    return loss


def _loss(trainer: Any, part: Part, batch: Any) -> float:
    with torch.no_grad():
        return float(_computed(trainer, part, batch))


def _is_bad(trainer: Any, part: Part, batch: Any) -> bool:
    """Return whether a batch has a loss, or a gradient, that is not finite."""
    loss = _computed(trainer, part, batch)
    if not math.isfinite(loss.detach()):
        return True
    loss.backward()
    grads = [w.grad for w in trainer.model.parameters() if w.grad is not None]
    return not all(bool(g.isfinite().all()) for g in grads)


def _has_bad_features(model: Any, batch: Mapping[str, Any]) -> bool:
    """Return whether a frozen encoder gave a batch numbers that are not finite."""
    core = transformers_model(model).base_model
    if not isinstance(core, CachedBackbone):
        return False
    return not bool(core.states[batch["input_ids"]].isfinite().all())


def _decoder(trainer: Any) -> Any:
    """Return a function that writes out tokens; of features, none."""
    tokenizer = trainer.processing_class
    if tokenizer is None or vars(trainer.model).get("llmft_backbone") is not None:
        return None
    return tokenizer


def _described(
    trainer: Any, batch: Any, losses: list[float], source: Source | None
) -> list[dict[str, Any]]:
    """Return what is known of each row of a batch."""
    data, tokenizer = trainer.train_dataset, _decoder(trainer)
    ids = batch.get("input_ids")
    examples = examples_by_row(batch, data)
    can_decode = tokenizer is not None and ids is not None
    learnt = unmasked(batch) if can_decode else []
    rows = []
    for i, (loss, of_row) in enumerate(zip(losses, examples, strict=True)):
        places = [p for e in of_row for p in places_of(data, e, source)]
        tokens: list[str] = []
        text = ""
        if can_decode:
            tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(ids[i].tolist())]
            text = tokenizer.decode(learnt[i], skip_special_tokens=True)
        elif source is not None and of_row and isinstance(data, Dataset):
            text = source.dataset[rows_of_example(data, of_row[0])[0]]["text"]
        rows.append(
            {
                "examples": of_row,
                "places": places,
                "loss": _number(loss),
                "text": str(text)[:_CHARACTERS],
                "tokens": tokens,
            }
        )
    return rows


def _number(value: float | None) -> float | str | None:
    """Return a number as strict JSON has it: one that is not finite as its name."""
    return value if value is None or math.isfinite(value) else str(value)


def keep(folder: Path, found: Found, trainer: Any, stops: bool) -> bool:
    """Write what was found into the folder of a run; return whether that could be.

    The newest few are kept, and where the run ``stops``, the weights before the step.
    A full disk is warned of, and hides nothing.
    """
    root = folder / FOLDER
    record = asdict(found)
    del record["tensors"]
    record |= {n: _number(record[n]) for n in ("value", "last_norm", "learning_rate")}
    record |= {n: _listed(record[n]) for n in ("weights", "gradients")}
    record["time"] = round(time.time(), 3)
    try:
        with publish_folder(root / f"step-{found.step}", replace=True) as staging:
            save_file(found.tensors, staging / TENSORS)
            write_json(staging / BATCH, record)
        for old in kept(folder)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, LlmftError) as error:
        warn(f"the batch could not be kept: {brief(error)}")
        return False
    if stops:
        _keep_weights(root, trainer)
    return True


def _listed(names: list[str]) -> list[str]:
    more = [f"and {len(names) - _NAMES:,} more"] if len(names) > _NAMES else []
    return names[:_NAMES] + more


def _keep_weights(root: Path, trainer: Any) -> None:
    """Save the model as it was before the step, where the disk has the room."""
    model = trainer.model
    how = how_to_save(model)
    trained = [w for w in model.parameters() if w.requires_grad]
    needed = sum(w.nbytes for w in (trained if how else model.parameters()))
    free = shutil.disk_usage(root).free
    if free < 2 * needed + 2**26:
        warn(f"its weights are not kept: {gib(needed)}, and {gib(free)} are free")
        return
    try:
        with (
            whole_model(transformers_model(model)),
            publish_folder(root / MODEL, replace=True) as staging,
        ):
            model.save_pretrained(staging, **how)
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(staging)
    except (OSError, SafetensorError) as error:
        warn(f"its weights could not be kept: {brief(error)}")
        return
    size = sum(p.stat().st_size for p in (root / MODEL).rglob("*"))
    say(f"kept       the batch, and the weights before it ({gib(size)}): {root}")


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
        tensors = [x for x in _tensors(out) if x.is_floating_point()]
        if found[0] is None and not all(x.isfinite().all() for x in tensors):
            taken = _tensors([*args, given])
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

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hook = partial(forward, name)
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        run()
    return found[0], found[1]


def _of_module(name: str, module: nn.Module) -> Described:
    weights = [
        {"name": name, **_stats(weight)}
        for name, weight in module.named_parameters(recurse=False)
    ]
    shown = name or "the model itself"
    return {"module": shown, "kind": type(module).__name__, "weights": weights}


def _tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in what a module was given, or gives."""
    return [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]


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
