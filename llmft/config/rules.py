"""What goes together in the arguments of a recipe, what follows from what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llmft.config.facts import fields_of, fields_with
from llmft.config.fields import DataArguments, TrainingArguments
from llmft.errors import nearest
from llmft.sources import catalog

_OF_FILES = fields_with("source", DataArguments, among=["files"])
FILES = [name for name in _OF_FILES if name.endswith("_file")]
ACTIONS = {"do_train", "do_eval", "do_predict"}
# They look for layers by name or hook into the backward pass: not tried with llmft.
_OPTIMIZERS = ("galore_", "apollo_", "lomo", "adalomo")
_WITHOUT_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")


def follow(
    values: dict[str, Any], origins: dict[str, str], metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """Return the defaults that follow from what was given; note it in ``origins``."""
    follows: dict[str, tuple[Any, str]] = {}
    given = origins.keys()
    if not values["do_train"]:
        for name, off in (("eval_strategy", "no"), ("save_strategy", "no")):
            follows[name] = (off, "do_train is off")
        follows["load_best_model_at_end"] = (False, "do_train is off")
    elif "do_eval" in given and not values["do_eval"]:
        follows["eval_strategy"] = ("no", "do_eval is off")
    strategies = {}
    for part in ("save", "eval"):
        name = f"{part}_strategy"
        if name in given:
            strategies[part] = (values[name], name)
        elif f"{part}_steps" in given and name not in follows:
            strategies[part] = follows[name] = ("steps", f"{part}_steps")
    evaluates = values["eval_strategy"]
    if "eval_strategy" in follows and "eval_strategy" not in given:
        evaluates = follows["eval_strategy"][0]
    if values["do_train"] and evaluates == "no":
        follows["load_best_model_at_end"] = (False, "no evaluation in training")
        follows["early_stopping_patience"] = (None, "no evaluation in training")
    elif values["do_train"] and values["load_best_model_at_end"]:
        # What is given of one holds for the other: the best checkpoint needs both.
        for one, other in (("save", "eval"), ("eval", "save")):
            if one in strategies and strategies[one][0] != "best":
                follows.setdefault(f"{other}_strategy", strategies[one])
            if f"{one}_steps" in given:
                follows[f"{other}_steps"] = (values[f"{one}_steps"], f"{one}_steps")
    if "bf16" in given and values["precision"] == "auto":
        origins.pop("precision", None)
        bf16 = values["bf16"]
        follows["precision"] = ("bf16" if bf16 else "fp32", f"bf16 is {bf16}")
    best = (values["metric_for_best_model"] or "loss").removeprefix("eval_")
    if best in metrics:
        follows["metric_for_best_model"] = (best, "default")
        follows["greater_is_better"] = (metrics[best], f"direction of {best}")
    changed = {n: f for n, f in follows.items() if n not in given}
    origins |= {name: f"follows: {why}" for name, (_, why) in changed.items()}
    return {name: value for name, (value, _) in changed.items()}


def relations(
    v: dict[str, Any], given: Mapping[str, str], metrics: Mapping[str, bool]
) -> list[str]:
    """Return what does not fit together, or llmft, in the full set of values."""
    problems = _evaluation(v, given) if v["do_train"] else []
    best = (v["metric_for_best_model"] or "loss").removeprefix("eval_")
    if best not in metrics:
        problems.append(
            f"metric_for_best_model is {best}, this task has "
            f"{', '.join(metrics)}{nearest(best, metrics)}"
        )
    elif v["greater_is_better"] not in (None, metrics[best]):
        problems.append(f"greater_is_better is {v['greater_is_better']} for {best}")
    problems += _precision(v, given)
    if v["max_steps"] == 0 or v["max_steps"] < -1:
        problems.append(f"max_steps is {v['max_steps']}, expected -1 or at least 1")
    if v.get("streaming"):
        problems += _streaming(v, given)
    if v["dataset_name"] and (files := [name for name in FILES if v[name]]):
        problems.append(f"dataset_name and {', '.join(files)} exclude each other")
    reading = [n for n in _OF_FILES if n not in FILES and v[n] not in (None, "minimal")]
    if v["dataset_name"] and reading:
        problems.append(f"{', '.join(reading)} is of files, not of dataset_name")
    if v["resume_from_checkpoint"] and not v["do_train"]:
        problems.append(
            "resume_from_checkpoint needs do_train; to use a checkpoint as it is, name"
            " it as model_name_or_path"
        )
    if v["resume_from_checkpoint"] is True and not v["output_dir"]:
        problems.append(
            "resume_from_checkpoint true needs output_dir, the run's folder"
        )
    return problems + _refused(v)


def _streaming(v: dict[str, Any], given: Collection[str]) -> list[str]:
    """Return what does not go together with reading on the way."""
    faults = {
        "needs max_steps: the length of a pass is not known": (
            v["do_train"] and v["max_steps"] < 1
        ),
        "reads files or the hub, not pypi:": catalog.is_asset(v["dataset_name"] or ""),
        "reads its file again: not from - (standard input)": v["train_file"] == "-",
        "with dataloader_num_workers above 1 reads all twice": (
            v["dataloader_num_workers"] > 1
        ),
        "with dataloader_persistent_workers has the same order in every epoch": (
            v["dataloader_persistent_workers"]
        ),
        "sets rows aside, max_eval_samples, and no validation_split_percentage": (
            "validation_split_percentage" in given
        ),
    }
    whole = ("max_train_samples", "test_split_percentage", "split_group_column")
    if out := [name for name in whole if v[name]]:
        faults[f"does not know all rows: leave {', '.join(out)} out"] = True
    return [f"streaming {said}" for said, wrong in faults.items() if wrong]


def _evaluation(v: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Return what does not fit together in evaluating and saving while training."""
    problems = []
    evaluates = v["eval_strategy"] != "no"
    if not evaluates:
        needs = {
            "early_stopping_patience": v["early_stopping_patience"],
            "load_best_model_at_end": v["load_best_model_at_end"],
            "save_strategy best": v["save_strategy"] == "best",
            "eval_on_start": v["eval_on_start"],
        }
        problems += [
            f"{name} needs eval_strategy steps or epoch"
            for name, on in needs.items()
            if on
        ]
    elif "do_eval" in given and not v["do_eval"]:
        problems.append(
            f"do_eval false and eval_strategy {v['eval_strategy']} exclude each other"
        )
    if evaluates and v["load_best_model_at_end"]:
        same = v["eval_strategy"] == v["save_strategy"] or v["save_strategy"] == "best"
        if not same:
            problems.append(
                "load_best_model_at_end needs the same eval_strategy and save_strategy,"
                f" found {v['eval_strategy']} and {v['save_strategy']}"
            )
        elif v["save_strategy"] == "steps":
            every = v["eval_steps"] or v["logging_steps"]
            if every >= 1 and v["save_steps"] % every:
                problems.append(
                    f"save_steps ({v['save_steps']:g}) must be a multiple of eval_steps"
                    f" ({every:g}) where load_best_model_at_end is on"
                )
    return problems


def _precision(v: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Return the contradictions of bf16, fp16, precision and use_cpu."""
    problems = []
    if v["bf16"] and v["precision"] == "fp32":
        problems.append("bf16 and precision fp32 exclude each other")
    if "bf16" in given and not v["bf16"] and v["precision"] == "bf16":
        problems.append("bf16 false and precision bf16 exclude each other")
    if v["fp16"] and v["precision"] != "auto":
        problems.append(f"fp16 and precision {v['precision']} exclude each other")
    if v["fp16"] and (v["use_cpu"] or not torch.accelerator.is_available()):
        problems.append(
            "fp16 needs a GPU and use_cpu false; on a CPU use precision bf16 or auto"
        )
    return problems


def require_something_to_do(v: dict[str, Any]) -> list[str]:
    """Return a problem unless the values ask for training, evaluation or a test."""
    if any(v[name] for name in ACTIONS):
        return []
    return [
        "nothing to do: give --do_train, --do_eval or --do_predict; in a JSON file,"
        ' add "do_train": true'
    ]


def require_data(v: dict[str, Any]) -> list[str]:
    """Return the problems of a recipe's model and data source."""
    problems = []
    if v.get("freeze_backbone") and not v["do_train"]:
        problems.append("freeze_backbone is of training: add --do_train")
    if not v["model_name_or_path"]:
        problems.append("model_name_or_path is missing: a folder, hub id or pypi:NAME")
    if not v["dataset_name"] and not any(v[name] for name in FILES):
        problems.append("no data: give --dataset_name or --train_file")
    if v["test_file"] and not v["do_predict"]:
        problems.append("test_file is of --do_predict: add it")
    if v["do_train"] and not v["dataset_name"] and not v["train_file"]:
        problems.append("do_train needs --dataset_name or --train_file")
    return problems


def _refused(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each value that llmft does not take."""
    problems = [
        f"{name} {a.facts['refused']}"
        for name, a in fields_of(TrainingArguments).items()
        if "refused" in a.facts and values[name] != a.default
    ]
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


def build(values: dict[str, Any]) -> tuple[TrainingArguments | None, list[str]]:
    """Return ``TrainingArguments(**values)`` and the problems with them.

    Trainer makes these parts after the run folder is there: they are made here once, so
    that each library says before what it does not take.
    """
    try:
        args = TrainingArguments(**values)
    except Exception as error:  # transformers, accelerate and torch have their own
        return None, [_as_line(error)]
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
    problems = []
    for names, trial in trials.items():
        try:
            trial()
        except Exception as error:
            problems.append(f"{names}: {_as_line(error)}")
    return args, problems


def _as_line(error: Exception) -> str:
    """Return what a library said, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


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
        raise ValueError(
            f"every_n_layers is {every_n_layers}, expected a number from 1"
        )
    options = {"use_reentrant": False, **options}
    checkpoint(torch.neg, torch.ones(1, requires_grad=True), **options)
