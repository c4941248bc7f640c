"""Sequence classification: teach an encoder to sort your texts into classes.

python recipes/classify.py
python recipes/classify.py --train_file reviews.csv --label_column_name rating
python recipes/classify.py --help
"""

import sys
from functools import partial
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import parse
from llmft.data.tokens.collate import ClassificationCollator
from llmft.data.tokens.examples import classification_features
from llmft.metrics import predictions
from llmft.model.features import freeze_backbone, restore_backbone
from llmft.model.identity import identity
from llmft.model.labels import label_names
from llmft.model.load import load_model, name_token_types
from llmft.model.new_weights import prepare_regression
from llmft.process import run_command
from llmft.runs.folder import Run
from llmft.tasks import classify
from llmft.tasks.prepare import prepare, read_splits
from llmft.train.callbacks import EarlyStoppingCallback
from llmft.train.class_weights import class_weights
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> None:
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
    model_args, data_args, training_args = args.model, args.data, args.training

    # Everything is checked before the folder of the run is made.
    located, choices, tokenizer = prepare(args, classify.TASK)
    name_token_types(tokenizer, located)
    made_for = classify.follow_model(args, located)
    splits = read_splits(args, needs_label=True)
    kind = classify.follow_labels(args, splits.sources, made_for)
    labels = label_names(located, splits.sources.get("train"), data_args.allow, kind)
    features = {
        split: classification_features(source, tokenizer, data_args, split, labels)
        for split, source in splits.sources.items()
    }
    train = features.get("train")
    weights = class_weights(data_args.class_weights, labels, train)
    model = load_model(
        AutoModelForSequenceClassification,
        located,
        model_args,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        label_names=labels.names,
        problem_type=kind,
        will_train=training_args.do_train,
    )
    prepare_regression(model, train)
    run = Run(__file__, classify.TASK, args, splits, identity(located, tokenizer))
    run.plan([*choices, *classify.choices(data_args, labels, weights, train)], train)
    if training_args.dry_run:
        return

    with run.start():
        collator = ClassificationCollator(tokenizer)
        if model_args.freeze_backbone:
            features = freeze_backbone(model, features, collator)
        threshold = data_args.multi_label_threshold
        trainer = LlmftTrainer(
            model=model,
            args=training_args,
            objective=Classification(kind, weights),
            data_collator=collator,
            train_dataset=features.get("train"),
            eval_dataset=features.get("validation"),
            processing_class=tokenizer,
            compute_metrics=classify.compute_metrics(kind, threshold),
            callbacks=[EarlyStoppingCallback.of(training_args), *run.callbacks],
        )
        if training_args.do_train:
            trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        if training_args.do_eval and run.held_out == "test":
            run.results["eval"] = trainer.evaluate()
        if run.held_out:
            data = features[run.held_out]
            predicted = trainer.predict(data, metric_key_prefix=run.part)
            run.results[run.part] = predicted.metrics
            texts = splits.parts[run.held_out]
            rows = predictions.rows(texts, predicted, labels, threshold)
            run.write_predictions(rows)

        restore_backbone(model)
        run.finish(trainer, classify.title(labels))
        if run.held_out:
            predictions.show(rows, predicted, labels, run.held_out, data_args)
        run.report(
            list(classify.METRICS[kind])[1:],
            "classify",
            ["--do_predict", "--test_file", "NEW.csv"],
            keep=classify.kept(data_args),
            notes=classify.baseline_notes(data_args, splits, labels, run),
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
