"""The ladder of a classifier: simpler methods on the same texts; the best is saved.

ladder = Ladder(args, splits, labels, new)
with run.start():
    ladder.start_from_probe(trainer, examples, run)
    trainer.train()
    ladder.keep_best(trainer, examples, run)
    ...
    ladder.finish(predicted, run)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import PredictionOutput

from llmft.config.parse import Arguments
from llmft.console import say
from llmft.data.read.labels import REGRESSION, LabelNames
from llmft.data.split.splits import Splits
from llmft.metrics.baseline import tfidf
from llmft.metrics.intervals import PROBE, TUNED
from llmft.metrics.ladder import HEADLINE, Rung, climbed, lines, majority
from llmft.metrics.standard_errors import Metric
from llmft.runs.folder import Run
from llmft.train.linear_probe import fit_linear_probe
from llmft.train.narrow import transformers_model
from llmft.train.outputs import has_new_output
from llmft.train.trainer import LlmftTrainer

HEAD_ONLY = f"{TUNED} is here the head alone: --freeze_backbone"


class Ladder:
    """The rungs below a training, and which of its models is kept.

    Empty where ``ladder`` is off, or nothing is trained: then nothing happens.

    Args:
        args: of the run. splits: the rows. labels: their names.
        new: the names of the model's weights that were never trained.

    Attributes:
        rungs: what was climbed so far. notes: what could not be, in words.
        saved: the name of the one that the model is.
        references: the labels of the held-out texts, at the end.
    """

    references: np.ndarray | None = None

    def __init__(
        self,
        args: Arguments,
        splits: Splits,
        labels: LabelNames,
        new: Collection[str],
    ) -> None:
        self.labels, self.saved, self.new = labels, TUNED, new
        self.rungs: list[Rung] = []
        self.notes: list[str] = []
        self.reached: Mapping[str, float] = {}  # by the probe, on validation
        self.file: Path | None = None  # the weights that it trains, meanwhile
        train, held_out = splits.parts.get("train"), splits.held_out()
        self.on = args.data.ladder and train is not None
        self.frozen = args.model.freeze_backbone
        self.keeps_probe = args.fold is not None and args.fold.keep == PROBE
        if not args.data.ladder or train is None or held_out is None:
            return
        test = splits.parts[held_out]
        targets = labels.targets(train["label"][:], "train")
        self.rungs.append(majority(targets, len(test), labels))
        try:
            self.rungs.append(tfidf(train, test, labels))
        except ValueError as error:  # no word in train, or a single class
            self.notes.append(f"  TF-IDF not computed: {error}")

    def start_from_probe(
        self, trainer: LlmftTrainer, examples: Mapping[str, Dataset], run: Run
    ) -> None:
        """Fit the output layer of the trainer's model on frozen features, if it is new.

        Its weights are kept in the folder of the run until ``keep_best``.
        """
        start, model = time.perf_counter(), transformers_model(trainer.model)
        if not self.on:
            return
        if not has_new_output(model, self.new):
            self.notes.append(f"  no {PROBE}: the head had been trained before")
            return
        objective: Any = trainer.objective
        args: Any = trainer.args
        fitted_on = fit_linear_probe(
            model, objective, trainer.data_collator, examples["train"], args
        )
        if fitted_on is None:
            self.notes.append(f"  no {PROBE}: the head reads more than one vector")
            return
        trainer.guards.watch.well = True
        on = f"{fitted_on:,} of {len(examples['train']):,} examples"
        say(f"  {PROBE} fitted on {on}: training starts from its head")
        found = None
        if "validation" in examples:
            found = trainer.predict(examples["validation"], metric_key_prefix="eval")
            self.reached = found.metrics or {}
        if "validation" in examples or self.keeps_probe:
            self.file = run.folder / "probe.safetensors"
            save_file(_trained(model), self.file)
        if run.held_out == "test":
            found = trainer.predict(examples["test"])
        took = time.perf_counter() - start
        if trainer.time_limit:
            trainer.time_limit.not_again += took
        if found is not None and run.held_out:
            self.rungs.append(Rung(PROBE, np.asarray(found.predictions), took))

    def keep_best(
        self, trainer: LlmftTrainer, examples: Mapping[str, Dataset], run: Run
    ) -> None:
        """Put the probe's weights back where validation says that they are better.

        That is in the metric of the best checkpoint, by more than the probe's standard
        error: of 20 trainings on 8 or 16 texts a class (emotions, MedMCQA), the
        difference alone picked the probe in 4, each time wrongly (0.30 and 0.45 right
        of the test). Where the rest is frozen, if the training did not improve it.
        After a cross-validation, where its folds say so.
        """
        if self.file is None:
            return
        args: Any = trainer.args
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        probe, tuned = self.reached.get(name), _reached(trainer, name)
        if probe is not None and tuned is None:  # nothing was evaluated on the way
            data: Any = examples["validation"]
            measured = trainer.predict(data, metric_key_prefix="eval").metrics or {}
            tuned = measured.get(name)
        if self.keeps_probe:
            self._take_probe(trainer, examples, run)
        elif probe is not None and tuned is not None:
            above = probe - tuned if args.greater_is_better else tuned - probe
            error = self.reached.get(f"{name}_stderr", 0.0)
            if above >= 0 if self.frozen else above > error:
                self._take_probe(trainer, examples, run)
                said = f"saved: {name} {probe:.4g}, fine-tuned {tuned:.4g}"
                how = "better" if above > 0 else "as good"
                say(f"  the {PROBE} is {how} on validation, and {said}")
        self.file.unlink()

    def _take_probe(
        self, trainer: LlmftTrainer, examples: Mapping[str, Dataset], run: Run
    ) -> None:
        """Give the model the weights that it had before the training."""
        if run.held_out:
            data: Any = examples[run.held_out]
            self._add_tuned(trainer.predict(data), run)
        assert self.file is not None
        kept, self.saved = load_file(self.file), PROBE
        with torch.no_grad():
            for name, weight in _trained(transformers_model(trainer.model)).items():
                weight.copy_(kept[name])

    @property
    def others(self) -> list[Rung]:
        """The rungs that read a text, but for the saved model."""
        return [rung for rung in self.rungs[1:] if rung.name != self.saved]

    def finish(self, predicted: PredictionOutput, run: Run, metric: Metric) -> None:
        """Compare the rungs on the held-out texts, for ``metrics.json`` and the end.

        Args:
            predicted: what the saved model says of them. metric: measures it.
        """
        if predicted.label_ids is None:
            return
        self.references = np.asarray(predicted.label_ids)
        if self.saved == TUNED:
            self._add_tuned(predicted, run)
        if not self.on:
            return
        scores = np.asarray(predicted.predictions)  # the probe's may be calibrated now
        self.rungs = [
            replace(rung, scores=scores) if rung.name == self.saved else rung
            for rung in self.rungs
        ]
        if self.labels.problem_type == REGRESSION and not np.ptp(self.references):
            said = f"  no ladder: the numbers of {run.held_out} are all the same"
            self.notes.append(f"{said}, and R2 is none")
            return
        name = HEADLINE[self.labels.problem_type]
        run.more["ladder"] = climbed(
            self.rungs, predicted.label_ids, metric, name, saved=self.saved
        )
        run.more["ladder"]["calibrated"] = "calibration" in run.more
        self.notes = [
            *lines(run.more["ladder"], str(run.held_out)),
            *[f"  {HEAD_ONLY}"] * self.frozen,
            *self.notes,
        ]

    def _add_tuned(self, predicted: PredictionOutput, run: Run) -> None:
        scores = np.asarray(predicted.predictions)
        self.rungs.append(Rung(TUNED, scores, run.clock.seconds))


def _reached(trainer: LlmftTrainer, name: str) -> float | None:
    """Return the metric of the weights that are kept: the best, else the last ones."""
    if trainer.args.load_best_model_at_end:
        return trainer.state.best_metric
    found = [event[name] for event in trainer.state.log_history if name in event]
    return found[-1] if found else None


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
