"""The trial of a run: a few steps of its model on its data, with each candidate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
import transformers

from llmft.machine import detect
from llmft.machine.detect import allowed_bytes
from llmft.machine.trial import Candidate, contest, keep, recall
from llmft.train.batches import Batches
from llmft.train.memory import require_memory
from llmft.train.narrow import transformers_model
from llmft.train.steps import Steps

# Tokens of the step that candidates are compared on; the best is also timed on whole
# batches.
TOKENS = 2048
# What the heap of a training grows by beside that, in gaps between tensors that change
# their size (2 cores, AMD EPYC; masked LM, classification, causal LM: 0.1 to 0.4 GiB).
GAPS = 2**28
# bf16 is less precise, and compiling takes its time: they must gain this much.
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
        evaluation: seconds of a typical batch of an evaluation, 0 without one.
        peak_bytes: what the process will hold, with what the optimizer keeps.
        took: seconds of the trial; 0 where the same was tried before.
    """

    seconds: dict[Candidate, float]
    chosen: Candidate
    lengths: list[int]
    batches: list[float]
    evaluation: float
    peak_bytes: int
    took: float = 0.0


def take_trial(
    steps: Steps,
    candidates: Sequence[Candidate],
    batches: Batches,
    evaluated: Batches | None,
    micro_steps: float,
    may_compile: bool,
    optimizer_bytes: int = 0,
) -> Trial:
    """Try the candidates, or recall what trying the same gave before.

    Figures of a busy machine are not kept.

    Args:
        candidates: as ``contest`` takes them.
        batches: those to train on, or to evaluate where nothing is trained.
        evaluated: those of evaluations in a training.
        micro_steps: how many batches the run has in all.
        may_compile: whether compiled layers are a candidate.
        optimizer_bytes: see ``require_memory``, whose errors are raised.
    """
    machine = detect.detect()
    key = [_key(steps, machine, batches, evaluated), candidates, may_compile]
    middle = len(batches) // 2
    held, needed = psutil.Process().memory_info().rss, 0
    kept = recall(key)
    if kept and held + kept["grown"] <= allowed_bytes():
        found = {Candidate(*c): seconds for c, seconds in kept.pop("seconds")}
        peak = held + kept.pop("grown")
        return Trial(found, Candidate(*kept.pop("chosen")), **kept, peak_bytes=peak)
    start = time.perf_counter()
    with steps.leaving_no_trace():
        if steps.args.do_train:
            needed = require_memory(steps, candidates[0], batches, optimizer_bytes)
        seconds, is_whole = _compare(
            steps, candidates, batches, micro_steps, may_compile
        )
        chosen = winner(seconds)
        whole, trains = dict[int, float](), steps.args.do_train
        length, rows = int(batches.lengths[middle]), len(batches.rows[middle])
        if length * rows <= TOKENS:  # it was the contest's
            whole[length] = seconds[chosen]
        for place in (middle, len(batches) - 1):
            if (length := int(batches.lengths[place])) not in whole:
                examples = batches.examples(place)
                whole[length] = steps.timed(chosen, examples, trains)
        evaluation = 0.0
        if evaluated is not None:
            examples = evaluated.examples(len(evaluated) // 2)
            evaluation = steps.timed(chosen, examples, trains=False)
    grown = psutil.Process().memory_info().rss + optimizer_bytes
    grown = max(grown, needed) + GAPS - held
    trial = Trial(
        seconds=seconds,
        chosen=chosen,
        lengths=list(whole),
        batches=list(whole.values()),
        evaluation=evaluation,
        peak_bytes=held + grown,
        took=time.perf_counter() - start,
    )
    if is_whole and not machine.busy:
        tried = [[c, s] for c, s in seconds.items() if s != float("inf")]
        known = {**asdict(trial), "seconds": tried, "took": 0.0, "grown": grown}
        del known["peak_bytes"]
        keep(key, known)
    return trial


def _compare(
    steps: Steps,
    candidates: Sequence[Candidate],
    batches: Batches,
    micro_steps: float,
    may_compile: bool,
) -> tuple[dict[Candidate, float], bool]:
    """Hold the contest, on a part of a typical batch; see ``contest``."""
    middle = len(batches) // 2
    part = batches.examples(middle, TOKENS)
    times = micro_steps * len(batches.rows[middle]) / len(part)

    def run(candidate: Candidate) -> None:
        steps.run(candidate, part, steps.args.do_train)

    def budget(best: float) -> float:
        return max(SHARE * best * times, min(SECONDS, OF_SHORT * best * times))

    seconds, is_whole = contest(candidates, run, budget)
    best = winner(seconds)
    if may_compile and COMPILED_SAVES * seconds[best] * times > 2 * COMPILING:
        found, _ = contest([best._replace(compiled=True)], run, budget)
        seconds |= found
    return seconds, is_whole


def winner(seconds: Mapping[Candidate, float]) -> Candidate:
    """Return the fastest, if it gains enough over what is simpler or more precise."""

    def cost(candidate: Candidate) -> float:
        plain = candidate.precision == "fp32", not candidate.compiled
        return seconds[candidate] * GAINS ** (2 - sum(plain))

    return min(seconds, key=cost)


def _key(
    steps: Steps,
    machine: detect.Machine,
    batches: Batches,
    evaluated: Batches | None,
) -> dict[str, Any]:
    """Return what the figures of a trial depend on, ready for JSON."""
    args, core = steps.args, transformers_model(steps.model)
    places = [len(batches) // 2, len(batches) - 1]
    return {
        "machine": [machine.cpu, machine.features, machine.cores],
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__],
        "model": {**core.config.to_dict(), "_name_or_path": None},
        "weights": [[*p.shape, p.requires_grad] for p in steps.model.parameters()],
        "objective": [type(steps.objective).__name__, args.do_train],
        "batches": [[len(batches.rows[i]), int(batches.lengths[i])] for i in places],
        "evaluated": evaluated and [args.eval_batch_size, int(evaluated.lengths[-1])],
        "with": [args.activation_checkpointing, args.label_smoothing_factor],
    }
