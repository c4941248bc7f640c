"""Reading and checking the arguments of a recipe.

``parse`` takes them from ``--args FILE.json`` and the command line, which wins. Every
problem is found before anything is loaded, and all are reported in one message.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmft.config.fields import TrainingArguments
from llmft.config.parse import (
    COMMAND_LINE,
    Group,
    convert,
    default_of,
    fields_of,
    read_command_line,
    read_json,
)
from llmft.config.supported import REFUSED, build, refused
from llmft.errors import ConfigError, escape, nearest
from llmft.sources import catalog

# Intervals for fields of transformers, which accepts learning_rate=-1 or nan.
_RANGES = {
    "(0, 100]": "learning_rate",
    "(0, 1]": "adam_epsilon",
    "(0, inf)": "num_train_epochs eval_steps save_steps",
    "[0, 1)": "label_smoothing_factor adam_beta1 adam_beta2",
    "[0, 4294967296)": "seed data_seed",
    "[0, 1024]": "dataloader_num_workers",
    "[0, inf)": "max_grad_norm eval_delay neftune_noise_alpha",
    "[1, inf)": "per_device_train_batch_size per_device_eval_batch_size"
    " gradient_accumulation_steps eval_accumulation_steps dataloader_prefetch_factor"
    " torch_empty_cache_steps",
}
_RANGE_OF = {name: span for span, s in _RANGES.items() for name in s.split()}

_MOST_USED = (
    "do_train do_eval do_predict output_dir num_train_epochs max_steps"
    " per_device_train_batch_size per_device_eval_batch_size"
    " gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps"
    " weight_decay max_grad_norm label_smoothing_factor precision num_threads"
    " eval_strategy eval_steps save_strategy save_steps save_total_limit"
    " load_best_model_at_end metric_for_best_model greater_is_better"
    " early_stopping_patience early_stopping_threshold logging_steps report_to"
    " dataloader_num_workers train_sampling_strategy resume_from_checkpoint seed"
    " dry_run debug"
).split()

FILES = ("train_file", "validation_file", "test_file")
_SOURCE = {
    *("dataset_name", "dataset_config_name", "dataset_revision", *FILES),
    *("text_column_name", "label_column_name", "quoting"),
    *("split_group_column", "train_split_name", "validation_split_name"),
    *("test_split_name", "sample_by", "file_format", "encoding", "delimiter"),
    *("max_bad_rows", "text_pair_column_name", "problem_type", "label_delimiter"),
    *("messages_column_name", "prompt_column_name", "completion_column_name"),
}
ACTIONS = {"do_train", "do_eval", "do_predict"}
_OFF = ("false", "no", "0")


@dataclass(frozen=True)
class Arguments:
    """What ``parse`` returns: the three dataclasses and where each value came from."""

    model: Any
    data: Any
    training: TrainingArguments
    origins: dict[str, str]

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Every argument with its value and origin, ready for JSON."""
        shown: dict[str, dict[str, Any]] = {}
        for part in (self.model, self.data, self.training):
            for f in dataclasses.fields(part):
                value = getattr(part, f.name)
                value = value.value if isinstance(value, enum.Enum) else value
                if not isinstance(value, str | int | float | list | dict | None):
                    value = str(value)
                origin = self.origins.get(f.name, "default")
                shown[f.name] = {"value": value, "from": origin}
        return shown


def parse(
    argv: list[str],
    model_class: type,
    data_class: type,
    *,
    description: str,
    metrics: Mapping[str, bool],
    default_file: Path | None = None,
    check: Callable[[dict[str, Any]], list[str]] = lambda values: [],
) -> Arguments:
    """Read and check the arguments of a recipe.

    Args:
        argv: the command line without the program's name.
        model_class, data_class: the recipe's own dataclasses.
        description: the first line of ``--help``.
        metrics: what the task measures, each with whether greater is better.
        default_file: the JSON file that holds without ``--args``.
        check: a recipe's own check of the values; returns problems.

    Raises:
        ConfigError: with all problems in one message.
    """
    classes = (model_class, data_class, TrainingArguments)
    fields = fields_of(classes)
    groups = _groups(model_class, data_class, fields)
    defaults = read_json(default_file, list(fields))[0] if default_file else {}
    file_name, flags, problems = read_command_line(
        argv, classes, groups, defaults, description
    )
    path = Path(file_name) if file_name else default_file
    from_file, unknown = read_json(path, list(fields)) if path else ({}, [])
    problems += unknown
    _drop_replaced(from_file, flags, is_default=file_name is None)
    origins = {name: str(path) for name in from_file}
    origins |= dict.fromkeys(flags, COMMAND_LINE)
    values: dict[str, Any] = {}
    for name, given in {**from_file, **flags}.items():
        f, hint = fields[name]
        span = f.metadata.get("range") or _RANGE_OF.get(name)
        try:
            values[name] = convert(name, given, hint, span)
        except ValueError as error:
            shown = escape(f'"{given}"' if isinstance(given, str) else given, 80)
            where = f"{origins[name]}: " if origins[name] != COMMAND_LINE else ""
            problems.append(f"{where}{name} is {shown}, expected {error}")
    full = {n: values.get(n, default_of(f)) for n, (f, _) in fields.items()}
    full |= _follow(full, origins, metrics)
    unfit = _relations(full, origins, metrics)
    problems += unfit + check(full)
    values |= {n: v for n, v in full.items() if n in origins}
    model, data, training = (
        {n: values[n] for n in fields_of([c]) if n in values} for c in classes
    )
    built, faults = build(training) if not unfit else (None, [])
    problems += faults
    if problems or built is None:
        raise ConfigError(*problems)
    return Arguments(model_class(**model), data_class(**data), built, origins)


def _groups(model_class: type, data_class: type, fields: Mapping) -> list[Group]:
    names = [
        tuple(f.name for f in dataclasses.fields(c)) for c in (model_class, data_class)
    ]
    training = [f.name for f in dataclasses.fields(TrainingArguments)]
    rest = [n for n in fields if n in training and n not in _MOST_USED]
    return [
        Group("Model", names[0]),
        Group("Data", names[1]),
        Group("Training", tuple(_MOST_USED)),
        Group(
            "Everything else of transformers.TrainingArguments",
            tuple(n for n in rest if n not in REFUSED),
        ),
        Group("Refused", tuple(n for n in rest if n in REFUSED), shown=False),
    ]


def _drop_replaced(from_file: dict, flags: dict, is_default: bool) -> None:
    """Take out of the file what the command line replaces as a whole.

    Naming a data set or a training file on the command line replaces the file's data
    source with its columns, and its test where no other is named; asking for a step
    (--do_predict) replaces the steps of the default file: it means just that step.
    """
    other_kind = "dataset_name" in from_file and {*FILES} & flags.keys()
    if {"dataset_name", "train_file"} & flags.keys() or other_kind:
        tests = {"test_file", "test_split_percentage", "test_split_name"}
        if not tests & flags.keys() and not from_file.get("test_split_percentage"):
            from_file.pop("do_predict", None)
        for name in _SOURCE & from_file.keys():
            del from_file[name]
    asked = {n for n in ACTIONS & flags.keys() if str(flags[n]).lower() not in _OFF}
    if is_default and asked:
        for name in ACTIONS & from_file.keys():
            del from_file[name]


def _follow(
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


def _relations(
    v: dict[str, Any], given: Mapping[str, str], metrics: Mapping[str, bool]
) -> list[str]:
    """Return what does not fit together, or llmft, in the full set of values."""
    fields = fields_of([TrainingArguments])
    defaults = {name: default_of(f) for name, (f, _) in fields.items()}
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
    reading = ("file_format", "encoding", "delimiter", "sample_by")
    if v["dataset_name"] and (given_for := [name for name in reading if v.get(name)]):
        problems.append(f"{', '.join(given_for)} is of files, not of dataset_name")
    if v["resume_from_checkpoint"] and not v["do_train"]:
        problems.append(
            "resume_from_checkpoint needs do_train; to use a checkpoint as it is, name"
            " it as model_name_or_path"
        )
    if v["resume_from_checkpoint"] is True and not v["output_dir"]:
        problems.append(
            "resume_from_checkpoint true needs output_dir, the run's folder"
        )
    return problems + refused(v, defaults)


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
