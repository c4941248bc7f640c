"""Whether what is asked agrees with the run that goes on, and what is left of it to do.

All that differs is one table: what must agree is refused, what changes what comes of
the run is warned of, anything else holds from now on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer_utils import SchedulerType

from llmft.config.choice import Choice
from llmft.config.facts import BY_METRIC, MAY_DIFFER, fields_with
from llmft.config.fields import TrainingArguments
from llmft.config.parse import Arguments
from llmft.config.rules import ACTIONS
from llmft.console import say, table, warn
from llmft.errors import CheckpointError
from llmft.files import write_json
from llmft.machine.choose import OF_SUMS
from llmft.process import versions
from llmft.sources import upload
from llmft.train.checkpoint import identity, read_manifest
from llmft.train.resume import COMPLETE, is_of, record_of, saved_state, training_steps

_EFFECTS = REFUSED, WARNED, APPLIED, LEFT = (
    "refused",
    "warned of",
    "applied",
    "not done",
)
_HEADER = ("differs", "was", "is", "")
# Of these a resume compares what was chosen, or they say where the run is, not what.
_ASIDE = {
    *("output_dir", "resume_from_checkpoint", "run_name", "dry_run", "debug"),
    *("num_threads", "attn_implementation", "precision", "bf16", "fp16"),
    *("compile_layers", "mixed_precision", "fast_path", "auto_find_batch_size"),
}


class AlreadyComplete(SystemExit):
    """Ends a command, with exit code 0, where the run in ``folder`` is complete."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self.folder = folder


class Difference(NamedTuple):
    """Something that was otherwise before a resume, and what becomes of it."""

    name: str
    was: Any
    now: Any
    effect: str


def require_match(
    recipe: str,
    args: Arguments,
    facts: Mapping[str, Any],
    train: Any | None,
    choices: Sequence[Choice] = (),
) -> None:
    """Say how the run differs from the one that it goes on from.

    Args:
        recipe: its name.
        args: what was asked, after ``resume.locate``.
        facts: ``data`` and ``model``, as they go into ``run.json``.
        train: the training examples.
        choices: what was chosen for this machine.

    Raises:
        CheckpointError: it is another run, or nothing is left to do.
        AlreadyComplete: it is over, and was found by ``auto`` or ``true``.
    """
    training = args.training
    folder = Path(str(training.resume_from_checkpoint or ""))
    found = bool(training.resume_from_checkpoint)
    if not (found or training.goes_on) or (training.do_train and train is None):
        return
    run = folder.parent.parent if found else Path(str(training.output_dir)).expanduser()
    record = record_of(run)
    values = {name: entry["value"] for name, entry in args.resolved().items()}
    here = {"recipe": recipe, **facts}
    own = not found or is_of(folder, Path(str(training.output_dir)))
    if training.goes_on and own and record.get("status") == COMPLETE:
        _end_if_over(run, record, here, args, values, train)
    if not found:  # it starts anew
        if record and record.get("recipe") != recipe:
            said = f"the run there is of {record.get('recipe')}, this is {recipe}"
            raise CheckpointError(said, hint="name another output_dir", path=run)
        return
    manifest, total = read_manifest(folder), training_steps(training, train)
    if not record:
        said = "gone or damaged: what may differ from before cannot be told"
        warn(f"{run / 'run.json'} is {said}")
    differ = _refused(manifest["belongs_to"], identity(here, values), values)
    known = {d.name for d in differ} | {*manifest["belongs_to"]}
    differ += _others(record, args, values, known, total)
    step = manifest["step"]
    over = step > total or (step == total and record.get("status") == COMPLETE)
    if over and not any(d.effect == REFUSED for d in differ):
        raise CheckpointError(
            f"it is of step {step}, this run ends at step {total}: nothing is left to"
            " do",
            hint="give its weights as --model_name_or_path"
            if training.time_limit
            else "raise num_train_epochs or max_steps",
            path=folder,
        )
    differ += _of_machine(record, choices, manifest)
    show(differ + _of_steps(training, total), folder)
    say(f"going on   behind step {step:,} of {total:,}")


def _end_if_over(
    run: Path,
    record: Mapping[str, Any],
    here: Mapping[str, Any],
    args: Arguments,
    values: Mapping[str, Any],
    train: Any | None,
) -> None:
    """Raise AlreadyComplete where a complete run has all that is asked.

    Raises CheckpointError where it is another one, or cannot go on.
    """
    training = args.training
    before = _values(record)
    planned = (record.get("plan") or {}).get("steps", 0)
    done = record.get("steps") or planned
    stops = ("early_stopping_patience", "early_stopping_threshold")
    early = done < planned and not training.time_limit
    total = planned
    if training.do_train and not training.time_limit:
        total = training_steps(training, train)
    if total > planned or (early and any(before.get(n) != values[n] for n in stops)):
        if training.resume_from_checkpoint:
            return  # more is asked, and there is where to go on
        raise CheckpointError(
            f"the run is complete with {done:,} of {planned:,} steps, and has no whole"
            f" checkpoint from which to go on to {total:,}",
            hint="name another output_dir, or give its model as --model_name_or_path",
            path=run,
        )
    there = identity(record, before) | _of_test(record, before)
    differ = _refused(there, identity(here, values) | _of_test(here, values))
    if total < planned:
        differ.append(Difference("steps", planned, total, REFUSED))
    known = {d.name for d in differ} | {*there}
    others = _others(record, args, values, known, total)
    show(differ + [d._replace(effect=LEFT) for d in others], run)
    if training.do_train and not (run / "model").is_dir():
        hint = "resume one of its checkpoints by its path, or name another output_dir"
        raise CheckpointError(
            "the run is complete, but its model is gone", hint=hint, path=run
        )
    push_late(run, record, training)
    steps = f"{done:,} of {done if training.time_limit else planned:,} steps"
    steps += ", stopped early" if early else ""
    said = f" ({steps})" if training.do_train else ""
    say(f"already complete{said}: {run}")
    raise AlreadyComplete(run)


def push_late(
    run: Path, record: Mapping[str, Any], training: TrainingArguments
) -> None:
    """Push the model of a complete run, where that is asked and was not done."""
    if not training.push_to_hub or record.get("pushed"):
        return
    repo = upload.require_repo(str(training.hub_model_id), training.hub_private_repo)
    page = upload.upload(run / "model", repo, training.hub_revision)
    write_json(run / "run.json", {**record, "pushed": page})
    say(f"pushed     {page}")


def _of_test(record: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else must agree with a run that is over: steps and test data."""
    test = (record.get("data") or {}).get("test") or {}
    found = {f"test data: {key}": test.get(key) for key in ("rows", "sha256")}
    return found | {name: values.get(name) for name in ACTIONS}


def _refused(
    there: dict[str, Any],
    here: dict[str, Any],
    arguments: Iterable[str] = (),
) -> list[Difference]:
    """Return what must agree and does not.

    One of the ``arguments`` that the version before did not know is left aside.
    """
    streams = there.get("streaming") or here.get("streaming")
    return [
        Difference(
            # No stream is read as a whole only to tell it from another.
            name.replace("sha256", "size or time of change") if streams else name,
            there.get(name),
            here.get(name),
            REFUSED,
        )
        for name in here | there
        if here.get(name) != there.get(name)
        if name in there or name not in arguments
    ]


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
    return {n: a.get("value") for n, a in (record.get("arguments") or {}).items()}


def _others(
    record: Mapping[str, Any],
    args: Arguments,
    values: Mapping[str, Any],
    known: set[str],
    total: int,
) -> list[Difference]:
    """Return the other arguments that are not as in the ``record`` of before.

    More ``logging_steps`` than a run has in ``total`` are as many: see ``make_plan``.
    """
    parts = [type(p) for p in (args.model, args.data, args.training)]
    may_differ = fields_with("resume", *parts, among=[MAY_DIFFER])
    before, every = _values(record), "logging_steps"
    before[every] = min(before.get(every, values[every]), total)
    values = {**values, every: min(values[every], total)}

    def effect(name: str, value: Any) -> str:
        if name == "lr_scheduler_type" and {before[name], value} & {*BY_METRIC}:
            return REFUSED  # its state is of another kind
        return WARNED if name in may_differ else APPLIED

    return [
        Difference(name, before[name], value, effect(name, value))
        for name, value in values.items()
        if before.get(name, value) != value and name not in known | _ASIDE
    ]


def _of_steps(training: TrainingArguments, total: int) -> list[Difference]:
    """Return the steps of the run, where the learning rate follows from them."""
    planned = saved_state(training).max_steps
    constant = SchedulerType(training.lr_scheduler_type).value.startswith("constant")
    effect = APPLIED if constant else f"{WARNED}: the rate goes on as in a run of these"
    return [Difference("steps", planned, total, effect)] if planned != total else []


def _of_machine(
    record: Mapping[str, Any], choices: Sequence[Choice], manifest: Mapping[str, Any]
) -> list[Difference]:
    """Return what was chosen otherwise, and other versions: sums differ a little."""
    before, effect = record.get("choices") or {}, f"{WARNED}: other sums"
    found = [
        Difference(choice.name, before[choice.name].get("value"), choice.value, effect)
        for choice in choices
        if choice.name in OF_SUMS and choice.name in before
    ]
    here = versions()
    found += [
        Difference(f"version of {name}", was, here.get(name, "unknown"), effect)
        for name, was in (manifest.get("versions") or {}).items()
        if name != "python"
    ]
    return [d for d in found if d.was != d.now]


def show(differ: Sequence[Difference], place: Path) -> None:
    """Print the table of differences, and warn of those that change the run.

    Raises CheckpointError, with all of them, where some are refused.
    """
    if not differ:
        return
    order = [d for e in _EFFECTS for d in differ if d.effect.startswith(e)]
    say(
        table(
            [(d.name, _short(d.was), _short(d.now), d.effect) for d in order], _HEADER
        )
    )
    if refused := [d for d in differ if d.effect == REFUSED]:
        each = [f"{d.name} was {_short(d.was)}, is {_short(d.now)}" for d in refused]
        raise CheckpointError(
            f"it does not belong to this run: {'; '.join(each)}",
            hint="resume with what it was made with, or give its weights alone as"
            " --model_name_or_path",
            path=place,
        )
    if warned := [d.name for d in order if d.effect.startswith(WARNED)]:
        said = "the run is no longer what it would have been"
        warn(f"{', '.join(warned)}: not as before this resume, {said}")
    if left := [d.name for d in order if d.effect == LEFT]:
        said = "not as in the run, which is complete and stays so; train anew for that"
        warn(f"{', '.join(left)}: {said}")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch("[0-9a-f]{40,}", text) else text
