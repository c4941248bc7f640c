"""Which settings of transformers llmft takes; faults of the others, found early.

Trainer notices most of them when it is built or trains, which is after the run folder
is made. Here the fields of ``TrainingArguments`` that llmft does not do are refused by
name, and what can be tried on a single weight is tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llmft.config.fields import TrainingArguments

_PROCESSES = "is for several processes, and llmft trains in one"
_WHY = {
    "deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank"
    " ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters"
    " ddp_static_graph ddp_timeout eval_use_gather_object": _PROCESSES,
    "push_to_hub": "is not done by llmft; upload the model/ folder",
    "hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision": (
        "is of push_to_hub, which llmft does not do; upload the model/ folder"
    ),
    "hub_token": "would be seen by other users of this machine: set HF_TOKEN",
    "use_cache": "keeps keys and values, which training has no use for",
    "use_liger_kernel liger_kernel_config": "needs a GPU",
    "batch_eval_metrics eval_do_concat_batches include_for_metrics label_names"
    " prediction_loss_only": "does not fit the metrics of llmft",
    "remove_unused_columns": "would take columns that the collators need",
    "dataloader_drop_last": "would leave examples out, also of an evaluation",
    "bf16_full_eval fp16_full_eval": (
        "would leave the model in that precision; use precision bf16"
    ),
    "enable_jit_checkpoint": (
        "would end a run that SIGTERM stops as if it were complete; use save_steps"
    ),
    "auto_find_batch_size": (
        "would start again with weights already trained; lower"
        " per_device_train_batch_size"
    ),
}
REFUSED = {name: why for names, why in _WHY.items() for name in names.split()}
# Transformers takes any text here and uses a default for what it does not know.
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "train_sampling_strategy": (
        *("random", "sequential", "group_by_length", "batch_rebalance"),
    ),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
}
# They look for layers by name or hook into the backward pass: not tried with llmft.
_OPTIMIZERS = ("galore_", "apollo_", "lomo", "adalomo")
_WITHOUT_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")


def refused(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return a problem for each value that llmft does not take."""
    problems = _several_processes()
    problems += [
        f"{name} {why}"
        for name, why in REFUSED.items()
        if values[name] != defaults[name]
    ]
    for name, known in _CHOICES.items():
        if values[name] not in known:
            shown = ", ".join(str(choice) for choice in known)
            problems.append(f"{name} is {values[name]}, expected one of {shown}")
    optimizer, schedule = (
        str(getattr(values[name], "value", values[name]))
        for name in ("optim", "lr_scheduler_type")
    )
    if optimizer.startswith(_OPTIMIZERS):
        problems.append(f"optim {optimizer} does not work with llmft")
    if values["optim_args"] and optimizer in _WITHOUT_ARGUMENTS:
        problems.append(f"optim_args has no effect on optim {optimizer}")
    if values["lr_scheduler_kwargs"] and schedule.startswith("constant"):
        problems.append(
            f"lr_scheduler_kwargs has no effect on lr_scheduler_type {schedule}"
        )
    return problems


def _several_processes() -> list[str]:
    """Return a problem where a launcher has started more than this process.

    They would wait for each other, and then write into the same files.
    """
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    given = {name: os.environ.get(name, "") for name in sizes}
    return [
        f"{name} is {size}, and llmft trains in one process; start it without torchrun,"
        " accelerate launch or mpirun"
        for name, size in given.items()
        if size.isdecimal() and int(size) > 1
    ]


def build(values: dict[str, Any]) -> tuple[TrainingArguments | None, list[str]]:
    """Return ``TrainingArguments(**values)`` and the problems with them.

    What Trainer builds after the run folder is made is built here on one weight, so
    that each library says now what it does not take.
    """
    try:
        args = TrainingArguments(**values)
    except Exception as error:  # transformers, accelerate and torch have their own
        return None, [_as_line(error)]
    parts: dict[str, Callable[[TrainingArguments], None]] = {
        "optim, lr_scheduler_type or their arguments": _optimizer,
        "report_to": _trackers,
        "dataloader_num_workers or its companions": _loader,
        "activation_checkpointing_kwargs": _checkpointing,
        "torch_compile_backend or _mode": _compile,
    }
    problems = []
    if args.n_gpu > 1:
        problems.append(
            f"use_cpu false finds {args.n_gpu} GPUs, and llmft trains on one; set"
            " CUDA_VISIBLE_DEVICES=0"
        )
    for names, part in parts.items():
        try:
            part(args)
        except Exception as error:
            problems.append(f"{names}: {_as_line(error)}")
    return args, problems


def _as_line(error: Exception) -> str:
    """Return what a library said, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _optimizer(args: TrainingArguments) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    make, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = make([weight], **settings)
    weight.grad = torch.ones(2, 2)
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    options = args.lr_scheduler_kwargs
    if not isinstance(options, dict | None):
        raise ValueError(f"lr_scheduler_kwargs is {options}, expected a JSON object")
    steps = args.max_steps if args.max_steps > 0 else 1_000_000
    scheduler: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(steps),
        steps,
        options,
    )
    for factor in getattr(scheduler, "lr_lambdas", ()):
        for step in (0, steps // 2, steps):
            factor(step)


def _trackers(args: TrainingArguments) -> None:
    for tracker in get_reporting_integration_callbacks(args.report_to):
        tracker()


def _loader(args: TrainingArguments) -> None:
    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def _checkpointing(args: TrainingArguments) -> None:
    given: Any = args.activation_checkpointing_kwargs or {}
    options = {"use_reentrant": False, **given}
    if options.pop("offload", False):
        raise ValueError("offload needs a GPU")
    every = options.pop("every_n_layers", 1)
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every_n_layers is {every}, expected a number from 1")
    checkpoint(torch.neg, torch.ones(1, requires_grad=True), **options)


def _compile(args: TrainingArguments) -> None:
    if args.torch_compile:
        backend: Any = args.torch_compile_backend
        compiled = torch.compile(
            torch.neg, backend=backend, mode=args.torch_compile_mode
        )
        compiled(torch.ones(1))
