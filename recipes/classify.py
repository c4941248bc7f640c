"""Sequence classification: teach an encoder to sort your texts into classes.

python recipes/classify.py
python recipes/classify.py --train_file reviews.csv --label_column_name rating
"""

import sys
from functools import partial
from pathlib import Path

from llmft.process import run_script

# Above the other imports: how threads wait is read when torch loads, and Ctrl-C while
# all that loads ends in one line, too.
if __name__ == "__main__":
    sys.exit(run_script(__file__, sys.argv[1:]))

from transformers import AutoModelForSequenceClassification

from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments, parse
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.data.tokens.examples import classification_features
from llmft.metrics import predictions
from llmft.model.features import freeze_backbone, whole_model
from llmft.model.identity import fingerprint
from llmft.model.labels import label_names
from llmft.model.load import load_model, set_token_type_ids
from llmft.model.new_weights import init_regression_head
from llmft.runs.folder import Run
from llmft.runs.plan import Plan
from llmft.tasks import calibration, classify
from llmft.tasks.folds import cross_validate
from llmft.tasks.ladder import Ladder
from llmft.tasks.prepare import prepare, read_splits
from llmft.train.callbacks import EarlyStoppingCallback
from llmft.train.class_weights import class_weights
from llmft.train.fast_path import choose_fast_path
from llmft.train.hyperparameters import LABELS, set_epochs_and_rate
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> Plan:
    args = parse(
        argv,
        ClassificationModelArguments,
        ClassificationDataArguments,
        partial(TrainingArguments, use_cpu=True),
        description=__doc__,
        metrics=classify.TASK.metrics,
        default_file=Path(__file__).with_name("classify_cpu.json"),
        check=classify.check,
    )
    return cross_validate(train, args) if args.data.k_folds else train(args)[0]


def train(args: Arguments) -> tuple[Plan, Ladder | None]:
    """Train, evaluate, predict and save, as far as the arguments say."""
    model_args, data_args, training_args = args.model, args.data, args.training
    located, choices, tokenizer = prepare(args, classify.TASK)
    set_token_type_ids(tokenizer, located)
    made_for = classify.set_problem_type_from_model(args, located)
    splits = read_splits(args, needs_label=True)  # makes missing ones, refuses leakage
    sources = splits.sources
    problem_type = classify.set_problem_type_from_labels(args, sources, made_for)
    labels = label_names(located, sources.get("train"), data_args.allow, problem_type)
    examples = {
        split: classification_features(source, tokenizer, data_args, split, labels)
        for split, source in sources.items()
    }
    weights = class_weights(data_args.class_weights, labels, examples.get("train"))
    new: list[str] = []  # names of weights that were never trained
    model = load_model(
        AutoModelForSequenceClassification,
        located,
        model_args,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        label_names=labels.names,
        problem_type=problem_type,
        will_train=training_args.do_train,
        init_new_weights=lambda _, names: new.extend(names),
    )
    classify.require_one_end(model, examples, sources)
    init_regression_head(model, examples.get("train"))
    choices += set_epochs_and_rate(args, model, LABELS[problem_type], examples)
    # Tries steps in each precision and attention; sets the fastest, unless given.
    collator = DataCollatorForClassification(tokenizer)
    contrast = classify.contrast(args, model)  # weight of the contrastive loss
    objective = Classification(problem_type, weights, contrast)
    fast_path = choose_fast_path(args, model, objective, collator, examples)
    choices += fast_path.choices
    # bf16 kernels are made and kept for each length: few lengths, few kernels.
    collator.pad_to_multiple_of = 8 if training_args.bf16 else None
    choices += classify.choices(objective, args, model, labels, examples)
    run = Run(__file__, classify.TASK, args, splits, fingerprint(located, tokenizer))
    plan = run.plan(choices, examples.get("train"), fast_path.forecast)
    if training_args.dry_run:
        return plan, None

    ladder = Ladder(args, splits, labels, new)  # TF-IDF: a time limit knows its time
    with run.start():  # makes the folder of the run, and run.callbacks
        classify.count_unknown(tokenizer, examples, run)
        if model_args.freeze_backbone:
            examples = freeze_backbone(model, examples, collator)
        metric = classify.compute_metrics(problem_type, data_args.multi_label_threshold)
        trainer = LlmftTrainer(
            model=model,
            args=training_args,
            objective=objective,
            data_collator=collator,
            train_dataset=examples.get("train"),
            eval_dataset=examples.get("validation"),
            processing_class=tokenizer,
            compute_metrics=metric,
            callbacks=[EarlyStoppingCallback.from_args(training_args), *run.callbacks],
        )
        if training_args.do_train:
            ladder.start_from_probe(trainer, examples, run)
            trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
            ladder.keep_best(trainer, examples, run)
            calibration.calibrate(trainer, examples, data_args, problem_type, run)
            with whole_model(model):
                run.save(trainer)
        measure = partial(classify.measure, trainer, examples, splits, metric, run)
        if training_args.do_eval and run.held_out == "test":
            measure("validation")
        if run.held_out:
            predicted = measure(run.held_out)
            said = (predicted, labels, data_args, ladder.others, run.files)
            rows = predictions.rows(splits.parts[run.held_out], *said)
            run.write_predictions(rows)
            ladder.finish(predicted, run, metric)
            weak = predictions.weak_classes(predicted, labels, splits.parts, data_args)
            run.more["weak_classes"] = weak
            predictions.show(rows, predicted, labels, run.held_out, data_args, weak)
        run.finish(trainer, classify.title(labels))
        run.report(
            list(classify.METRICS[problem_type])[1:],
            "classify",
            ["--do_predict", "--test_file", "NEW.csv"],
            keep=classify.arguments_to_keep(data_args),
            notes=ladder.notes,
        )
    return run.planned, ladder
