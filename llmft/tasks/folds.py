"""Cross-validation of a classifier: ``--k_folds``.

Each fold is a training of its own, whose folder goes when it is over; what its methods
say of the rows that it held out stays in ``folds/`` of the run. So the same command
with the same ``output_dir`` goes on after the last whole fold. Then all rows are
learnt, by the method that was best on the rows held out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from transformers.trainer_utils import IntervalStrategy, PredictionOutput

from llmft.config.fields import AUTO, ClassificationDataArguments
from llmft.config.fold import Fold
from llmft.config.parse import Arguments
from llmft.config.rules import COMMAND_LINE
from llmft.console import say, short, warn, warned_once
from llmft.data.read.labels import LabelNames
from llmft.data.read.store import Source, content_hash
from llmft.data.split.folds import folds_of
from llmft.errors import CheckpointError, EnvironmentFault
from llmft.files import read_object, to_json, write_json, write_text
from llmft.metrics import predictions
from llmft.metrics.folds import joined, names_of, together
from llmft.metrics.intervals import TUNED
from llmft.metrics.ladder import HEADLINE, lines
from llmft.model.identity import fingerprint
from llmft.model.labels import label_names
from llmft.process import recipe_file, versions
from llmft.runs.leg import begun, recorded, since_folds
from llmft.runs.output_dir import make_folder
from llmft.runs.plan import Plan, duration_text
from llmft.runs.record import FOLDS, OF_RUN, held, rows_of
from llmft.runs.report.publish import publish_report
from llmft.tasks.classify import TASK, compute_metrics
from llmft.tasks.ladder import HEAD_ONLY, Ladder
from llmft.tasks.prepare import prepare, read_splits
from llmft.train.agreement import AlreadyComplete, push_late
from llmft.train.class_weights import class_weights
from llmft.train.hyperparameters import OF_FOLDS
from llmft.train.resume import COMPLETE

Train = Callable[[Arguments], tuple[Plan, Ladder | None]]
_ARGUMENTS = "arguments.json"  # of the folds
# Arguments, by how their names begin, that change nothing of what the folds say.
_ASIDE = (
    *("output_dir", "resume_from_checkpoint", "run_name", "dry_run", "debug"),
    *("save_", "logging_", "report_to", "disable_tqdm", "push_to_hub", "hub_"),
)
# What a training that saves nothing on the way and has no validation leaves aside.
_OF_NO_USE = (
    *("do_eval", "load_best_model_at_end", "eval_strategy", "save_strategy"),
    "early_stopping_patience",
)
_ON_THE_WAY = "eval_steps save_steps save_seconds validation_split_percentage".split()
_CHOICES = {
    "precision": "precision",
    "attention": "attn_implementation",
    "long_text": "long_text",
    "epochs": "num_train_epochs",
    "rate": "learning_rate",
}


@warned_once()
def cross_validate(train: Train, args: Arguments) -> Plan:
    """Hold out each fold once, then learn all rows; return the plan of the latter.

    Args:
        train: the recipe behind its arguments, as ``args.fold`` says.

    Raises:
        CheckpointError: the folds that are there are of other arguments or data.
    """
    folds, data, training = args.data.k_folds, args.data, args.training
    training.of_folds = True
    complete, stopped = _there(training)
    # Where there is one of before, the folder need not be free.
    into = None if complete or stopped else training.output_dir
    last = _training(args, Fold(folds, keep=TUNED), into)
    model, source, labels = _read(last)
    facts = model | {"train data": content_hash(source.dataset)}
    if complete:
        _require_same(complete / FOLDS, args, facts)
        push_late(complete, read_object(complete / "run.json"), training)
        say(f"already complete ({folds} of {folds} folds, and all rows): {complete}")
        raise AlreadyComplete(complete)
    of_rows = folds_of(source, folds, training.seed)
    rows = [np.flatnonzero(of_rows == place) for place in range(folds)]
    if always := int((of_rows < 0).sum()):
        say(f"  {always:,} rows are in every training: no other fold has their label")
    if training.dry_run:
        plan = train(last)[0]
        took = folds * sum(plan.seconds.values())
        said = f"{folds} trainings on part of the rows come before this one"
        say(f"k_folds    {said}" + f", about {duration_text(took)} more" * bool(took))
        return plan
    record = begun(str(recipe_file(TASK.recipe)), args, None)
    if stopped:
        _require_same(stopped / FOLDS, args, facts)
        record = since_folds(stopped, record)
        _clear(stopped)
    folder = make_folder("classify", training)
    kept = folder / FOLDS
    kept.mkdir(exist_ok=True)
    with held(kept):
        write_json(kept / _ARGUMENTS, _require_same(kept, args, facts))
        said = "then one on all rows; what each prints, its plan too, is in"
        say(f"k_folds    {folds} trainings, {said} {short(kept)}/1.txt and so on")
        with recorded(folder, TASK.recipe, record):
            found = _each(train, args, [len(part) for part in rows], kept)
        metric = compute_metrics(labels.problem_type, data.multi_label_threshold)
        results = together(found, metric, HEADLINE[labels.problem_type])
        reached = lines(results["all"]["ladder"], "the rows held out")
        say("\n".join(reached + [f"  {HEAD_ONLY}"] * args.model.freeze_backbone))
        keep = results["all"]["ladder"]["saved"]
        answers = _answers(found, source, np.concatenate(rows), labels, data, results)
        say(f"\nall {len(of_rows):,} rows are learnt now; their {keep} model is saved")
        _choose(last, found[0]["choices"])
        last.training.output_dir = str(folder)
        fold = Fold(folds, keep=keep, results=results)
        publish = partial(_write_predictions, folder, answers, rows)
        return _learn_all(train, replace(last, fold=fold), publish)


def _learn_all(train: Train, args: Arguments, publish: Callable[[], None]) -> Plan:
    """Train on all rows; then what the folds say is published."""
    folder = Path(str(args.training.output_dir))
    try:
        plan = train(args)[0]
    except BaseException:  # of what is complete the hub did not take the model
        if read_object(folder / "run.json").get("status") == COMPLETE:
            publish()
        raise
    publish()
    return plan


def _read(args: Arguments) -> tuple[dict[str, Any], Source, LabelNames]:
    """Return what pins the model of all trainings, and the rows they divide."""
    located, _, tokenizer = prepare(args, TASK)
    source = read_splits(args, needs_label=True).sources["train"]
    if args.data.dataset_name:
        say("  k_folds divides train; a validation split of the data set is left out")
    given = [n for n, origin in args.origins.items() if origin == COMMAND_LINE]
    if unused := [n for n in (*_OF_NO_USE, *_ON_THE_WAY) if n in given]:
        said = "folds are saved as a whole, without validation on the way"
        warn(f"{', '.join(unused)} of no use with k_folds: {said}")
    kind = str(source.problem_type)
    labels = label_names(located, source, args.data.allow, kind)
    facts = {**fingerprint(located, tokenizer), **versions()}
    if (weights := args.data.class_weights) not in (["none"], ["balanced"]):
        class_weights(weights, labels, source.dataset)  # the numbers of a file
    return facts | {"class_weights": weights}, source, labels


def _there(training: Any) -> tuple[Path | None, Path | None]:
    """Return the folder of a run that is complete, or of one whose end is missing.

    Of that, the folds are there, and a last training that was stopped, or whose model
    has gone. Of one that is complete, ``auto`` asks what is left to do.

    Raises:
        EnvironmentFault: it is complete, and nothing asks for that.
    """
    folder = Path(training.output_dir or "").expanduser()
    record = read_object(folder / "run.json")
    if not training.output_dir or not record or not (folder / FOLDS).is_dir():
        return None, None
    if record.get("status") != COMPLETE:
        return None, folder
    asks = training.resume_from_checkpoint == AUTO
    if asks and "k_folds" in read_object(folder / "metrics.json"):
        whole = (folder / "model" / "config.json").is_file()
        return (folder, None) if whole else (None, folder)
    said = "the cross-validation there is complete"
    if asks:
        said = "what is complete there is no cross-validation"
    raise EnvironmentFault(said, hint="name another output_dir", path=folder)


def _clear(folder: Path) -> None:
    """Take away what a last training left that was stopped; its folds stay.

    Raises:
        EnvironmentFault: it goes on in another process.
    """
    with held(folder):
        for name in OF_RUN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _training(args: Arguments, fold: Fold, output_dir: Any) -> Arguments:
    """Return the arguments of one of the trainings, which has no validation."""
    made = replace(deepcopy(args), fold=fold)
    training: Any = made.training
    training.do_eval, training.load_best_model_at_end = False, False
    training.eval_strategy = training.save_strategy = IntervalStrategy.NO
    training.early_stopping_patience = training.resume_from_checkpoint = None
    training.output_dir = output_dir
    made.origins.update(dict.fromkeys(_OF_NO_USE, "k_folds"))
    made.origins.pop("resume_from_checkpoint", None)
    if fold.place is not None:
        training.do_predict, training.report_to = True, []
        made.data.num_mistakes = 0
    return made


def _require_same(kept: Path, args: Arguments, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the folds are made of; raise unless those that are there agree."""
    file = kept / _ARGUMENTS
    asked = {name: entry["value"] for name, entry in args.resolved().items()}
    now = {n: v for n, v in asked.items() if not n.startswith(_ASIDE)} | facts
    before = read_object(file) if any(kept.glob("[0-9]*.json")) else now
    differ = [n for n in now if before.get(n) != now[n]]
    if differ:
        raise CheckpointError(
            f"the folds there were made with other values of {', '.join(differ)}",
            hint="give the same, or another --output_dir",
            path=kept,
        )
    return now


def _whole(file: Path, rows: int) -> bool:
    """Return whether a file has what all methods say of so many rows."""
    found = read_object(file)
    try:
        each = [found["references"], *(rung["scores"] for rung in found["rungs"])]
        whole = {*map(len, each)} == {rows} and len(each) > 1
    except (KeyError, TypeError):
        whole = False
    if not whole and file.exists():
        warn(f"{file} is damaged: its fold is trained again")
    return whole


def _each(
    train: Train, args: Arguments, sizes: Sequence[int], kept: Path
) -> list[dict[str, Any]]:
    """Return the result of each fold, which is trained where it is not there."""
    found, folds = [], len(sizes)
    for place, size in enumerate(sizes):
        there = _whole(kept / f"{place + 1}.json", size)
        if not there:
            _train_fold(train, args, place, kept)
        found.append(read_object(kept / f"{place + 1}.json"))
        left = fmean(fold["seconds"] for fold in found) * (folds - place)
        more = "" if there else f", about {duration_text(left)} left in all"
        say(f"  fold {place + 1} of {folds}: {_said(found[-1])}{more}")
    return found


def _train_fold(train: Train, args: Arguments, place: int, kept: Path) -> None:
    """Train without a fold, and keep what each method says of it."""
    scratch = kept / "training"
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was stopped
    made = _training(args, Fold(args.data.k_folds, place), str(scratch))
    if (first := read_object(kept / "1.json")) and place:
        _choose(made, first["choices"])
    output, started = kept / f"{place + 1}.txt", time.perf_counter()
    with open(output, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        plan, ladder = train(made)
    assert ladder is not None
    assert ladder.references is not None
    chosen = {choice.name: choice.value for choice in plan.choices}
    # By their place among the rows held out.
    unknown = {
        row["row"]: row["unknown_tokens"]
        for row in rows_of(Path(scratch) / "predictions.jsonl")
        if "unknown_tokens" in row
    }
    result = {
        "unknown_tokens": unknown,
        "choices": {n: chosen[n] for n in _CHOICES if n in chosen}
        | {"long_text": made.data.long_text},
        "seconds": round(time.perf_counter() - started, 1),
        "references": ladder.references.tolist(),
        "rungs": [
            {"name": r.name, "scores": r.scores.tolist(), "seconds": r.seconds}
            for r in ladder.rungs
        ],
    }
    write_json(kept / f"{place + 1}.json", result)
    shutil.rmtree(scratch, ignore_errors=True)


def _choose(args: Arguments, choices: dict[str, str]) -> None:
    """Let a training take what the first fold has chosen."""
    parts: dict[str, Any] = {"precision": args.training, "long_text": args.data}
    parts |= dict.fromkeys(("epochs", "rate"), args.training)
    for name, value in choices.items():
        number, field = name in ("epochs", "rate"), _CHOICES[name]
        setattr(parts.get(name, args.model), field, float(value) if number else value)
        args.origins[field] = OF_FOLDS if number else "k_folds: as in the first fold"


def _said(fold: dict[str, Any]) -> str:
    return f"{len(fold['references']):,} rows held out, {fold['seconds']:.0f} s"


def _answers(
    found: list[dict[str, Any]],
    source: Source,
    order: np.ndarray,
    labels: LabelNames,
    data: ClassificationDataArguments,
    results: dict[str, Any],
) -> list[dict[str, Any]]:
    """Show and return what was said of each row held out; weak classes are results.

    Args:
        order: the places in train of the rows of all folds.
    """
    rungs = [joined(found, name) for name in names_of(found)]
    saved = results["all"]["ladder"]["saved"]
    scores = next(rung.scores for rung in rungs if rung.name == saved)
    known = np.concatenate([np.asarray(fold["references"]) for fold in found])
    predicted = PredictionOutput(scores, known, {})
    others = [rung for rung in rungs[1:] if rung.name != saved]
    texts = source.dataset.select(order)
    said = predictions.rows(texts, predicted, labels, data, others, source.files)
    first = 0
    for fold in found:
        for place, count in fold["unknown_tokens"].items():
            said[first + int(place)]["unknown_tokens"] = count
        first += len(fold["references"])
    parts = {"train": source.dataset}
    weak = predictions.weak_classes(predicted, labels, parts, data)
    results["all"]["weak_classes"] = weak
    predictions.show(said, predicted, labels, "the rows held out", data, weak)
    return said


def _write_predictions(
    folder: Path, said: list[dict[str, Any]], rows: list[np.ndarray]
) -> None:
    """Write what was said of each row held out, before what the last run wrote."""
    file = folder / "predictions.jsonl"
    of_test = file.read_text("utf-8") if file.is_file() else ""
    order = np.concatenate(rows)
    folds = np.repeat(np.arange(len(rows)), [len(part) for part in rows]) + 1
    lines = [
        to_json(row | {"split": "train", "row": int(at), "fold": int(fold)}) + "\n"
        for row, at, fold in zip(said, order, folds, strict=True)
    ]
    write_text(file, "".join(lines) + of_test)
    say(f"predicted  {short(file)}")
    publish_report(folder)  # once more, with these
