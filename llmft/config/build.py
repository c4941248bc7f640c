"""Making ``TrainingArguments``, and once what each library makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llmft.config.fields import TrainingArguments
from llmft.errors import brief


def build(
    training: type[TrainingArguments], values: dict[str, Any]
) -> tuple[TrainingArguments | None, list[str]]:
    """Return ``training(**values)`` and the problems with them.

    Trainer makes these parts after the run folder is there: they are made here once, so
    that each library says before what it does not take.
    """
    try:
        args = training(**values)
    except Exception as error:  # transformers, accelerate and torch have their own
        return None, [brief(error, None)]
    checkpointing: Any = args.activation_checkpointing_kwargs or {}
    trials: dict[str, Callable[[], Any]] = {
        "optim, lr_scheduler_type or their arguments": lambda: _optimizer(args),
        "report_to": lambda: [
            tracker() for tracker in get_reporting_integration_callbacks(args.report_to)
        ],
        "dataloader_num_workers or its companions": lambda: DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        ),
        "activation_checkpointing_kwargs": lambda: _checkpointing(**checkpointing),
    }
    if args.torch_compile:
        chosen: Any = (args.torch_compile_backend, args.torch_compile_mode)
        trials["torch_compile_backend or _mode"] = lambda: torch.compile(
            torch.neg, backend=chosen[0], mode=chosen[1]
        )
    said = f"use_cpu false finds {args.n_gpu} GPUs, and llmft trains on one; set"
    problems = [f"{said} CUDA_VISIBLE_DEVICES=0"] if args.n_gpu > 1 else []
    for names, trial in trials.items():
        try:
            trial()
        except Exception as error:
            problems.append(f"{names}: {brief(error, None)}")
    return args, problems


def _optimizer(args: TrainingArguments) -> None:
    """Make the optimizer of one weight and its schedule, and ask that for rates."""
    make, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = make([torch.nn.Parameter(torch.ones(2, 2))], **settings)
    options = args.lr_scheduler_kwargs
    if not isinstance(options, dict | None):
        raise ValueError(f"lr_scheduler_kwargs is {options}, expected a JSON object")
    steps = args.max_steps if args.max_steps > 0 else 1_000_000
    warmup = args.get_warmup_steps(steps)
    kind = args.lr_scheduler_type
    scheduler: Any = get_scheduler(kind, optimizer, warmup, steps, options)
    for factor in getattr(scheduler, "lr_lambdas", ()):
        for step in (0, steps // 2, steps):
            factor(step)


def _checkpointing(
    every_n_layers: Any = 1, offload: bool = False, **options: Any
) -> None:
    """Raise what torch or transformers would of the options of checkpointing."""
    if offload:
        raise ValueError("offload needs a GPU")
    if not isinstance(every_n_layers, int) or every_n_layers < 1:
        said = f"every_n_layers is {every_n_layers}, expected a number from 1"
        raise ValueError(said)
    options = {"use_reentrant": False, **options}
    checkpoint(torch.neg, torch.ones(1, requires_grad=True), **options)
