"""Sequence classification: teach an encoder to sort your texts into classes.

python recipes/classify.py
python recipes/classify.py --train_file reviews.csv --label_column_name rating
python recipes/classify.py --help
"""

import sys
from pathlib import Path

from transformers import set_seed

from llmft import checkpoint, fastpath, frozen, models, predictions, problem, runs
from llmft.arguments import ClassificationDataArguments, ClassificationModelArguments
from llmft.baseline import baseline_note
from llmft.class_weights import class_weights
from llmft.config import parse, require_data, require_something_to_do
from llmft.console import run_command, say
from llmft.data.collate import ClassificationCollator
from llmft.data.splits import load_splits, needed_splits
from llmft.data.tokenize import classification_features
from llmft.heads import prepare_regression
from llmft.trainer import LlmftTrainer

DEFAULTS = Path(__file__).with_name("classify_cpu.json")


def main(argv: list[str]) -> None:
    args = parse(
        argv,
        ClassificationModelArguments,
        ClassificationDataArguments,
        description=__doc__,
        metrics=problem.ALL_METRICS,
        default_file=DEFAULTS,
        check=lambda values: (
            require_data(values)
            + require_something_to_do(values)
            + problem.check(values)
        ),
    )
    training = args.training
    runs.check_output_dir(training)

    # Data and model: everything is checked before the run folder is made.
    located = models.locate(args.model, "classification")
    choices = fastpath.prepare(training, args.model, args.data.max_seq_length)
    set_seed(training.seed)
    tokenizer = models.load_tokenizer(located, args.model, "classification")
    needed = needed_splits(training)
    made_for = problem.follow_model(args, located)
    splits = load_splits(args.data, training.seed, needed, needs_label=True)
    kind = problem.settle(args, splits.sources, made_for)
    train = splits.parts.get("train")
    labels = models.label_names(
        located, splits.sources.get("train"), args.data.allow, kind
    )
    features = {
        split: classification_features(source, tokenizer, args.data, split, labels)
        for split, source in splits.sources.items()
    }
    facts = {"data": splits.provenance, "model": models.identity(located, tokenizer)}
    checkpoint.require_match("classify", args, facts, features.get("train"))
    model = models.load_model(
        located,
        args.model,
        "classification",
        tokenizer,
        max_seq_length=args.data.max_seq_length,
        label_names=labels.names,
        problem_type=kind,
        will_train=training.do_train,
    )
    prepare_regression(model, features.get("train"))
    weights = class_weights(args.data.class_weights, labels, features.get("train"))
    choices += problem.choices(args.data, labels, weights, features.get("train"))
    runs.plan(args, choices, features.get("train"))
    if training.dry_run:
        return

    threshold = args.data.multi_label_threshold
    with runs.start("classify", args, choices, **facts) as run:
        collator = ClassificationCollator(tokenizer)
        if args.model.freeze_backbone:
            features = frozen.freeze_backbone(model, features, collator)
        trainer = LlmftTrainer(
            task="classification",
            problem_type=kind,
            class_weights=weights,
            model=model,
            args=training,
            data_collator=collator,
            train_dataset=features.get("train"),
            eval_dataset=features.get("validation"),
            processing_class=tokenizer,
            compute_metrics=problem.compute_metrics(kind, threshold),
        )
        run.attach(trainer)
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

        frozen.restore_backbone(model)
        run.finish(trainer, results, problem.title(labels))
        notes = []
        if held_out:
            table = predictions.class_table(predicted, labels, held_out, threshold)
            worst = predictions.mistakes(rows, args.data.num_mistakes, labels)
            for shown in filter(None, (table, worst)):
                say(shown)
        if args.data.baseline and train is not None and held_out:
            reached = predicted.metrics
            notes = [baseline_note(train, test, held_out, labels, threshold, reached)]
        runs.report(
            run,
            results,
            list(problem.METRICS[kind])[1:],
            "classify",
            *("--do_predict", "--test_file", "NEW.csv"),
            keep=problem.kept(args.data),
            notes=notes,
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
