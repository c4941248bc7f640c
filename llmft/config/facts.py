"""What is known of each argument beside its type: the facts that ``arg`` notes.

A field of llmft has them in its metadata, one of transformers in the table here;
``fields_of`` and ``fields_with`` answer for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from llmft.config.convert import Text, convert, one_of

# A resume must agree on it: it says which examples come next, or Trainer takes it from
# the checkpoint unasked.
MUST_AGREE = "must agree"
# It may be changed on the way, with a warning: the run is no longer what it would have
# been.
MAY_DIFFER = "may differ"
FAR_TOO_HIGH = 0.05  # a learning rate, of whatever part of a model of text


def about(range: str | None = None, **facts: Any) -> dict[str, Any]:
    """Return what is known of an argument beside its type and its help.

    ``range``: the interval that its numbers must lie in, such as ``(0, 1]``. ``check``:
    a function of a text that raises ValueError, saying what was expected. ``path``: it
    names files, and need not be UTF-8. ``source``: the part of the data source that it
    describes: hub, files, rows, or how they are split; the command line replaces all of
    a source. ``resume``: ``MUST_AGREE`` or ``MAY_DIFFER``. ``kept``: a command on the
    trained model takes it over. ``most_used``: ``--help`` shows it first. ``refused``:
    why llmft does not take another value than the default. ``auto``: where it is not
    given, it follows from the data and the model.
    """
    return {"range": range, **facts}


def arg(default: Any, help: str, range: str | None = None, **facts: Any) -> Any:
    """Return a dataclass field with its ``--help`` text and facts, see ``about``."""
    metadata = {"help": help, **about(range, **facts)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_REFUSED = {
    "deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank"
    " ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters"
    " ddp_static_graph ddp_timeout eval_use_gather_object": (
        "is for several processes, and llmft trains in one"
    ),
    "hub_strategy hub_always_push": "has no use: the model is pushed once, at the end",
    "hub_token": "would be seen by other users of this machine: set HF_TOKEN",
    "use_cache": "keeps keys and values, which training has no use for",
    "use_liger_kernel liger_kernel_config": "needs a GPU",
    "batch_eval_metrics eval_do_concat_batches include_for_metrics label_names"
    " prediction_loss_only": "does not fit the metrics of llmft",
    "dataloader_drop_last": "would leave examples out, also of an evaluation",
    "bf16_full_eval fp16_full_eval": (
        "would leave the model in that precision; use precision bf16"
    ),
    "dataloader_in_order": "would give what the model says to other texts",
    "restore_callback_states_from_checkpoint": "has no use: llmft restores its own",
    "enable_jit_checkpoint": (
        "would end a run that SIGTERM stops as if it were complete; use save_steps"
    ),
}
# Schedules of the learning rate that follow the metric of evaluations.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")
# Facts about the fields that are not in fields.py: transformers takes learning_rate=-1
# and nan, and any text as a log level.
_BY_NAMES: dict[str, dict[str, Any]] = {
    "do_train": about(most_used=True, help="Train."),
    "do_eval": about(most_used=True, help="Measure on validation."),
    "do_predict": about(most_used=True, help="Measure on test."),
    "debug": about(most_used=True, help="Show tracebacks."),
    "max_steps": about(
        most_used=True,
        help="Optimizer steps, in place of num_train_epochs; a stream needs them, or a"
        " time_limit.",
    ),
    "greater_is_better": about(most_used=True),
    "per_device_train_batch_size": about(
        "[1, inf)",
        most_used=True,
        resume=MUST_AGREE,
        help="Examples of a batch; auto: as many as memory allows, as with"
        " auto_find_batch_size.",
    ),
    "gradient_accumulation_steps": about(
        "[1, inf)",
        most_used=True,
        resume=MUST_AGREE,
        help="Batches whose gradients add up to one optimizer step.",
    ),
    "auto_find_batch_size": about(
        most_used=True,
        help="Before training, make the batch as large as memory allows, and"
        " gradient_accumulation_steps such that a step learns from as many examples as"
        " both say now.",
    ),
    "per_device_eval_batch_size": about("[1, inf)", most_used=True),
    "num_train_epochs": about(
        "(0, inf)",
        most_used=True,
        auto=True,
        help="Passes over the data; auto, as for data or a model that are named on the"
        " command line: what follows from them.",
    ),
    "learning_rate": about(
        "(0, 100]",
        most_used=True,
        auto=True,
        resume=MUST_AGREE,
        help="The highest rate; auto, as for data or a model that are named on the"
        " command line: what follows from them.",
    ),
    "lr_scheduler_type": about(most_used=True, resume=MAY_DIFFER),
    "lr_scheduler_kwargs ignore_data_skip": about(resume=MAY_DIFFER),
    # Other kernels add up in another order.
    "full_determinism torch_compile": about(resume=MAY_DIFFER),
    "optim optim_args": about(resume=MUST_AGREE),
    "adam_beta1 adam_beta2": about("[0, 1)", resume=MUST_AGREE),
    "adam_epsilon": about("(0, 1]", resume=MUST_AGREE),
    "max_grad_norm": about("[0, inf)", most_used=True, resume=MAY_DIFFER),
    "label_smoothing_factor": about("[0, 1)", most_used=True, resume=MAY_DIFFER),
    "seed": about("[0, 4294967296)", most_used=True, resume=MUST_AGREE),
    "data_seed": about("[0, 4294967296)", resume=MUST_AGREE),
    "train_sampling_strategy": about(
        most_used=True,
        resume=MUST_AGREE,
        check=one_of("random", "sequential", "group_by_length", "batch_rebalance"),
    ),
    # As eval_strategy and save_strategy, in fields.py.
    "eval_steps save_steps": about(
        "(0, inf)",
        most_used=True,
        resume=MAY_DIFFER,
        help="So many optimizer steps, or below 1 that part of all, where the strategy"
        " is steps.",
    ),
    "neftune_noise_alpha eval_delay": about("[0, inf)", resume=MAY_DIFFER),
    # The checkpoint holds its best value so far.
    "metric_for_best_model": about(
        most_used=True,
        resume=MUST_AGREE,
        help="What decides which checkpoint is the best, and is kept; none: the loss,"
        " of a classifier accuracy, f1_micro or r2.",
    ),
    "eval_accumulation_steps dataloader_prefetch_factor torch_empty_cache_steps": (
        about("[1, inf)")
    ),
    "dataloader_num_workers": about("[0, 1024]", most_used=True),
    "push_to_hub": about(help="Upload the model to the hub at the end: hub_model_id."),
    "hub_model_id": about(help="Its name there: owner/name."),
    "include_num_input_tokens_seen": about(check=one_of("all", "non_padding", "no")),
    "log_level log_level_replica": about(check=one_of(*_LOG_LEVELS)),
    **{names: about(refused=why) for names, why in _REFUSED.items()},
}
_OF_TRANSFORMERS = {n: facts for s, facts in _BY_NAMES.items() for n in s.split()}


@dataclass(frozen=True)
class Argument:
    """A field of a recipe's dataclasses: its resolved type, default, and facts."""

    type: Any
    default: Any
    facts: Mapping[str, Any]


def fields_of(*classes: type) -> dict[str, Argument]:
    """Return the arguments that are fields of the dataclasses, by name."""
    found = {}
    for cls in classes:
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            make: Any = f.default_factory
            default = f.default if make is dataclasses.MISSING else make()
            facts = {**f.metadata, **_OF_TRANSFORMERS.get(f.name, {})}
            found[f.name] = Argument(hints[f.name], default, facts)
    return found


def fields_with(fact: str, *classes: type, among: Collection[Any] = ()) -> list[str]:
    """Return the fields that have a fact, or one whose value is ``among`` some."""
    known = {name: a.facts.get(fact) for name, a in fields_of(*classes).items()}
    return [n for n, value in known.items() if value and value in (among or (value,))]


def from_flags(
    given: Mapping[str, Any], *classes: type
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of arguments that were given, and a problem for each bad one.

    ``given``: texts as of a command line, or values of Python; None is not given. Names
    that are no fields of the dataclasses are passed over.
    """
    fields, values, problems = fields_of(*classes), {}, []
    for name, raw in given.items():
        if raw is None or name not in fields:
            continue
        words = [raw] if isinstance(raw, str) else raw
        plain = isinstance(words, list) and all(isinstance(w, str) for w in words)
        text = Text(words) if plain and words else raw
        try:
            values[name] = convert(text, fields[name].type, fields[name].facts)
        except ValueError as error:
            problems.append(f"{name} is {raw!r}, expected {error}")
    return values, problems
