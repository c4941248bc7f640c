"""Classification: what follows from labels that are a class, several, or a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, EvalPrediction
from transformers.trainer_utils import PredictionOutput

from llmft.config.choice import Choice
from llmft.config.facts import BY_METRIC, fields_with
from llmft.config.fields import AUTO
from llmft.config.parse import Arguments
from llmft.config.rules import require_data, require_something_to_do
from llmft.config.task import Task
from llmft.data.read.files import is_pipe
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.data.split.splits import Splits
from llmft.data.tokens.examples import unknown_by_text
from llmft.errors import ConfigError, DataError, LabelError
from llmft.metrics import classes
from llmft.metrics.ladder import HEADLINE
from llmft.metrics.measures import CLASSES, LABELS, NUMBERS
from llmft.metrics.standard_errors import Metric
from llmft.model.labels import trained_problem_type
from llmft.runs.folder import Run
from llmft.runs.plan import Plan
from llmft.runs.record import RunRecord
from llmft.runs.terminal import UNSHARED
from llmft.sources.hub import Located
from llmft.tasks.recipe import run_recipe
from llmft.train.class_weights import weights_choice
from llmft.train.objectives import Classification
from llmft.train.outputs import output_layer
from llmft.train.trainer import LlmftTrainer

METRICS = {SINGLE: CLASSES, MULTI: LABELS, REGRESSION: NUMBERS}
SMALL = 500  # a tenth of so many gives an accuracy of 0.8 to +- 0.06
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
TASK = Task(
    recipe="classify",
    auto_class=AutoModelForSequenceClassification,
    pipeline_tag="text-classification",
    embedded_model="pypi:all-MiniLM-L6-v2",
    # What may be asked for before the labels are known.
    metrics={name: up for of in METRICS.values() for name, up in of.items()},
)


def run(**arguments: Any) -> RunRecord | Plan:
    """Run the recipe as ``recipes/classify.py`` does; see ``run_recipe``.

    classify.run(train_file="reviews.csv", time_limit="10m").metrics["eval"]
    """
    return run_recipe(TASK, arguments)


def check(values: dict[str, Any]) -> list[str]:
    """Return what does not fit together in the arguments of a classifier."""
    problems = require_data(values) + require_something_to_do(values)
    weighs = values["class_weights"] != ["none"]
    if weighs and not values["do_train"]:
        problems.append("class_weights is of training: add --do_train")
    if weighs and values["problem_type"] == REGRESSION:
        problems.append("class_weights is of classes, problem_type is regression")
    if values["calibrate"] and not values["do_train"]:
        problems.append("calibrate is of training: add --do_train")
    elif values["calibrate"] and not values["do_eval"]:
        if values["eval_strategy"] == "no":
            problems.append("calibrate needs validation data: add --do_eval")
    if values["calibrate"] and values["problem_type"] == REGRESSION:
        problems.append("calibrate is of probabilities, problem_type is regression")
    problems += check_labels(values["label_delimiter"], values["problem_type"])
    if values["k_folds"]:
        unfit = [n for n in ("validation_file", "calibrate", "time_limit") if values[n]]
        if values["resume_from_checkpoint"] not in (None, False, AUTO):
            unfit.append("resume_from_checkpoint, but auto,")
        problems += [] if values["do_train"] else ["k_folds trains: add --do_train"]
        for name in ("train_file", "test_file"):
            if is_pipe(values[name] or ""):
                unfit.append(f"{name} {values[name]}, which is read once,")
        if (schedule := values["lr_scheduler_type"]) in BY_METRIC:
            unfit.append(f"lr_scheduler_type {schedule}, which needs validation,")
        for name in unfit:
            shorter = "; shorter: --freeze_backbone, or fewer --num_train_epochs"
            hint = shorter if name == "time_limit" else ""
            problems.append(f"k_folds and {name} exclude each other{hint}")
    if values["freeze_backbone"] and values["neftune_noise_alpha"]:
        said = "freeze_backbone and neftune_noise_alpha exclude each other"
        problems.append(f"{said}: no embedding is read in training")
    if values["stride"] and values["long_text"] != "split":
        problems.append("stride is of long_text split: add --long_text split")
    if values["text_pair_column_name"] and values["long_text"] == "split":
        problems.append(
            "long_text split is for single texts, not for pairs (text_pair_column_name)"
        )
    return problems


def require_one_end(
    model: Any, examples: Mapping[str, Dataset], sources: Mapping[str, Source]
) -> None:
    """Raise DataError for a text that holds the eos token itself, as "</s>".

    The classifiers of BART, T5 and other encoder-decoders read the state at it, and
    fail at a batch whose texts have different numbers of it.
    """
    config = model.config
    if not config.is_encoder_decoder:
        return
    for split, data in examples.items():
        counts = np.array([row.count(config.eos_token_id) for row in data["input_ids"]])
        for place in (counts > counts.min()).nonzero()[0][:1]:
            row = data[int(place)].get("row", int(place))
            raise DataError(
                f"a text holds the end of text of this {config.model_type} model (token"
                f" {config.eos_token_id})",
                "expected none, or a model that is an encoder or a decoder",
                "take it out of the text",
                path=sources[split].place(row),
            )


def check_labels(label_delimiter: str | None, problem_type: str | None) -> list[str]:
    """Return what does not fit together in how labels are read."""
    if label_delimiter is None or problem_type in (None, MULTI):
        return []
    return [f"label_delimiter is of several labels, problem_type is {problem_type}"]


def set_problem_type_from_model(args: Arguments, located: Located) -> str | None:
    """Read labels as a model has them that is not trained any further.

    Returns:
        its problem type; None for one that will be trained.
    """
    if args.training.do_train:
        return None
    made_for = trained_problem_type(located)
    if args.data.problem_type is None and made_for != SINGLE:
        args.data.problem_type = made_for
        args.origins["problem_type"] = "follows: the model"
    return made_for


def set_problem_type_from_labels(
    args: Arguments,
    sources: Mapping[str, Source],
    made_for: str | None,
) -> str:
    """Return the problem type of a run, and set the arguments that follow from it.

    Args:
        sources: the data by split.
        made_for: the problem type of a model that is not trained any further.

    Raises:
        LabelError: labels of two kinds.
        ConfigError: arguments that are for labels of another kind.
    """
    kinds = {
        f"{split} ({source.name})": source.problem_type
        for split, source in sources.items()
        if source.problem_type is not None
    }
    if made_for is not None:
        kinds["the model"] = made_for
    (first, kind), *others = kinds.items()
    for other, found in others:
        if found != kind:
            raise LabelError(
                f"the labels of {first} are {kind}, those of {other} {found}",
                "expected the same kind everywhere",
                "write them alike, or say what they are with --problem_type",
            )
    data, training = args.data, args.training
    if data.problem_type is None and kind != SINGLE:
        data.problem_type = kind
        args.origins["problem_type"] = "follows: the labels"
    if args.origins.get("metric_for_best_model", "").startswith("follows"):
        # Of data that are learnt by heart the loss is at its best after an epoch, what
        # is asked for long after: 0.76 and 0.84 of 1,000 texts right (emotions, 1,350
        # to learn from, 8 epochs).
        training.metric_for_best_model = HEADLINE[kind]
        training.greater_is_better = True
        args.origins["metric_for_best_model"] = "follows: the labels"
    problems = []
    if kind != SINGLE and training.label_smoothing_factor:
        problems.append(f"label_smoothing_factor does not work with {kind}")
    given = "contrastive_weight" in args.origins and data.contrastive_weight
    if kind != SINGLE and given:
        problems.append(f"contrastive_weight does not work with {kind}")
    if kind == REGRESSION and data.class_weights != ["none"]:
        problems.append("class_weights is of classes, the labels are numbers")
    if kind == REGRESSION and data.calibrate:
        problems.append("calibrate is of probabilities, the labels are numbers")
    best = training.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in METRICS[kind]:
        has = ", ".join(METRICS[kind])
        problems.append(f"metric_for_best_model is {best}, {kind} has {has}")
    if problems:
        raise ConfigError(*problems)
    return str(kind)


def compute_metrics(problem_type: str, threshold: float) -> Metric:
    """Return what measures predictions of ``problem_type``."""
    if problem_type == MULTI:
        return classes.MultiLabel(threshold)
    if problem_type == REGRESSION:
        return classes.Regression()
    return classes.Classification()


def count_unknown(tokenizer: Any, examples: Mapping[str, Dataset], run: Run) -> None:
    """Tell a run of the unknown tokens of the texts it is judged on.

    Before ``freeze_backbone``, which takes the tokens away.
    """
    if run.held_out:
        run.unknown_tokens = unknown_by_text(examples[run.held_out], tokenizer)


def measure(
    trainer: LlmftTrainer,
    examples: Mapping[str, Dataset],
    splits: Splits,
    metric: Metric,
    run: Run,
    split: str,
) -> PredictionOutput:
    """Return what the model says of a split; its metrics become results of the run.

    Where train has rows of it, too, those of the other rows stand beside them.
    """
    part = "test" if split == "test" else "eval"
    found = trainer.predict(examples[split], metric_key_prefix=part)
    run.results[part] = found.metrics or {}
    source = splits.sources[split]
    if found.label_ids is None and "label" in source.dataset.column_names:
        run.results[part] |= _of_labelled(found, source, metric, trainer.model, part)
    if split in splits.in_train and found.label_ids is not None:
        scores, wanted = np.asarray(found.predictions), np.asarray(found.label_ids)
        others = np.setdiff1d(np.arange(len(scores)), splits.in_train[split])
        if len(others):
            other = EvalPrediction(scores[others], wanted[others])
            run.results[part + UNSHARED] = metric(other)
    return found


def _of_labelled(
    found: PredictionOutput, source: Source, metric: Metric, model: Any, part: str
) -> dict[str, float]:
    """Return the metrics of the rows that have a label, where some have none."""
    given = source.dataset["label"][:]
    rows = [row for row, label in enumerate(given) if label is not None]
    if not rows:  # of those that were drawn
        return {}
    some, names = source.select(rows), tuple(model.config.id2label.values())
    labels = LabelNames(names, str(source.problem_type))
    wanted = labels.targets(some.dataset["label"][:], source.name, some.place)
    measured = metric(EvalPrediction(np.asarray(found.predictions)[rows], wanted))
    return {f"{part}_{name}": value for name, value in measured.items()}


def contrast(args: Arguments, model: Any) -> float:
    """Return the weight of the contrastive loss: 0 where nothing would be moved."""
    return 0.0 if _no_contrast(args, model) else args.data.contrastive_weight


def _no_contrast(args: Arguments, model: Any) -> str:
    """Return why there is no contrastive loss, or ""."""
    if args.model.freeze_backbone:
        return "the encoder is frozen: nothing of it would be moved"
    if args.training.train_batch_size < 2:
        return "batches of one text: nothing to draw together"
    return "" if output_layer(model) else "the head has no output layer of its own"


def choices(
    objective: Classification,
    args: Arguments,
    model: Any,
    labels: LabelNames,
    examples: Mapping[str, Dataset],
) -> list[Choice]:
    """Return what to say of labels and loss in the plan.

    Args:
        examples: by split.
    """
    data, train = args.data, examples.get("train")
    weights = None if objective.weights is None else objective.weights.tolist()
    weighed = weights_choice(data.class_weights, weights, labels)
    if train is not None and labels.problem_type == SINGLE and data.contrastive_weight:
        said = "texts of a class in a batch are drawn together; a part of train's loss"
        if args.training.gradient_accumulation_steps > 1:
            said += f"; a batch is of {args.training.train_batch_size}"
        why = _no_contrast(args, model) or said
        weighed.append(Choice("contrast", f"{objective.contrast:g}", why))
    validated = data.k_folds or data.validation_file or data.dataset_name
    if train is not None and len(train) < SMALL and not validated:
        said = "little to validate on; --k_folds 5 measures on every row of train, in"
        said += " about six times the time"
        weighed.append(Choice("small data", f"{len(train):,} examples", said))
    if labels.problem_type == SINGLE:
        if train is None or not all(map(_NUMBER.fullmatch, labels.names)):
            return weighed
        said = "their names are numbers; --problem_type regression learns them as such"
        if any("," in name for name in labels.names):
            said += ", written with a point"
        return [*weighed, Choice("labels", f"{len(labels.names):,} classes", said)]
    value, said = labels.problem_type, "as the model was trained"
    found = None if train is None else np.asarray(train["labels"][:], np.float64)
    if labels.problem_type == MULTI:
        value += f", {len(labels.names):,} labels"
        if found is not None:
            none = int((found.sum(1) == 0).sum())
            said = f"{found.sum(1).mean():.3g} an example, {none:,} examples have none"
    elif found is not None:
        said = (
            f"from {found.min():.4g} to {found.max():.4g}, mean {found.mean():.4g},"
            f" standard deviation {found.std():.4g}"
        )
    return [Choice("labels", value, said), *weighed]


def arguments_to_keep(data: Any) -> list[str]:
    """Return the arguments that a command on the model of this run takes over.

    As far as they are other than by default: how the next export is read, too.
    """
    default = type(data)()
    names = fields_with("kept", type(data))
    return [name for name in names if getattr(data, name) != getattr(default, name)]


def title(labels: LabelNames) -> str:
    """Return the first line of the model card."""
    if labels.problem_type == REGRESSION:
        return "Text regression"
    several = "Multi-label text" if labels.problem_type == MULTI else "Text"
    return f"{several} classifier for {', '.join(labels.names)}"
