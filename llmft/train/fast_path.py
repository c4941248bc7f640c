"""The fast path of a run: found by trying steps of this model on its own data.

``choose_fast_path`` decides, gives reasons, sets what it chose, and says what the run
will take. What the user gave always wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from llmft.config.choice import Choice
from llmft.config.parse import Arguments
from llmft.console import warn
from llmft.errors import ConfigError
from llmft.machine import detect
from llmft.machine.choose import choices_of, compared
from llmft.machine.measure import measure
from llmft.machine.plan import Forecast
from llmft.machine.trial import Candidate
from llmft.model.compiled import why_not_compiled
from llmft.train.batches import Batches
from llmft.train.linear_probe import drawn
from llmft.train.memory import fit_batch_size, need_of, read_weights
from llmft.train.narrow import transformers_model
from llmft.train.objectives import CausalLM, Objective
from llmft.train.resume import training_steps
from llmft.train.steps import Steps, optimizer_cost, runnable, set_candidate
from llmft.train.time_limit import seconds_left
from llmft.train.trials import GAINS, Trial, predicted, take_trial

# The attention that likely wins is tried first: eager, in training, up to here.
EAGER_UP_TO = 256
# A CPU that multiplies bf16 this much slower than fp32 emulates it: not tried.
EMULATED = 0.5


class FastPath(NamedTuple):
    """What was chosen, with reasons, and what the run will take where that is known."""

    choices: list[Choice]
    forecast: Forecast | None = None


def choose_fast_path(
    args: Arguments,
    model: Any,
    objective: Objective,
    collator: Any,
    data: Mapping[str, Any],
) -> FastPath:
    """Choose precision, attention and compiled layers of a run, and set them.

    Precision and batch are set in ``args.training``, the others in the model, whose
    weights and gradients are afterwards as before; so are random numbers.
    A run that is resumed keeps its choices. With ``fast_path`` off nothing is chosen,
    and tried only within a time, which needs a forecast.

    Args:
        model: as it will be trained or evaluated.
        objective, collator: as the trainer gets them.
        data: the examples by split.

    Raises:
        ConfigError: layers are to be compiled whose model is no causal one.
        EnvironmentFault: see ``require_memory``.
    """
    training, core = args.training, transformers_model(model)
    before = choices_of(training.resume_from_checkpoint)
    frozen = [frozen_choice(core)] if args.model.freeze_embeddings else []
    if training.device.type != "cpu":
        return FastPath([compared(_on_gpu(training), before), *frozen])
    if training.compile_layers and not isinstance(objective, CausalLM):
        raise ConfigError("compile_layers is of causal models, in generate.py")
    if training.compile_layers and (why := why_not_compiled(core)):
        raise ConfigError(f"compile_layers: {why}")
    split = "train" if training.do_train else next(iter(data))
    made = {part: _batches(training, data, part) for part in data}
    longest = int(made[split].lengths[-1])
    candidates = _candidates(args, before, core, longest)
    steps, choices = Steps(model, objective, collator, training), list[Choice]()
    examples = {part: batches.longest() for part, batches in made.items()}
    candidates = runnable(steps, candidates, examples)
    if training.auto_find_batch_size:
        choices.append(_batch_size(args, steps, candidates[0], made[split], before))
        made[split] = _batches(training, data, split)
    as_written = _why_as_written(args, before, core, objective, made[split])
    trial = forecast = None
    chooses = _chooses(args)
    if chooses or training.time_limit:
        trial, forecast = _tried(
            *(steps, candidates, made, data, not as_written),
            probes=bool(getattr(args.data, "ladder", False)),
        )
    chosen = trial.chosen if trial else candidates[0]
    set_candidate(core, chosen, (training.train_batch_size, longest))
    said = training.do_train and isinstance(objective, CausalLM)
    shown = trial if chooses else None
    choices += _choices(args, chosen, shown, as_written if said else None)
    if chosen.precision == "bf16":
        training.bf16, training.mixed_precision = True, "bf16"
    compared_choices = [compared(choice, before) for choice in choices]
    return FastPath([*compared_choices, *frozen], forecast)


def _batch_size(
    args: Arguments,
    steps: Steps,
    candidate: Candidate,
    batches: Batches,
    before: Mapping[str, str],
) -> Choice:
    """Set the batch size that fits, or that of before the resume."""
    training = steps.args
    training.auto_find_batch_size = False  # Trainer's begins again with other weights
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    args.origins.update(dict.fromkeys(names, "auto_find_batch_size"))
    if "batch" in before:
        asked = training.train_batch_size * training.gradient_accumulation_steps
        rows, parts = map(int, before["batch"].split(" x "))
        if rows * parts != asked:
            said = f"{asked} examples a step were asked for"
            warn(f"{said}; the batch stays {before['batch']}, as before this resume")
        for name, value in zip(names, (rows, parts), strict=True):
            setattr(training, name, value)
        return Choice("batch", before["batch"], "as before the resume")
    with steps.leaving_no_trace():
        kept = optimizer_cost(training, steps.model)[1]
        need = need_of(steps, candidate, batches, kept)
    return fit_batch_size(need, training)


def _tried(
    steps: Steps,
    candidates: list[Candidate],
    made: Mapping[str, Batches],
    data: Mapping[str, Any],
    may_compile: bool,
    probes: bool,
) -> tuple[Trial, Forecast]:
    """Return what the trial gave, and what follows for the whole run."""
    training, optimizer, limit = steps.args, (0.0, 0), math.inf
    asked = {"validation": training.do_eval, "test": training.do_predict}
    held_out = {
        split: made[split] for split, on in asked.items() if on and split in made
    }
    batches = made["train" if training.do_train else next(iter(made))]
    micro_steps = float(sum(map(len, held_out.values())))
    if training.do_train:
        optimizer = optimizer_cost(training, steps.model)
        if training.time_limit:
            limit, micro_steps = seconds_left(training.time_limit), math.inf
        else:
            micro_steps = training_steps(training, data["train"])
            micro_steps *= training.gradient_accumulation_steps
    read_weights(steps.model)
    evaluated = None
    if training.do_train:  # where nothing is held out, as the probe reads train
        evaluated = next(iter(held_out.values()), batches if probes else None)
    trial = take_trial(
        *(steps, candidates, batches, evaluated),
        lasts=lambda batch: min(limit, micro_steps * batch),
        may_compile=may_compile,
        optimizer_bytes=optimizer[1],
    )
    probed = None
    if probes and training.do_train:
        some = drawn(data["train"], steps.model.config.num_labels, training.seed)
        probed = _batches(training, {"probe": some}, "probe")
    return trial, predicted(
        training, steps.model, trial, optimizer, batches, held_out, probed
    )


def _chooses(args: Arguments) -> bool:
    """Return whether to choose by trying: not where an encoder runs just once."""
    frozen = getattr(args.model, "freeze_backbone", False)
    return args.training.fast_path == "auto" and not frozen


def _on_gpu(training: Any) -> Choice:
    """Return the precision on a GPU, where nothing is tried."""
    wants_bf16 = training.bf16 or training.precision == "bf16"
    value = "fp16" if training.fp16 else "bf16" if wants_bf16 else "fp32"
    if value == "bf16":
        training.bf16, training.mixed_precision = True, "bf16"
    return Choice("precision", value, f"not tried on {training.device.type}")


def _batches(training: Any, data: Mapping[str, Any], split: str) -> Batches:
    """Return the batches of a split, as Trainer will make them."""
    strategy, size = "longest_first", training.eval_batch_size
    if split == "train":
        strategy, size = training.train_sampling_strategy, training.train_batch_size
    return Batches(data[split], size, strategy, training.seed)


def _candidates(
    args: Arguments, before: Mapping[str, str], core: Any, length: int
) -> list[Candidate]:
    """Return what may be chosen, the likely best first.

    Where nothing is to be tried, that is what plain Trainer does first.
    """
    training, tries = args.training, _chooses(args)
    precision: str = "bf16" if training.bf16 else training.precision
    kept = before.get("precision")
    if precision == "auto" and kept in ("fp32", "bf16"):  # fp16 was on a GPU
        precision = kept
    precisions: list[str] = [precision]
    if precision != "fp32":
        m = measure(detect.detect(), torch.get_num_threads())
        gain = m.bf16_gflops / m.fp32_gflops
    if precision == "auto":
        precisions = ["fp32"]
        if tries and gain > EMULATED:
            precisions.insert(gain < GAINS, "bf16")
    elif precision == "bf16" and gain < 1:
        warn(f"precision is bf16, which multiplies {gain:.2g} times as fast as fp32")
    current = core.config._attn_implementation
    attention = args.model.attn_implementation or before.get("attention")
    attentions = [attention or current]
    if tries and not attention and current == "sdpa":
        eager_first = training.do_train and length <= EAGER_UP_TO
        attentions = ["eager", "sdpa"] if eager_first else ["sdpa", "eager"]
    compiled = training.compile_layers
    if compiled is None:
        compiled = before.get("layers") == "compiled"
    return [Candidate(p, a, bool(compiled)) for a in attentions for p in precisions]


def _why_as_written(
    args: Arguments,
    before: Mapping[str, str],
    core: Any,
    objective: Objective,
    batches: Batches,
) -> str:
    """Return why compiled layers are no candidate; "" where they are one."""
    training = args.training
    if training.compile_layers is not None:
        return "compile_layers was given"
    if before:
        return "as before the resume"
    if not _chooses(args):
        return "nothing was tried"
    if not training.do_train or not isinstance(objective, CausalLM):
        return "gains nothing but in the training of causal models"
    if batches.lengths[0] != batches.lengths[-1]:
        return "batches of many lengths"
    return why_not_compiled(core)


def _choices(
    args: Arguments, chosen: Candidate, trial: Trial | None, why_as_written: str | None
) -> list[Choice]:
    """Return what was chosen, with the figures that it was chosen by.

    Args:
        why_as_written: see ``_why_as_written``; None where that need not be said.
    """
    asked = args.training.bf16 or args.training.precision != "auto"
    given = {"precision": asked, "attention": args.model.attn_implementation}
    choices = list[Choice]()
    fields = {"precision": "precision", "attention": "attn_implementation"}
    for name, is_given in given.items():
        origin = args.origins.get(fields[name], "")
        who = origin if origin.startswith("k_folds") else "was given"
        reason = who if is_given else _figures(args, trial, chosen, name)
        choices.append(Choice(name, getattr(chosen, name), reason))
    if why_as_written is not None:
        value = "compiled" if chosen.compiled else "as written"
        reason = why_as_written or _figures(args, trial, chosen, "compiled")
        choices.append(Choice("layers", value, reason))
    return choices


def _figures(
    args: Arguments, trial: Trial | None, chosen: Candidate, field: str
) -> str:
    """Return the seconds of the chosen, and the best with another ``field``."""
    if trial is None:
        once = args.training.fast_path == "auto"
        return "nothing was tried" + ": the encoder reads each text once" * once
    best: dict[Any, float] = {}
    for candidate, seconds in trial.seconds.items():
        value = getattr(candidate, field)
        best[value] = min(best.get(value, seconds), seconds)
    own = getattr(chosen, field)
    best[own] = trial.seconds[chosen]
    if len(best) == 1:
        if field == "compiled":
            return "compiling would take longer than it saves"
        return "no other was tried"
    names = {True: "compiled", False: "as written"}
    shown = [
        f"{names.get(value, value)} "
        + (f"{1e3 * seconds:,.0f} ms" if math.isfinite(seconds) else "fails")
        for value, seconds in sorted(best.items(), key=lambda item: item[0] != own)
    ]
    return f"part of a batch took: {', '.join(shown)}"


def frozen_choice(model: Any) -> Choice:
    """Return what the plan says of ``freeze_embeddings``."""
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    frozen = sum(count for count, trains in weights if not trains)
    total = sum(count for count, _ in weights)
    head, said = model.get_output_embeddings(), "the token embeddings"
    if head is not None and head.weight is model.get_input_embeddings().weight:
        said += ", and the output layer, which is tied to them"
    return Choice("frozen", f"{frozen:,} of {total:,} weights", said)
