"""The run of a recipe, and its folder: what ran, what came of it, and the model.

    run = Run(__file__, task, args, splits, fingerprint(located, tokenizer))
    run.plan(choices, train)
    with run.start():
        trainer = LlmftTrainer(..., callbacks=[..., *run.callbacks])
        run.results["eval"] = trainer.evaluate()
        run.finish(trainer, title)

The folder is made when all checks have passed. Whatever ends the block is recorded in
``run.json``, whose status is running, interrupted, failed or complete. A run that is
resumed goes on in its own folder: ``legs`` of ``run.json`` holds what it said before.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmft.config.choice import Choice
from llmft.config.parse import Arguments
from llmft.config.task import Task
from llmft.console import crashes_to, log_to_file, say, short, warn
from llmft.data.split.splits import Splits
from llmft.errors import EnvironmentFault
from llmft.files import (
    finite,
    publish_folder,
    to_json,
    write_json,
    write_text,
)
from llmft.machine import detect
from llmft.machine.plan import Forecast
from llmft.model.adapters import save_model
from llmft.model.identity import terms_files
from llmft.process import as_fault
from llmft.runs import terminal
from llmft.runs.card import model_card
from llmft.runs.leg import begun, how_it_ended, since_folds
from llmft.runs.output_dir import make_folder
from llmft.runs.plan import Plan, make_plan, show, took
from llmft.runs.record import drop_later, held
from llmft.runs.report.publish import for_the_page, publish_report, weak_segments
from llmft.runs.speed import StepClock, training_speed
from llmft.runs.terminal import UNSHARED
from llmft.runs.tracking import Tracking, fault_of
from llmft.signals import signal_of
from llmft.sources import upload
from llmft.train import callbacks, checkpoint, progress, resume
from llmft.train.agreement import require_match
from llmft.train.batches import lengths_in_brief
from llmft.train.guards import Guards
from llmft.train.profile import Profile
from llmft.train.tally import breakdown
from llmft.train.trainer import LlmftTrainer


class Run:
    """One run of a recipe.

    Args:
        script: the recipe's file.
        task: what it does.
        args: what was asked.
        splits: its data.
        model: what pins model and tokenizer, see ``model.identity.fingerprint``.

    Attributes:
        held_out: the split that the result is judged on: test, else validation.
        results: metrics by the part they were measured on (``before``, ``eval``,
            ``test``), as ``Trainer.evaluate`` returns them, prefix and all. Where rows
            of it are in train, too, those without them, as ``test_without_shared``.
        shared: how many rows of each split train has, too.
        more: further parts of ``metrics.json``, by name.
        callbacks: for the trainer, once the run has started.
        folder, record: of the started run, and what its ``run.json`` holds.
    """

    folder: Path
    callbacks: list[TrainerCallback]

    def __init__(
        self,
        script: str,
        task: Task,
        args: Arguments,
        splits: Splits,
        model: Mapping[str, str],
    ) -> None:
        self.script, self.task, self.args = script, task, args
        self.held_out = splits.held_out()
        self.train_source = splits.sources.get("train")
        self.of_fold = args.fold is not None and args.fold.place is not None
        self.pushes = args.training.push_to_hub and not self.of_fold
        self.files = splits.sources[self.held_out].files if self.held_out else []
        self.results: dict[str, dict[str, float]] = {}
        self.unknown_tokens: dict[int, int] = {}  # of texts held out, by their place
        self.shared = {split: len(rows) for split, rows in splits.in_train.items()}
        self.more: dict[str, Any] = {"shared_with_train": self.shared}
        if args.fold and args.fold.results:  # of the cross-validation before
            self.results["folds"] = args.fold.results["run"]
            self.more["k_folds"] = args.fold.results["all"]
        self.record: dict[str, Any] = {
            "recipe": task.recipe,
            "data": splits.provenance,
            "model": dict(model),
        }

    def plan(
        self,
        choices: Sequence[Choice],
        train: Any | None,
        forecast: Forecast | None = None,
    ) -> Plan:
        """Say what is going to happen; check the checkpoint that is resumed.

        Args:
            choices: what was chosen, with reasons. train: the training examples.
            forecast: what the run will take, where that is known.

        Raises:
            CheckpointError: it is not of this run, or nothing is left to do.
            AlreadyComplete: see ``train.agreement``.
            EnvironmentFault: there is not enough disk for it.
        """
        found = self.task.recipe, self.args, self.record
        require_match(*found, train, choices)
        plan = make_plan(self.args.training, choices, train, forecast)
        show(plan, self.args.training)
        self.forecast, self.planned = forecast, plan
        self.record["lengths"] = lengths_in_brief(train)
        self.record["plan"] = asdict(plan)
        chosen = self.record["plan"].pop("choices")
        del self.record["plan"]["folder"]
        self.record["choices"] = {choice.pop("name"): choice for choice in chosen}
        return plan

    @contextmanager
    def start(self) -> Iterator[None]:
        """Make the folder, and record how the block ends.

        ``args.training.output_dir`` becomes the folder that Trainer saves into.
        """
        self.started, self.clock = time.perf_counter(), StepClock()
        self.steps = 0
        training = self.args.training
        resumed = training.resume_from_checkpoint
        if self.pushes:  # what would fail at the end fails now
            private = training.hub_private_repo
            self.repo = upload.require_repo(str(training.hub_model_id), private)
        here = training.goes_on or not resumed
        before = training.output_dir if here else Path(str(resumed)).parent.parent
        if before and (said := how_it_ended(Path(before).expanduser())):
            warn(said)
        self.folder = make_folder(self.task.recipe, training)
        self.planned = replace(self.planned, folder=str(self.folder))
        training.output_dir = str(self.folder)
        self.record |= begun(self.script, self.args, resumed)
        if self.args.fold is not None:
            self.record |= since_folds(self.folder, self.record)
        training.push_to_hub = False  # Trainer would push its checkpoints' folder
        log = self.folder / "logs" / "debug.log"
        checkpoints = self.folder / "checkpoints"
        with held(self.folder):
            self._save()
            if resume.is_of(resumed, self.folder):
                drop_later(self.folder, self.record)
            leg = len(self.record["legs"]) + 1
            found = callbacks.for_run(self.folder, training, leg, self.forecast)
            tracking = Tracking(self.record, training, self.folder, found)
            of_run = (training, self.folder, self.train_source, self.forecast)
            self.guards = Guards(*of_run)
            self.callbacks = [self.clock, *found, tracking, self.guards]
            self.callbacks += [Profile(self.folder)] if training.profile else []
            log.parent.mkdir(exist_ok=True)
            try:
                # What fills the disk goes before the log says that it is full.
                with (
                    log_to_file(log),
                    crashes_to(log),
                    checkpoint.saving(checkpoints) as saving,
                ):
                    training.output_dir = saving
                    yield
                    tracking.finish(self.measured)
            except BaseException as error:
                fault = self._stopped(error)
                if fault is None or fault is error:
                    raise
                raise fault from error
            else:
                ended = {"status": resume.COMPLETE, "steps": self.steps}
                self._save(**ended, seconds=self._seconds())
                if self.pushes and self.args.training.do_train:
                    revision = self.args.training.hub_revision
                    page = upload.upload(self.folder / "model", self.repo, revision)
                    self._save(pushed=page)
                    say(f"pushed     {page}")

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.started, 1)

    def _save(self, **changes: Any) -> None:
        """Write ``run.json`` with ``changes``."""
        self.record |= changes
        write_json(self.folder / "run.json", self.record)

    def _stopped(self, error: BaseException) -> BaseException | None:
        """Record what ended the run, and say how to go on; return it as a fault."""
        stopped = signal_of(error)
        status = "interrupted" if stopped else "failed"
        known: BaseException | None = self.guards.out_of_memory(error)
        fault = known or as_fault(error, self.folder) or fault_of(error)
        progress.close(self.callbacks)
        said = stopped or str(fault or repr(error))
        with suppress(OSError):  # a full disk is what ended the run
            self._save(status=status, seconds=self._seconds(), error=said)
        say(f"run        {short(self.folder)} ({status})")
        whole, _ = resume.newest(self.folder / "checkpoints", hashes=False)
        of_folds = self.args.fold is not None  # they stay
        goes_on = whole or of_folds or self.record["resumed"]
        if goes_on and (stopped or isinstance(fault, EnvironmentFault)):
            anew = " (the folds stay; all rows are learnt anew)" * of_folds
            say(f"go on      {terminal.tool('resume', short(self.folder))}{anew}")
        elif stopped and self.args.training.do_train:
            said = "no checkpoint was due yet: start anew"
            say(f"{said}; --save_steps saves more often")
        return fault

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """The results as ``metrics.json`` has them."""
        splits = {"before": self.held_out, "eval": "validation", "test": "test"}
        splits |= {"folds": "train"}  # each row held out once
        return {
            part: _with_errors(part, splits[part.removesuffix(UNSHARED)], found)
            for part, found in self.results.items()
        }

    def save(self, trainer: LlmftTrainer) -> None:
        """Write ``model/``: at once, so that nothing that comes later can cost it."""
        model: Any = trainer.model
        tokenizer: Any = trainer.processing_class
        checkpoint.require_finite(model, trainer.state.global_step)
        with publish_folder(self.folder / "model", replace=True) as staging:
            save_model(model, staging)
            tokenizer.save_pretrained(staging)
            for path in terms_files(model.name_or_path):
                shutil.copyfile(path, staging / path.name)

    def finish(self, trainer: LlmftTrainer, title: str) -> None:
        """Write ``metrics.json`` and, after training, the card of the model.

        ``title`` is its first line.
        """
        before = [leg.get("seconds", 0.0) for leg in self.record["legs"]]
        self.steps = trainer.state.global_step
        speed = {
            "wall_seconds": round(sum(before) + self._seconds(), 1),
            "legs": len(before) + 1,
            "peak_rss_bytes": detect.peak_rss_bytes(),
            **training_speed(trainer, self.clock),
            "skipped_steps": self.guards.skipped,
        }
        if self.guards.skipped:
            self.record["skipped_steps"] = self.guards.skipped
            self.record["skipped_rows"] = dict(self.guards.rows.most_common(20))
        found: dict[str, Any] = {**self.measured, "run": speed}
        found |= {name: part for name, part in self.more.items() if part}
        if tally := getattr(trainer.objective, "tally", None):
            of = (tally, trainer.processing_class, trainer.train_dataset)
            found["tokens"] = for_the_page("tokens", lambda: breakdown(*of))
        if segments := for_the_page("segments", lambda: weak_segments(self.folder)):
            found["weak_segments"] = segments
        write_json(self.folder / "metrics.json", found)
        if trainer.args.do_train:
            tag = self.task.pipeline_tag
            card = model_card(title, tag, found, self.record)
            write_text(self.folder / "model" / "README.md", card)

    def write_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Write ``predictions.jsonl``; each row says of which split it is.

        Also how many of its tokens are unknown, where some are.
        """
        for row, count in self.unknown_tokens.items():
            rows[row]["unknown_tokens"] = count
        lines = (to_json({"split": self.held_out, **row}) + "\n" for row in rows)
        write_text(self.folder / "predictions.jsonl", "".join(lines))

    def write_examples(self, name: str, found: list[dict[str, Any]]) -> None:
        """Write ``examples.json``: ``fill_mask`` or ``samples``, before and after."""
        write_json(self.folder / "examples.json", {name: found})

    def report(
        self,
        names: Sequence[str],
        recipe: str,
        flags: Iterable[str] = (),
        keep: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Print the last lines: what was reached, where it is, what to do next.

        Args:
            names: the metrics to show.
            recipe: what to run next, on the model of this run, with these ``flags``.
            keep: the arguments that it takes over from this run.
            notes: lines below the results.
        """
        shown = terminal.results(self.measured, names, self.held_out)
        shared = (
            f"  rows of {split} that are in train, too: {rows:,}"
            for split, rows in self.shared.items()
        )
        for line in filter(None, [shown, *shared, *notes]):
            say(line)
        given = {name: a["value"] for name, a in self.record["arguments"].items()}
        if self.forecast and self.clock.seconds and self.args.training.do_train:
            seconds, peak = self.clock.seconds, detect.peak_rss_bytes()
            say(f"\ntook       {took(self.planned, self.steps, seconds, peak)}")
        done = {"status": "complete", "seconds": self._seconds()}  # but for saying so
        if self.of_fold:  # whose folder is not kept
            return
        publish_report(self.folder, {**self.record, **done})
        terminal.where(self.folder, given)
        script = str(Path(self.script).with_name(f"{recipe}.py"))
        values = terminal.next_values(self.folder, given, keep)
        say(f"next       {terminal.command(script, values, flags)}")


def _with_errors(
    part: str, split: str | None, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Turn ``eval_loss``, ``eval_loss_stderr``, ``eval_n`` into one entry each."""
    plain = {name.removeprefix(f"{part}_"): value for name, value in metrics.items()}
    return {
        name: {
            "value": finite(value),
            "n": plain.get("n"),
            "stderr": finite(plain[f"{name}_stderr"]),
            "split": split,
            **({"wider": plain["wider"]} if "wider" in plain else {}),
        }
        for name, value in plain.items()
        if f"{name}_stderr" in plain
    }
