"""Sequence classification: teach an encoder to sort your texts into classes.

python recipes/classify.py
python recipes/classify.py --train_file reviews.csv --label_column_name rating
python recipes/classify.py --help
"""

import sys
from pathlib import Path

from transformers import set_seed

from llmft import checkpoint, fastpath, frozen, metrics, models, predictions, runs
from llmft.arguments import ClassificationDataArguments, ClassificationModelArguments
from llmft.config import parse, require_data, require_something_to_do
from llmft.console import run_command, say
from llmft.data.collate import ClassificationCollator
from llmft.data.splits import load_splits, needed_splits
from llmft.data.tokenize import classification_features
from llmft.trainer import LlmftTrainer


def main(argv: list[str]) -> None:
    args = parse(
        argv,
        ClassificationModelArguments,
        ClassificationDataArguments,
        description=__doc__,
        metrics=metrics.CLASSIFICATION,
        default_file=Path(__file__).with_name("classify_cpu.json"),
        check=lambda values: require_data(values) + require_something_to_do(values),
    )
    training = args.training
    runs.check_output_dir(training)

    # Data and model: everything is checked before the run folder is made.
    located = models.locate(args.model, "classification")
    choices = fastpath.prepare(training, args.model, args.data.max_seq_length)
    set_seed(training.seed)
    tokenizer = models.load_tokenizer(located, args.model, "classification")
    needed = needed_splits(training)
    splits = load_splits(args.data, training.seed, needed, needs_label=True)
    labels = models.label_names(located, splits.parts.get("train"), args.data.allow)
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
        will_train=training.do_train,
    )
    runs.plan(args, choices, features.get("train"))
    if training.dry_run:
        return

    with runs.start("classify", args, choices, **facts) as run:
        collator = ClassificationCollator(tokenizer)
        if args.model.freeze_backbone:
            features = frozen.freeze_backbone(model, features, collator)
        trainer = LlmftTrainer(
            task="classification",
            model=model,
            args=training,
            data_collator=collator,
            train_dataset=features.get("train"),
            eval_dataset=features.get("validation"),
            processing_class=tokenizer,
            compute_metrics=metrics.classification_metrics,
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
            rows = predictions.rows(
                splits.parts[held_out]["text"], predicted, labels.names
            )
            run.write_predictions(rows)

        frozen.restore_backbone(model)
        run.finish(trainer, results, f"Text classifier for {', '.join(labels.names)}")
        notes = []
        if held_out:
            if shown := predictions.class_table(predicted, labels.names, held_out):
                say(shown)
            if shown := predictions.mistakes(rows, args.data.num_mistakes):
                say(shown)
        if args.data.baseline and training.do_train and held_out:
            train, test = splits.parts["train"], splits.parts[held_out]
            notes = [metrics.baseline_note(train, test, held_out)]
        runs.report(
            run,
            results,
            ["accuracy", "f1_macro", "matthews_correlation", "log_loss"],
            "classify",
            *("--do_predict", "--test_file", "NEW.csv"),
            keep=["max_seq_length", "text_column_name", "label_column_name"],
            notes=notes,
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
