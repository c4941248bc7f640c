"""Steps that leave no trace: a model is run as in training, for its time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from llmft.config.fields import TrainingArguments
from llmft.console import warn
from llmft.errors import ConfigError, brief
from llmft.machine.measure import best_seconds
from llmft.machine.trial import LONG, Candidate
from llmft.model.compiled import compile_layers, plain_layers
from llmft.process import as_fault
from llmft.train.narrow import transformers_model
from llmft.train.objectives import Objective
from llmft.train.randomness import undisturbed

# Weights that the optimizer is timed on: more than the caches hold.
_SAMPLE = 2**22

# Arguments of checkpointing that are transformers' own, not torch's.
_OF_LAYERS = ("every_n_layers", "offload")


class Steps:
    """Runs a model on batches, with the settings of a candidate.

    Args:
        model, objective, collator: as the trainer gets them.
        args: of the trainer.
    """

    def __init__(
        self, model: Any, objective: Objective, collator: Any, args: TrainingArguments
    ) -> None:
        self.model, self.objective, self.collator = model, objective, collator
        self.args = args

    @contextmanager
    def leaving_no_trace(self) -> Iterator[None]:
        """Put back what steps in the block change beside the settings of a candidate.

        That is random numbers, buffers, gradients, and the mode of the model.
        """
        core, training = transformers_model(self.model), self.model.training
        use_cache = getattr(core.config, "use_cache", None)
        core.config.use_cache = False  # as Trainer has it
        if self.args.activation_checkpointing and self.args.do_train:
            more: Any = {**cast(Any, self.args.activation_checkpointing_kwargs or {})}
            own = {n: more.pop(n) for n in _OF_LAYERS if n in more}  # as Trainer does
            core.activation_checkpointing_enable(more or None, **own)
        try:
            with undisturbed(self.model):
                yield
        finally:
            self.model.train(training)
            self.model.zero_grad(set_to_none=True)
            core.config.use_cache = use_cache

    def run(
        self, candidate: Candidate, examples: list[Any], trains: bool = True
    ) -> None:
        """Run a batch forward and, where it ``trains``, backward."""
        batch = self.collator(examples)
        shape = tuple(batch["input_ids"].shape)
        set_candidate(transformers_model(self.model), candidate, shape)
        self.model.train(trains)
        bf16 = candidate.precision == "bf16"
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            nullcontext() if trains else torch.no_grad(),
        ):
            if not trains:
                if "labels" in batch:
                    self.objective.evaluate(self.model, batch)
                else:
                    self.model(**batch)
                return
            smoothing = self.args.label_smoothing_factor
            loss = self.objective.loss(self.model, batch, None, smoothing)
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    def timed(
        self,
        candidate: Candidate,
        examples: list[Any],
        trains: bool,
        until: float = math.inf,
    ) -> float:
        """Return the seconds of the fastest ``run`` of three, or of one that is long.

        Not of one that compiled: it took 24 s of a step of 3.6. None begins after
        ``until``, by ``time.perf_counter``, but the first.
        """
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            self.run(candidate, examples, trains)
            best = min(best, time.perf_counter() - start)
            if (best > LONG and not candidate.compiled) or time.perf_counter() > until:
                break
        return best


def runnable(
    steps: Steps, candidates: Sequence[Candidate], longest: Mapping[str, Any]
) -> list[Candidate]:
    """Return the candidates without those that do not run, which a warning names.

    Up to the first that runs they are tried, on one example of each split: what a run
    would end with in the middle, or at its end, is said before it begins.

    Args:
        longest: the longest example of each split.

    Raises:
        ConfigError: none runs; names a number of tokens that does, if one is found.
    """
    failed: dict[Candidate, Exception] = {}
    for candidate in candidates:
        plain = candidate._replace(compiled=False)
        try:
            with steps.leaving_no_trace():
                for split, example in longest.items():
                    trains = split == "train" and steps.args.do_train
                    steps.run(plain, [example], trains)
            break
        except Exception as error:  # whatever a model says that cannot do it
            if known := as_fault(error):
                raise known from error
            failed[candidate] = error
    first = next(iter(failed), None)
    if first is not None and len(failed) == len(candidates):
        raise _why_not(steps, first, longest, failed[first]) from failed[first]
    for candidate, reason in failed.items():
        form = f"{candidate.precision} with attention {candidate.attention}"
        warn(f"this model does not run in {form}: {brief(reason)}")
    return [candidate for candidate in candidates if candidate not in failed]


def _why_not(
    steps: Steps, candidate: Candidate, longest: Mapping[str, Any], error: Exception
) -> ConfigError:
    """Return the error of a model that does not run; tries shorter examples."""
    name = transformers_model(steps.model).config.model_type
    said, tokens = brief(error), max(len(e["input_ids"]) for e in longest.values())
    example = max(longest.values(), key=lambda e: len(e["input_ids"]))
    for length in range(tokens // 2, 7, -max(tokens // 8, 1)):
        short = {
            key: value[:length] if np.ndim(value) and len(value) == tokens else value
            for key, value in example.items()
        }
        try:
            with steps.leaving_no_trace():
                steps.run(candidate._replace(compiled=False), [short])
        except Exception:  # as above
            continue
        found = f"this {name} model runs with {length} tokens, not with {tokens}"
        return ConfigError(f"{found}: {said}; use a shorter --max_seq_length")
    other = "--precision fp32" if candidate.precision == "bf16" else "another model"
    return ConfigError(f"a step of this {name} model fails: {said}; use {other}")


def set_candidate(core: Any, candidate: Candidate, shape: tuple[int, ...]) -> None:
    """Have ``core``, a transformers model, run with the settings of a candidate.

    Args:
        shape: rows and tokens of the batches for which layers are compiled.
    """
    if candidate.attention != core.config._attn_implementation:
        core.set_attn_implementation(candidate.attention)
    if candidate.compiled:
        compile_layers(core, *shape)
    else:
        plain_layers(core)


def optimizer_cost(args: TrainingArguments, model: Any) -> tuple[float, int]:
    """Return the seconds of a step of the optimizer, and the bytes that it keeps.

    Tried on some weights of its own, in proportion to all that are trained.
    """
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    make, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    columns = 1024
    sample = nn.Parameter(torch.zeros(min(weights, _SAMPLE) // columns + 1, columns))
    sample.grad = torch.full_like(sample, 1e-3)
    optimizer: Any = make([sample], **settings)

    def step() -> None:
        nn.utils.clip_grad_norm_([sample], args.max_grad_norm)
        optimizer.step()

    step()  # makes its states
    (seconds,) = best_seconds([step], 0.0)
    states = optimizer.state[sample].values()
    kept = sum(x.nbytes for x in states if isinstance(x, torch.Tensor))
    share = weights / sample.numel()
    return seconds * share, int(kept * share)
