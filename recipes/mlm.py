"""Masked language modelling: teach an encoder the words of your texts.

python recipes/mlm.py --args recipes/mlm_cpu.json
python recipes/mlm.py --train_file my_texts.txt
python recipes/mlm.py --help
"""

import sys
from functools import partial
from pathlib import Path

from llmft.process import run_script

# Above the other imports: how threads wait is read when torch loads, and Ctrl-C while
# all that loads ends in one line, too.
if __name__ == "__main__":
    sys.exit(run_script(__file__, sys.argv[1:]))

from transformers import AutoModelForMaskedLM

from llmft.config.fields import MaskedLMDataArguments, ModelArguments, TrainingArguments
from llmft.config.parse import parse
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.metrics.tokens import TokenPrediction
from llmft.model.identity import fingerprint
from llmft.model.load import load_model, require_mask_token
from llmft.model.new_weights import (
    init_mlm_head_as_identity,
    init_output_bias_from_frequencies,
)
from llmft.runs.folder import Run
from llmft.runs.plan import Plan
from llmft.tasks import mlm
from llmft.tasks.prepare import prepare, read_splits
from llmft.train.callbacks import EarlyStoppingCallback
from llmft.train.fast_path import choose_fast_path
from llmft.train.hyperparameters import MASKED_LM, set_epochs_and_rate
from llmft.train.objectives import MaskedLM
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> Plan:
    args = parse(
        argv,
        ModelArguments,
        MaskedLMDataArguments,
        partial(TrainingArguments, use_cpu=True),
        description=__doc__,
        metrics=mlm.TASK.metrics,
        default_file=Path(__file__).with_name("mlm_cpu.json"),
        check=mlm.check,
    )
    model_args, data_args, training_args = args.model, args.data, args.training

    # Checks output_dir, finds the model, sets the seed, and torch's threads.
    located, choices, tokenizer = prepare(args, mlm.TASK)
    require_mask_token(tokenizer, located)
    splits = read_splits(args)  # makes those that are missing, refuses leakage
    # Masks depend on (seed, epoch, row); those of evaluations stay the same.
    collator = SeededDataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=data_args.mlm_probability,
        mask_seed=training_args.seed,
        mlm_masking=data_args.mlm_masking,
        geometric_p=data_args.geometric_p,
        max_span_length=data_args.max_span_length,
    )
    blocks = mlm.blocks(splits, tokenizer, collator, data_args)
    model = load_model(
        AutoModelForMaskedLM,
        located,
        model_args,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        will_train=training_args.do_train,
        init_new_weights=init_mlm_head_as_identity,
    )
    choices += set_epochs_and_rate(args, model, MASKED_LM, blocks)
    # Tries steps in each precision and attention; sets the fastest, unless given.
    objective = MaskedLM()
    fast_path = choose_fast_path(args, model, objective, collator, blocks)
    choices += fast_path.choices
    run = Run(__file__, mlm.TASK, args, splits, fingerprint(located, tokenizer))
    # Checks the checkpoint that is resumed, and says what is going to happen.
    plan = run.plan(choices, blocks.get("train"), fast_path.forecast)
    if training_args.dry_run:
        return plan

    with run.start():  # makes the folder of the run, and run.callbacks
        trainer = LlmftTrainer(
            model=model,
            args=training_args,
            objective=objective,
            data_collator=collator,
            train_dataset=blocks.get("train"),
            eval_dataset=blocks.get("validation"),
            processing_class=tokenizer,
            compute_metrics=TokenPrediction("masked_accuracy"),
            callbacks=[EarlyStoppingCallback.from_args(training_args), *run.callbacks],
        )
        cloze: list[tuple[str, str]] = []
        before: list[str] = []
        if training_args.do_train:
            cloze = mlm.cloze_examples(
                splits.parts.get(run.held_out), tokenizer, data_args, training_args.seed
            )
            before = mlm.fill_masks(model, tokenizer, cloze)
            if run.held_out:
                run.results["before"] = trainer.evaluate(
                    blocks[run.held_out], metric_key_prefix="before"
                )
            if not training_args.resume_from_checkpoint:
                # Of a new head only; it counts as training.
                init_output_bias_from_frequencies(model, blocks["train"])
            trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
            run.save(trainer)
        if training_args.do_eval:
            run.results["eval"] = trainer.evaluate()
        if training_args.do_predict:
            run.results["test"] = trainer.evaluate(
                blocks["test"], metric_key_prefix="test"
            )

        run.finish(trainer, f"Masked language model on {splits.name}")
        mlm.show_filled(cloze, before, mlm.fill_masks(model, tokenizer, cloze), run)
        # What to run next: a classifier on this encoder, on the user's own texts too.
        next_flags = [] if data_args.dataset_name else ["--train_file", "LABELLED.csv"]
        run.report(
            list(mlm.TASK.metrics), "classify", next_flags, keep=["max_seq_length"]
        )
    return run.planned
