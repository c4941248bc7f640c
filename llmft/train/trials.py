"""The trial of a run: a few steps of its model on its data, with each candidate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from peft import PeftModel
from torch.nn import Dropout

from llmft.config.fields import TrainingArguments
from llmft.console import say, warn
from llmft.errors import brief
from llmft.machine import detect
from llmft.machine.choose import release_memory
from llmft.machine.detect import allowed_bytes
from llmft.machine.measure import write_seconds
from llmft.machine.plan import END_SECONDS, Forecast
from llmft.machine.trial import Candidate, contest, keep, recall
from llmft.model.adapters import light_base
from llmft.train.batches import Batches
from llmft.train.memory import GAPS, need_of, require_memory
from llmft.train.narrow import transformers_model
from llmft.train.steps import Steps

# Tokens of the step that candidates are compared on; the best is also timed on whole
# batches.
TOKENS = 2048
# bf16 is less precise: it must gain this much.
GAINS = 1.05
# A trial takes this part of a training, or 10 seconds where that is less than a quarter
# of it.
SHARE, SECONDS, OF_SHORT = 0.03, 10.0, 0.25
# Compiling takes about so many seconds (2 cores, AVX512-BF16: 11 to 17) and saves this
# part of a step (12 %, with LoRA 17 %): it is tried where it saves twice as much.
COMPILING, COMPILED_SAVES = 15.0, 0.1


@dataclass(frozen=True)
class Trial:
    """What trying gave.

    Attributes:
        seconds: of each candidate that was tried, on ``TOKENS`` tokens of a batch.
        chosen: the best of them.
        lengths, batches: seconds of a typical and of the longest batch of the chosen,
            by their padded length.
        evaluation: seconds of an evaluation for each token, padding too; 0 without one.
        peak_bytes: what the process will hold, with what the optimizer keeps.
        took: seconds of the trial; 0 where the same was tried before.
        example_bytes: what an example of the longest batch takes.
    """

    seconds: dict[Candidate, float]
    chosen: Candidate
    lengths: list[int]
    batches: list[float]
    evaluation: float
    peak_bytes: int
    took: float = 0.0
    example_bytes: int = 0


def take_trial(
    steps: Steps,
    candidates: Sequence[Candidate],
    batches: Batches,
    evaluated: Batches | None,
    lasts: Callable[[float], float],
    may_compile: bool,
    optimizer_bytes: int = 0,
) -> Trial:
    """Try the candidates, or recall what trying the same gave before.

    Figures of a busy machine are not kept.

    Args:
        candidates: as ``contest`` takes them.
        batches: those to train on, or to evaluate. evaluated: of evaluations between.
        lasts: the seconds of the run by those of a batch; a time limit is the same.
        may_compile: whether compiled layers are a candidate.
        optimizer_bytes: what the optimizer keeps; raises as ``require_memory``.
    """
    machine = detect.detect()
    # Whether compiling pays depends on how long the run is.
    long = [int(math.log2(max(lasts(batch), 1.0))) for batch in (1.0, 9.0)]
    key = [_key(steps, machine, batches, evaluated), candidates, may_compile and long]
    held, needed = psutil.Process().memory_info().rss, 0
    before = _recalled(recall(key), held + optimizer_bytes)
    if before and before.peak_bytes <= allowed_bytes():
        return before
    say("trying     this run for a few steps: what is fastest, time and memory")
    start = time.perf_counter()
    with steps.leaving_no_trace():
        if steps.args.do_train:
            need = need_of(steps, candidates[0], batches, optimizer_bytes)
            needed = require_memory(need, steps, int(batches.lengths[-1]))
        seconds, is_whole, share = _compare(steps, candidates, batches, lasts)
        best = winner(seconds)
        until = start + _budget(lasts(share * seconds[best]))
        with light_base(steps.model, best.precision == "bf16"):
            compiling = lasts if may_compile else None
            chosen, whole = _whole_batches(steps, seconds, batches, compiling, until)
            evaluation = 0.0
            if evaluated:
                evaluation = _seconds_a_token(steps, chosen, evaluated, until)
    peak = psutil.Process().memory_info().rss + GAPS
    grown = max(peak, needed - optimizer_bytes) - held
    release_memory()  # other gaps would be left for the training
    trial = Trial(
        seconds=seconds,
        chosen=chosen,
        lengths=list(whole),
        batches=list(whole.values()),
        evaluation=evaluation,
        peak_bytes=held + grown + optimizer_bytes,
        took=time.perf_counter() - start,
        example_bytes=need.example if needed else 0,
    )
    if is_whole:
        keep(key, _to_keep(trial, grown), machine, _row(steps, batches, trial))
    return trial


def _seconds_a_token(
    steps: Steps, chosen: Candidate, batches: Batches, until: float
) -> float:
    """Return the seconds of the batch in the middle for each token, padding too."""
    middle = len(batches) // 2
    seconds = steps.timed(chosen, batches.examples(middle), False, until)
    return float(seconds / (batches.lengths[middle] * batches.sizes[middle]))


def _to_keep(trial: Trial, grown: int) -> dict[str, Any]:
    """Return what of a trial holds in other processes, too; see ``_recalled``."""
    tried = [[c, s] for c, s in trial.seconds.items() if math.isfinite(s)]
    known = {**asdict(trial), "seconds": tried, "took": 0.0, "grown": grown}
    del known["peak_bytes"]
    return known


def _recalled(known: dict[str, Any], held: int) -> Trial | None:
    """Return the trial that ``take_trial`` kept, in a process that holds so much."""
    try:
        found = {Candidate(*c): seconds for c, seconds in known.pop("seconds")}
        chosen, peak = Candidate(*known.pop("chosen")), held + known.pop("grown")
        return Trial(found, chosen, **known, peak_bytes=peak)
    except (AttributeError, KeyError, TypeError, ValueError):  # none, or damaged
        return None


def _budget(run: float) -> float:
    """Return how many seconds the trial of a run may take that lasts ``run`` ones."""
    return max(SHARE * run, min(SECONDS, OF_SHORT * run))


def _row(steps: Steps, batches: Batches, trial: Trial) -> list[str]:
    """Return what ``llmft doctor`` shows of a trial."""
    (rows, length), kind = _typical(batches), type(steps.objective).__name__
    model = transformers_model(steps.model).config.model_type
    job = "training" if steps.args.do_train else "evaluating"
    best = trial.chosen
    return [
        f"{job} {kind}, {model}, {rows} x {length} tokens",
        f"{best.precision}, {best.attention}{', compiled' * best.compiled}",
        f"{1e3 * trial.batches[0]:,.0f} ms a batch",
    ]


def _whole_batches(
    steps: Steps,
    seconds: dict[Candidate, float],
    batches: Batches,
    lasts: Callable[[float], float] | None,
    until: float,
) -> tuple[Candidate, dict[int, float]]:
    """Time the winner on a typical and on the longest batch, then compiled.

    Args:
        seconds: of the contest; compiled layers are added, in proportion.
        lasts: as above; None where layers are not to be compiled.
        until: see ``Steps.timed``.

    Returns:
        what is best in the end, and its seconds by the length of the batch.
    """
    chosen, whole, trains = winner(seconds), dict[int, float](), steps.args.do_train
    for place in (len(batches) // 2, len(batches) - 1):
        if (length := int(batches.lengths[place])) not in whole:
            whole[length] = steps.timed(chosen, batches.examples(place), trains, until)
    run = lasts(whole[length]) if lasts else 0.0
    if COMPILED_SAVES * run < 2 * COMPILING:
        return chosen, whole
    compiled = chosen._replace(compiled=True)
    try:
        took = steps.timed(compiled, batches.examples(len(batches) // 2), trains)
    except Exception as error:  # of the compiler, of torch
        warn(f"layers stay as written: compiling them failed: {brief(error, None)}")
        return chosen, whole
    seconds[compiled] = seconds[chosen] * took / whole[length]
    if (1 - took / whole[length]) * run > COMPILING:
        chosen, whole[length] = compiled, took
    return chosen, whole


def _compare(
    steps: Steps,
    candidates: Sequence[Candidate],
    batches: Batches,
    lasts: Callable[[float], float],
) -> tuple[dict[Candidate, float], bool, float]:
    """Hold the contest; see there. Return how many such parts are a batch, too.

    It is on half a batch at the most: what is never given back of the memory of a
    candidate that loses is then less than the winner needs on a whole one.
    """
    middle = len(batches) // 2
    rows, length = int(batches.sizes[middle]), int(batches.lengths[middle])
    part = batches.examples(middle, min(TOKENS, rows * length // 2))
    share = rows / len(part)

    def run(candidate: Candidate) -> None:
        # Compiled, each shape would take its time: layers are on whole batches.
        plain = candidate._replace(compiled=False)
        steps.run(plain, part, steps.args.do_train)

    found = contest(candidates, run, lambda best: _budget(lasts(best * share)))
    return *found, share


def winner(seconds: Mapping[Candidate, float]) -> Candidate:
    """Return the fastest, if it gains enough over what is more precise."""

    def cost(candidate: Candidate) -> float:
        return seconds[candidate] * (GAINS if candidate.precision != "fp32" else 1.0)

    return min(seconds, key=cost)


def _typical(batches: Batches) -> list[int]:
    """Return the rows and the tokens of the batch in the middle."""
    middle = len(batches) // 2
    return [int(batches.sizes[middle]), int(batches.lengths[middle])]


def _key(
    steps: Steps,
    machine: detect.Machine,
    batches: Batches,
    evaluated: Batches | None,
) -> dict[str, Any]:
    """Return what the figures of a trial depend on, ready for JSON."""
    args, core = steps.args, transformers_model(steps.model)
    return {
        "machine": [machine.cpu, machine.features, machine.cores],
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__],
        "model": {**core.config.to_dict(), "_name_or_path": None},
        "weights": [
            [*p.shape, str(p.dtype), p.requires_grad] for p in steps.model.parameters()
        ],
        "dropout": sorted(
            {m.p for m in steps.model.modules() if isinstance(m, Dropout)}
        ),
        "objective": [
            type(steps.objective).__name__,
            getattr(steps.objective, "contrast", None),
            args.do_train,
        ],
        "masked": getattr(steps.collator, "mlm_probability", None),
        "batches": [_typical(batches), int(batches.lengths[-1])],
        "evaluated": evaluated and _typical(evaluated),
        "with": [
            args.activation_checkpointing,
            args.activation_checkpointing_kwargs,
            args.label_smoothing_factor,
        ],
    }


# What Trainer does beside each batch, its loader included (2 cores, AMD EPYC: about 9
# ms with a model of two layers, a sixth of its step).
LOOP_SECONDS = 0.01


def predicted(
    args: TrainingArguments,
    model: Any,
    trial: Trial,
    optimizer: tuple[float, int],
    batches: Batches,
    held_out: Mapping[str, Batches],
    probed: Batches | None = None,
) -> Forecast:
    """Return the seconds of a step, an evaluation and a checkpoint, and the memory.

    A batch takes time in proportion to its length, between and beyond those that were
    tried.

    Args:
        optimizer: what ``optimizer_cost`` gives.
        batches: those to train on. held_out: by split, those to evaluate on.
        probed: examples that a linear probe encodes before; it is evaluated, too.
    """
    if not args.do_train:
        parts = [_by_length(trial, b.lengths).sum() for b in held_out.values()]
        return Forecast(
            step_seconds=0.0,
            final_seconds=float(sum(parts)) + END_SECONDS,
            peak_bytes=trial.peak_bytes,
            trial_seconds=trial.took,
        )
    # An adapter is saved alone, frozen embeddings with the rest.
    saved_weights = sum(
        p.numel()
        for p in model.parameters()
        if p.requires_grad or not isinstance(model, PeftModel)
    )
    seconds, kept = optimizer
    batch = float(np.mean(_by_length(trial, batches.lengths))) + LOOP_SECONDS
    evaluations = {split: _evaluation(trial, b) for split, b in held_out.items()}
    saved = 4 * saved_weights + (0 if args.save_only_model else kept)
    peak = trial.peak_bytes
    if args.load_best_model_at_end:  # read beside the last weights and the optimizer
        held = psutil.Process().memory_info().rss
        peak = max(peak, held + kept + 4 * saved_weights)
    whole = 4 * sum(p.numel() for p in model.parameters())
    return Forecast(
        step_seconds=args.gradient_accumulation_steps * batch + seconds,
        evaluation_seconds=evaluations.get("validation", 0.0),
        save_seconds=write_seconds(saved),
        final_seconds=sum(evaluations.values())
        + write_seconds(whole)  # of LoRA, what is merged
        + END_SECONDS,
        probe_seconds=sum(evaluations.values()) + _evaluation(trial, probed)
        if probed
        else 0.0,
        peak_bytes=peak,
        example_bytes=trial.example_bytes,
        checkpoint_bytes=saved,
        model_bytes=whole,
        trial_seconds=trial.took,
    )


def _evaluation(trial: Trial, batches: Batches) -> float:
    """Return the seconds of an evaluation on all of ``batches``."""
    return trial.evaluation * float((batches.lengths * batches.sizes).sum())


def _by_length(trial: Trial, lengths: np.ndarray) -> np.ndarray:
    """Return the seconds of batches of these lengths, on the line through those tried.

    No batch takes less than its share of the shortest that was tried.
    """
    if len(trial.lengths) == 1:
        return trial.batches[0] * lengths / trial.lengths[0]
    (short, long), (low, high) = trial.lengths, trial.batches
    slope = max(high - low, 0.0) / max(long - short, 1)
    line = low + slope * (lengths - short)
    return np.maximum(line, low * lengths / short)
