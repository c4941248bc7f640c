"""Every setting of transformers is taken or refused before a run folder is made."""

import shlex
from contextlib import nullcontext

import pytest
import torch

from llmft.config import facts
from llmft.config.fields import (
    ClassificationModelArguments,
    GenerationModelArguments,
    LanguageModelingDataArguments,
    ModelArguments,
    TrainingArguments,
)
from llmft.config.parse import parse
from llmft.errors import ConfigError


def read(flags, model=ModelArguments):
    return parse(
        ["--do_train", *shlex.split(flags)],
        model,
        LanguageModelingDataArguments,
        description="",
        metrics={"loss": False, "accuracy": True},
    )


def test_the_facts_about_transformers_are_of_fields_that_it_has():
    """And each fact stands once: none of them is of a field that llmft declares."""
    names = facts.fields_of(TrainingArguments).keys()
    assert facts._OF_TRANSFORMERS.keys() <= names - {*TrainingArguments.__annotations__}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--deepspeed x.json", "deepspeed is for several processes, and llmft trains"),
        ("--fsdp full_shard", "fsdp is for several processes"),
        ("--local_rank 0", "local_rank is for several processes"),
        ("--accelerator_config x", "accelerator_config is for several processes"),
        ("--hub_model_id a/x", "hub_model_id is of push_to_hub: add --push_to_hub"),
        (
            "--push_to_hub",
            "push_to_hub needs do_train, and hub_model_id, as owner/name",
        ),
        (
            "--hub_strategy checkpoint",
            "hub_strategy has no use: the model is pushed once",
        ),
        ("--use_liger_kernel", "use_liger_kernel needs a GPU"),
        ("--add_tokens x --do_train false", "add_tokens and resize_embeddings need tr"),
        ("--add_tokens x --freeze_embeddings", "add_tokens and freeze_embeddings, or"),
        ("--batch_eval_metrics", "batch_eval_metrics does not fit the metrics of"),
        ("--eval_do_concat_batches false", "eval_do_concat_batches does not fit"),
        ("--prediction_loss_only", "prediction_loss_only does not fit the metrics"),
        ("--label_names a", "label_names does not fit the metrics of llmft"),
        ("--remove_unused_columns", "would take columns that the collators need"),
        ("--dataloader_drop_last", "would leave examples out, also of an evaluation"),
        ("--dataloader_in_order false", "would give what the model says to other"),
        ("--restore_callback_states_from_checkpoint", "has no use: llmft restores"),
        ("--bf16_full_eval", "would leave the model in that precision; use precision"),
        ("--enable_jit_checkpoint", "would end a run that SIGTERM stops as if it were"),
        (
            "--auto_find_batch_size --do_train false --do_eval",
            "auto_find_batch_size (or auto) is of training, on the CPU, of a whole"
            " model",
        ),
        ("--train_sampling_strategy x", "expected one of random, sequential, group_by"),
        ("--include_num_input_tokens_seen x", "expected one of all, non_padding, no"),
        ("--log_level loud", "log_level is loud, expected one of debug, info,"),
        ("--optim galore_adamw", "optim galore_adamw does not work with llmft"),
        ("--optim_args momentum=2", "optim_args has no effect on optim adamw_torch_fu"),
        (
            "--lr_scheduler_type constant --lr_scheduler_kwargs '{\"a\": 1}'",
            "lr_scheduler_kwargs has no effect on lr_scheduler_type constant",
        ),
        ("--report_to foo", "report_to: foo is not supported, only azure_ml,"),
        ("--optim_args a --optim sgd", "optim, lr_scheduler_type or their arguments: "),
        ("--optim sgd --optim_args momentum=x", "could not convert string to float"),
        (
            "--lr_scheduler_kwargs '{\"a\": 1}'",
            "got an unexpected keyword argument 'a'",
        ),
        ("--lr_scheduler_kwargs a.json", "is a.json, expected a JSON object"),
        (
            '--lr_scheduler_type cosine --lr_scheduler_kwargs \'{"num_cycles":"x"}\'',
            "optim, lr_scheduler_type or their arguments: could not convert string",
        ),
        ("--lr_scheduler_type warmup_stable_decay", "missing 1 required positional"),
        (
            "--lr_scheduler_type polynomial --lr_scheduler_kwargs '{\"lr_end\": 1}'",
            "lr_end (1) must be smaller than initial lr (5e-05)",
        ),
        ("--dataloader_persistent_workers", "persistent_workers option needs num_work"),
        (
            "--dataloader_num_workers 1 --dataloader_multiprocessing_context x",
            "dataloader_num_workers or its companions: multiprocessing_context option",
        ),
        (
            "--activation_checkpointing_kwargs '{\"x\": 1}'",
            "activation_checkpointing_kwargs: ",
        ),
        (
            '--activation_checkpointing_kwargs \'{"every_n_layers": "x"}\'',
            "every_n_layers is x, expected a number from 1",
        ),
        (
            "--torch_compile_backend x",
            "torch_compile_backend or _mode: Invalid back",
        ),
        ("--tf32 true", "--tf32 requires Ampere"),
        ("--logging_steps 1.5", "--logging_steps must be an integer if bigger than 1"),
    ],
)
def test_one_problem_that_names_it(flags, expected):
    with pytest.raises(ConfigError) as caught:
        read(flags)
    (problem,) = caught.value.problems
    assert expected in problem
    assert "\n" not in problem


def test_a_path_that_is_too_long_for_the_sockets_of_workers(monkeypatch):
    """Training would wait for them for ever."""
    for length, fails in ((70, False), (71, True)):
        monkeypatch.setenv("TMPDIR", "/" + "x" * (length - 1))
        read("")
        with pytest.raises(ConfigError) if fails else nullcontext() as caught:
            read("--dataloader_num_workers 2")
        if fails:
            assert caught.value.problems == (
                "TMPDIR is a path of over 70 bytes, too long for the sockets of"
                " workers: set a shorter one, or --dataloader_num_workers 0",
            )


def test_a_package_that_is_not_installed():
    """Named together with other problems, in one message."""
    with pytest.raises(ConfigError) as caught:
        read("--report_to wandb --optim adamw_bnb_8bit --seed x")
    first, optim, tracker = caught.value.problems
    assert first == "seed is x, expected a whole number"
    assert "You need to install `bitsandbytes`" in optim
    assert tracker.startswith("report_to: WandbCallback requires wandb to be installed")


@pytest.mark.parametrize(
    "flags",
    [
        "--optim adafactor",
        "--optim sgd --optim_args momentum=0.9",
        "--optim adagrad",
        "--optim rmsprop --lr_scheduler_type constant",
        "--lr_scheduler_type reduce_lr_on_plateau",
        "--lr_scheduler_type cosine_with_restarts --lr_scheduler_kwargs"
        " '{\"num_cycles\": 2}'",
        "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs"
        " '{\"num_decay_steps\": 5}' --max_steps 20",
        "--dataloader_num_workers 2 --dataloader_persistent_workers"
        " --dataloader_prefetch_factor 4",
        "--activation_checkpointing --activation_checkpointing_kwargs"
        " '{\"use_reentrant\": true}'",
        "--report_to none",
        "--report_to tensorboard",
        "--train_sampling_strategy batch_rebalance",
        "--full_determinism --neftune_noise_alpha 5 --label_smoothing_factor 0.1",
        "--debug underflow_overflow --log_level debug",
    ],
)
def test_what_is_taken(flags):
    read(flags)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_are_refused(name, monkeypatch):
    """Before TrainingArguments is made, which would wait for the others."""
    flags = "--model_name_or_path x --dataset_name y"
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError) as caught:
        read(flags)
    said = f"{name} is 2, and llmft trains in one process; start it without torchrun"
    assert said in str(caught.value)
    monkeypatch.setenv(name, "1")
    assert read(flags).training.world_size == 1


def test_several_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ConfigError, match="finds 2 GPUs, and llmft trains on one; set"):
        read("--model_name_or_path x --dataset_name y --use_cpu false")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--freeze_backbone", "time_limit and freeze_backbone exclude each other"),
        ("--use_cpu false", "time_limit is planned by steps on the CPU: leave use_cpu"),
    ],
)
def test_where_steps_are_not_tried_no_time_is_laid_out(flags, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 1)
    data = "--model_name_or_path x --dataset_name y"
    with pytest.raises(ConfigError) as caught:
        read(f"{data} --time_limit 1m {flags}", ClassificationModelArguments)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--do_train false --do_eval", "is of training: add --do_train"),
        ("--freeze_backbone", "adds nothing to freeze_backbone: leave it out"),
        ("--lora_r 4", "adds nothing to lora_r: leave it out"),
        (
            "--activation_checkpointing --activation_checkpointing_kwargs"
            " '{\"use_reentrant\": true}'",
            "excludes use_reentrant true in activation_checkpointing_kwargs",
        ),
        ("--activation_checkpointing", None),
    ],
)
def test_frozen_embeddings(flags, expected):
    model = ClassificationModelArguments
    model = GenerationModelArguments if "lora" in flags else model
    flags = f"--model_name_or_path x --dataset_name y --freeze_embeddings {flags}"
    if expected is None:
        assert read(flags, model).model.freeze_embeddings
        return
    with pytest.raises(ConfigError) as caught:
        read(flags, model)
    assert caught.value.problems == (f"freeze_embeddings {expected}",)
